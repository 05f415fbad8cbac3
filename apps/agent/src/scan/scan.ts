// scan.ts: what is installed in an image, read out of its unpacked layers. Nothing of the image is run, and nothing in it
// is believed: see walk.ts for how files are found, and packages.ts of libs/oci for what they say.
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import {
  contentLimits,
  type Distribution,
  type FoundPackage,
  type ImageContents,
  ignore,
  KiB,
  MiB,
} from '@berth/contracts'
import {
  Attribution,
  isOfDebian,
  type PackageFile,
  packageFileOf,
  packagePlaceOf,
  parseDpkgFiles,
  parseOsRelease,
  parsers,
} from '@berth/oci'
import { bytesOf, type WalkedFile, walk, walkLimits } from './walk.js'

export interface ScanLayer {
  readonly diffId: string
  /** Directory of its files. */
  readonly path: string
}

export interface ScanLimits {
  /** Bytes that are read in all. */
  readonly bytes: number
  readonly packages: number
  /** Characters of all that is told of packages. */
  readonly text: number
  readonly walk: typeof walkLimits
}

export const scanLimits: ScanLimits = {
  bytes: 512 * MiB,
  packages: contentLimits.packages,
  text: 8 * MiB,
  walk: walkLimits,
}

/** Most that is read of one file. Descriptions come after what is wanted of core metadata. */
const fileBytes: Readonly<Record<PackageFile, number>> = {
  dpkg: 16 * MiB,
  'dpkg-files': 4 * MiB,
  apk: 32 * MiB,
  npm: 1 * MiB,
  python: 64 * KiB,
  'os-release': 64 * KiB,
}
/** Files of several layers whose older states are looked at: of databases, which every layer writes anew. */
const hasHistory: ReadonlySet<PackageFile> = new Set(['dpkg', 'apk'])

/**
 * Reads what is installed.
 * @param layers topmost first
 * @throws what `signal` is aborted with; Fault when a layer cannot be read
 */
export async function scan(
  layers: readonly ScanLayer[],
  signal: AbortSignal,
  limits = scanLimits,
): Promise<ImageContents> {
  const wanted = { file: (path: string) => packageFileOf(path) !== undefined, place: packagePlaceOf }
  const paths = layers.map(({ path }) => path)
  const { files, omitted } = await walk(paths, wanted, signal, limits.walk)
  const reading = new Reading(layers, limits, omitted)
  const isList = ({ path }: WalkedFile) => packageFileOf(path) === 'dpkg-files'
  const lists = reading.mayBeOfDebian(files) ? files.filter(isList) : []
  for (const file of lists) {
    signal.throwIfAborted()
    await reading.takeList(file)
  }
  for (const file of files) {
    signal.throwIfAborted()
    await reading.take(file)
  }
  return reading.contents()
}

class Reading {
  private readonly packages = new Map<string, FoundPackage>()
  private readonly releases = new Map<string, Distribution>()
  /** Files that may be of Debian's packages, and whether dpkg lists them. Lists themselves may be of any length. */
  private readonly debian = new Map<string, boolean>()
  private readonly warnings: string[] = []
  private complete = true
  private bytes = 0
  private text = 0
  private unsaid = 0

  constructor(
    private readonly layers: readonly ScanLayer[],
    private readonly limits: ScanLimits,
    omitted: readonly string[],
  ) {
    for (const what of omitted) this.leaveOut(`not looked at: ${what}`)
  }

  /** Remembers of which files dpkg's lists are to be asked. @returns whether there are any */
  mayBeOfDebian(files: readonly WalkedFile[]): boolean {
    for (const { real } of files) if (isOfDebian(real)) this.debian.set(textOf(real), false)
    return this.debian.size > 0
  }

  async takeList({ path, real, layers: [index] }: WalkedFile): Promise<void> {
    const layer = this.layers[index ?? 0]
    const text = layer && (await this.read(layer, { path, real }, 'dpkg-files'))
    for (const its of parseDpkgFiles(text ?? '')) if (this.debian.has(its)) this.debian.set(its, true)
  }

  async take({ path, real, layers }: WalkedFile): Promise<void> {
    const kind = packageFileOf(path)
    if (kind === undefined || kind === 'dpkg-files' || this.debian.get(textOf(real))) return
    let attribution: Attribution | undefined
    for (const index of hasHistory.has(kind) ? layers : layers.slice(0, 1)) {
      const layer = this.layers[index]
      const text = layer && (await this.read(layer, { path, real }, kind))
      if (text === undefined) break
      if (kind === 'os-release') {
        this.release(path, text)
        return
      }
      const { packages, malformed, cut } = parsers[kind](text)
      const state = { layer: layer?.diffId ?? '', packages }
      // Older states only say since when something is there.
      if (attribution && !attribution.below(state)) break
      if (attribution) continue
      this.check(path, malformed, cut)
      attribution = new Attribution(shown(path), state)
    }
    if (attribution) this.add(attribution.packages)
  }

  private check(path: string, malformed: number, cut: boolean): void {
    if (malformed > 0) this.warn(`${shown(path)}: entries that are no packages: ${malformed}`)
    if (cut) this.leaveOut(`${shown(path)}: entries after the first ${contentLimits.packages} are not read`)
  }

  contents(): ImageContents {
    if (this.unsaid > 0) this.warnings.push(`and ${this.unsaid} more warnings`)
    const distribution = this.releases.get('etc/os-release') ?? this.releases.get('usr/lib/os-release') ?? null
    const packages = [...this.packages].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, one]) => one)
    return { distribution, packages, complete: this.complete, warnings: this.warnings }
  }

  private release(path: string, text: string): void {
    const found = parseOsRelease(text)
    if (found) this.releases.set(path, found)
  }

  /** One package counts once, however often it is there: modules of npm are, by the hundred. */
  private add(found: readonly FoundPackage[]): void {
    for (const one of found) {
      const key = JSON.stringify([one.type, one.name, one.version, one.architecture])
      if (this.packages.has(key)) continue
      this.text += JSON.stringify(one).length
      if (this.packages.size >= this.limits.packages)
        this.leaveOut(`packages after the first ${this.limits.packages} are left out`)
      else if (this.text > this.limits.text) this.leaveOut(`packages after ${this.limits.text} characters are left out`)
      else this.packages.set(key, one)
    }
  }

  /** Undefined where nothing more may be read. */
  private async read(
    layer: ScanLayer,
    { path, real }: Pick<WalkedFile, 'path' | 'real'>,
    kind: PackageFile,
  ): Promise<string | undefined> {
    const at = bytesOf(layer.path, real)
    const file = await open(at, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch(
      (error: unknown) => ignore(error, 'ENAMETOOLONG'),
    )
    if (!file) {
      this.leaveOut(`${shown(path)}: its path is too long`)
      return undefined
    }
    try {
      const { size } = await file.stat()
      const most = Math.min(size, fileBytes[kind])
      if (this.bytes + most > this.limits.bytes) {
        this.leaveOut(`files after the first ${this.limits.bytes} bytes of them are not read`)
        return undefined
      }
      this.bytes += most
      const text = await readStart(file, most)
      // Of core metadata only what comes before the first empty line counts; what a list leaves out is told of too much.
      const isEnough = kind === 'dpkg-files' || (kind === 'python' && /\n\r?\n/.test(text))
      if (size > most && !isEnough) this.leaveOut(`${shown(path)}: larger than the ${most} bytes that are read`)
      return text
    } finally {
      await file.close()
    }
  }

  private leaveOut(what: string): void {
    this.complete = false
    this.warn(what)
  }

  private warn(what: string): void {
    const text = printable(what)
    if (this.warnings.includes(text)) return
    if (this.warnings.length < contentLimits.warnings) this.warnings.push(text)
    else this.unsaid++
  }
}

async function readStart(file: FileHandle, most: number): Promise<string> {
  const buffer = Buffer.allocUnsafe(most)
  let end = 0
  for (;;) {
    const { bytesRead } = await file.read(buffer, end, most - end, end)
    end += bytesRead
    if (bytesRead === 0 || end === most) return buffer.toString('utf8', 0, end)
  }
}

/** A path as walk.ts has it → as text. */
const textOf = (path: string): string => Buffer.from(path, 'latin1').toString()

/** Names in an image may hold anything, and be long. */
const shown = (path: string): string => printable(textOf(path))
const printable = (text: string): string => text.replace(/[\p{Cc}\p{Cs}]/gu, '\ufffd').slice(0, 512)
