// packages.ts: what package managers write down in an image about what they installed. Whoever made the image may have
// written anything there: what is none of what its format says is left out and told as a problem, and nothing of it is
// believed to be short or free of control characters.
//
//     var/lib/dpkg/status, var/lib/dpkg/status.d/*   dpkg(1), deb-control(5); the second of distroless images
//     var/lib/dpkg/info/*.list, …/status.d/*.md5sums  the files of its packages, a line each
//     lib/apk/db/installed                            apk-tools, "Installed database V2"
//     **/node_modules/<name>/package.json             npm, as node's resolution of modules finds them
//     **/*.dist-info/METADATA, **/*.egg-info[/PKG-INFO]   PyPA core metadata; PEP 376
//     etc/os-release, usr/lib/os-release              os-release(5)
import { contentLimits, type Distribution, type FoundPackage } from '@berth/contracts'
import { z } from 'zod'

/** A package as one file tells of it, before it is known which layer the file is in. */
export type ToldPackage = Omit<FoundPackage, 'path' | 'layer'>

export interface Told {
  /** The first ones, as many as are told of an image and one more. */
  readonly packages: readonly ToldPackage[]
  /** How many entries are none, of those that were looked at. */
  readonly malformed: number
  /** Whether what comes after them was not looked at. */
  readonly cut: boolean
}

export type PackageFile = 'dpkg' | 'dpkg-files' | 'apk' | 'npm' | 'python' | 'os-release'

// By npm's rules a name has no space, and at most one slash, after a scope.
const npmFile = /(?:^|\/)node_modules\/(?:@[^/]+\/)?[^/@.][^/]*\/package\.json$/
const pythonFile = /(?:\.dist-info\/METADATA|\.egg-info\/PKG-INFO|\/EGG-INFO\/PKG-INFO|[^/]\.egg-info)$/
/** Where Debian's own packages put such files. */
const debianFile = /^usr\/(?:lib\/python3\/dist-packages|share\/nodejs|lib\/nodejs)\//

/** What a file is to be read as; `path` is relative to the root of the image. */
export function packageFileOf(path: string): PackageFile | undefined {
  if (path === 'var/lib/dpkg/status') return 'dpkg'
  if (/^var\/lib\/dpkg\/status\.d\/[^/]+$/.test(path)) return path.endsWith('.md5sums') ? 'dpkg-files' : 'dpkg'
  if (/^var\/lib\/dpkg\/info\/[^/]+\.list$/.test(path)) return 'dpkg-files'
  if (/^(?:usr\/)?lib\/apk\/db\/installed$/.test(path)) return 'apk'
  if (path === 'etc/os-release' || path === 'usr/lib/os-release') return 'os-release'
  if (npmFile.test(path)) return 'npm'
  return pythonFile.test(path) ? 'python' : undefined
}

/** Whether a file may be of one of Debian's own packages: then it is dpkg's, under its version, where dpkg lists it. */
export const isOfDebian = (path: string): boolean => debianFile.test(path)

/** Directories on the way to databases. */
const ways = new Set(
  ['var/lib/dpkg/status.d', 'var/lib/dpkg/info', 'lib/apk/db', 'usr/lib/apk/db', 'etc'].flatMap((path) =>
    path.split('/').map((_, index, parts) => parts.slice(0, index + 1).join('/')),
  ),
)
const places: readonly [string, RegExp][] = [
  ['modules', /(?:^|\/)node_modules$/],
  ['scope', /(?:^|\/)node_modules\/@[^/]+$/],
  ['module', /(?:^|\/)node_modules\/(?:@[^/]+\/)?[^/@.][^/]*$/],
  ['dist-info', /\.dist-info$/],
  ['egg-info', /(?:\.egg-info|(?:^|\/)EGG-INFO)$/],
]

/** What is looked for in a directory because of its name; undefined: nothing that would not be found by its own. */
export function packagePlaceOf(path: string): string | undefined {
  if (ways.has(path)) return `/${path}`
  return places.find(([, pattern]) => pattern.test(path))?.[0]
}

const word = /^[^\p{Cc}\p{Cs}\s]+$/u
const isWord = (text: string | undefined): text is string =>
  text !== undefined && text.length <= contentLimits.text && word.test(text)

const line = /^[^\p{Cc}\p{Cs}]+$/u
const licenseOf = (text: string | undefined): string | null => {
  const trimmed = text?.trim() ?? ''
  return trimmed.length <= 1024 && line.test(trimmed) ? trimmed : null
}

/** Name and version where both are words; null otherwise. */
function named(type: ToldPackage['type'], name: string | undefined, version: string | undefined) {
  if (!isWord(name) || !isWord(version)) return null
  return { type, name, version, architecture: null, source: null, license: null } satisfies ToldPackage
}

/** @param found null for an entry that is none, undefined for one that does not count */
function toldOf(found: Iterable<ToldPackage | null | undefined>): Told {
  const packages: ToldPackage[] = []
  let malformed = 0
  for (const one of found) {
    if (one) packages.push(one)
    if (one === null) malformed++
    if (Math.max(packages.length, malformed) > contentLimits.packages) return { packages, malformed, cut: true }
  }
  return { packages, malformed, cut: false }
}

function* each<T, R>(items: Iterable<T>, to: (item: T) => R): Generator<R> {
  for (const item of items) yield to(item)
}

/** A part of a text keeps all of it in memory; a copy does not. */
const copied = (part: string): string => Buffer.from(part, 'utf8').toString('utf8')

/** Of a field; those that are wanted have less. */
const MAX_NAME = 32

/**
 * Fields of paragraphs between empty lines, `Name: value`; lines that go on are left out.
 * @param wanted names; in small letters where `anyCase`
 */
function* paragraphs(
  text: string,
  wanted: ReadonlySet<string>,
  anyCase: boolean,
): Generator<ReadonlyMap<string, string>> {
  let fields = new Map<string, string>()
  let isEmpty = true
  for (let at = 0; at <= text.length; ) {
    const end = text.indexOf('\n', at)
    const next = end < 0 ? text.length : end
    if (next === at || (text[at] === '\r' && next === at + 1)) {
      if (!isEmpty) yield fields
      fields = new Map()
      isEmpty = true
    } else {
      isEmpty = false
      // Not in all of the text: lines of those who made it have no colon.
      const colon = text.slice(at, Math.min(next, at + MAX_NAME)).indexOf(':')
      const written = colon < 0 ? '' : text.slice(at, at + colon)
      const name = anyCase ? written.toLowerCase() : written
      if (wanted.has(name) && !fields.has(name)) fields.set(name, copied(text.slice(at + colon + 1, next).trim()))
    }
    at = next + 1
  }
  if (!isEmpty) yield fields
}

const dpkgFields = new Set(['package', 'status', 'version', 'architecture', 'source'])
/** deb-control(5): `Source: name` or `name (version)`, where the version is another. */
const dpkgSource = /^(\S{1,256})(?: \((\S{1,256})\))?$/

/** Of dpkg: packages whose files are there, even if half-installed. Names of fields and packages are of any case to it. */
export function parseDpkgStatus(text: string): Told {
  return toldOf(
    each(paragraphs(text, dpkgFields, true), (fields) => {
      const status = fields.get('status')
      if (status !== undefined && /(?:^| )(?:not-installed|config-files)$/.test(status)) return undefined
      const found = named('deb', fields.get('package')?.toLowerCase(), fields.get('version'))
      if (!found) return null
      const [, source, version = found.version] = dpkgSource.exec(fields.get('source') ?? '') ?? []
      const architecture = fields.get('architecture')
      return {
        ...found,
        architecture: isWord(architecture) ? architecture : null,
        source: isWord(source) && isWord(version) ? { name: source, version } : null,
      }
    }),
  )
}

/** Paths, relative to the root, of files that a package of dpkg has: a line each, in `*.md5sums` behind a checksum. */
export function parseDpkgFiles(text: string): Iterable<string> {
  return each(text.matchAll(/^(?:[0-9a-f]{32} {2}|\/)([^\n]+)$/gm), ([, path = '']) => path)
}

const apkFields = new Set(['P', 'V', 'A', 'L', 'o'])

/** Of apk: all that it has installed. */
export function parseApkInstalled(text: string): Told {
  return toldOf(
    each(paragraphs(text, apkFields, false), (fields) => {
      const found = named('apk', fields.get('P'), fields.get('V'))
      if (!found) return null
      const [architecture, origin] = [fields.get('A'), fields.get('o')]
      return {
        ...found,
        architecture: isWord(architecture) ? architecture : null,
        source: isWord(origin) ? { name: origin, version: found.version } : null,
        license: licenseOf(fields.get('L')),
      }
    }),
  )
}

const License = z.union([z.string(), z.object({ type: z.string() }).transform(({ type }) => type)])
const PackageJson = z.object({
  name: z.string().regex(/^(?:@[^/]+\/)?[^/@]+$/),
  version: z.string(),
  license: License.optional().catch(undefined),
})

/** Of npm: the one package that a package.json describes; one without a name or a version is nobody's fault. */
export function parsePackageJson(text: string): Told {
  const parsed = PackageJson.safeParse(jsonOf(text))
  if (!parsed.success) return { packages: [], malformed: 1, cut: false }
  const { name, version, license } = parsed.data
  const found = named('npm', name, version)
  return toldOf([found && { ...found, license: licenseOf(license) }])
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text.startsWith('\ufeff') ? text.slice(1) : text)
  } catch {
    return undefined // which no schema takes
  }
}

const pythonFields = new Set(['name', 'version', 'license', 'license-expression'])

/** Of pip: the one package that core metadata describe. Only what comes before the first empty line is looked at. */
export function parsePythonMetadata(text: string): Told {
  const [fields] = paragraphs(text, pythonFields, true)
  const found = named('pypi', fields?.get('name'), fields?.get('version'))
  const license = fields?.get('license-expression') ?? fields?.get('license')
  // What is longer is the text of a licence.
  return toldOf([
    found && { ...found, license: license !== undefined && license.length <= 128 ? licenseOf(license) : null },
  ])
}

const assignment = /^([A-Z][A-Z0-9_]{0,63})=(.*)$/

/** Undefined where it does not say which distribution it is. */
export function parseOsRelease(text: string): Distribution | undefined {
  const values = new Map<string, string>()
  for (const entry of text.slice(0, 64 * 1024).split('\n')) {
    const [, name, value] = assignment.exec(entry.trim()) ?? []
    if (name !== undefined && value !== undefined) values.set(name, unquoted(value))
  }
  const [id, version] = [values.get('ID'), values.get('VERSION_ID')]
  if (!isWord(id)) return undefined
  const name = values.get('PRETTY_NAME') ?? ''
  return {
    id,
    version: isWord(version) ? version : null,
    name: line.test(name) ? name.slice(0, contentLimits.text) : id,
  }
}

/** os-release(5): single or double quotes, in the second of which a backslash escapes. */
function unquoted(value: string): string {
  const quoted = /^(["'])(.*)\1$/.exec(value)
  return (quoted?.[2] ?? value).replace(/\\(["'$`\\])/g, '$1')
}

export const parsers: Readonly<Record<Exclude<PackageFile, 'dpkg-files' | 'os-release'>, (text: string) => Told>> = {
  dpkg: parseDpkgStatus,
  apk: parseApkInstalled,
  npm: parsePackageJson,
  python: parsePythonMetadata,
}

/** One state of a file: the layer that has it, and what it tells there. */
export interface LayerState {
  /** diffID. */
  readonly layer: string
  readonly packages: readonly ToldPackage[]
}

const keyOf = ({ type, name, version, architecture }: ToldPackage): string =>
  JSON.stringify([type, name, version, architecture])

/**
 * Which layer brought each package of a file that several layers have: the lowest of those that have had it, in this
 * version, ever since. States are told one after the other: there may be a hundred, each as large as can be.
 */
export class Attribution {
  readonly #brought: Map<string, FoundPackage>
  /** Those that the last layer that was told of has had, too. */
  #open: ReadonlySet<string>

  /** @param top of the file, in the topmost layer that has it: it holds */
  constructor(path: string, { layer, packages }: LayerState) {
    this.#brought = new Map(packages.map((one) => [keyOf(one), { ...one, path, layer }]))
    this.#open = new Set(this.#brought.keys())
  }

  /** The state in the next layer below. @returns whether those below that one have anything to say */
  below({ layer, packages }: LayerState): boolean {
    const still = new Set<string>()
    for (const one of packages) {
      const key = keyOf(one)
      const found = this.#open.has(key) ? this.#brought.get(key) : undefined
      if (!found) continue
      this.#brought.set(key, { ...found, layer })
      still.add(key)
    }
    this.#open = still
    return still.size > 0
  }

  get packages(): readonly FoundPackage[] {
    return [...this.#brought.values()]
  }
}
