// pack.ts: what a sandbox left in its writable layer as the tar of an image's layer, by berth-layer (libs/init/upper.c).
import { PassThrough, type Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { Fault, type IdRange } from '@berth/contracts'
import { stream } from '@berth/host'
import { killedBy, textOf } from './inflate.js'
import { layerLimits } from './layers.js'
import { inGroups, layerRefusal } from './unpack.js'

export interface PackOptions {
  /** berth-layer. */
  readonly program: string
  /** The upper directory of an overlay. */
  readonly upper: string
  /** Whose owners are taken back out of this range. */
  readonly ids: IdRange
  /** Later times become this one; in Unix milliseconds, of which whole seconds count. */
  readonly newestMs?: number
  /** Paths that are left out, with what is below them. */
  readonly without?: readonly string[]
  /** Paths that are left out where they are empty files, or directories that hold nothing but such: mount points. */
  readonly stubs?: readonly string[]
  /** Directories of the layers below it, topmost first: then the tar is the root that the sandbox sees, no layer. */
  readonly lowers?: readonly string[]
  /** Most bytes of files. */
  readonly maxBytes?: number
  /** Directories of control groups that the work is done in. */
  readonly groups?: readonly string[]
  /** Asked when all is packed: where it throws, the tar is not whole. */
  readonly confirm?: () => void
  readonly signal: AbortSignal
}

export interface Packing {
  /** It breaks with what `ended` rejects with; its end means that it is whole. */
  readonly tar: Readable
  /**
   * @throws Failure image_invalid for what a layer cannot say, LayerTooLarge; Fault; the signal's reason
   */
  readonly ended: Promise<void>
}

/** The same directory is the same tar. Nobody may change it meanwhile unless it is packed with `lowers`. */
export function packUpper(options: PackOptions): Packing {
  const tar = new PassThrough({ highWaterMark: 1024 * 1024 })
  // It may break off before anybody reads it, who is told then.
  tar.on('error', () => undefined)
  // Whoever reads it no more ends the work, and is told by `ended`.
  const unread = new AbortController()
  tar.once('close', () => unread.abort(new Fault('pack a layer', { cause: 'nobody reads it' })))
  const ended = pack(options, tar, AbortSignal.any([options.signal, unread.signal]))
  ended.then(
    () => tar.end(),
    (error: unknown) => tar.destroy(error instanceof Error ? error : new Fault('pack a layer', { cause: error })),
  )
  return { tar, ended }
}

async function pack(options: PackOptions, tar: PassThrough, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted()
  const packing = await stream(argvOf(options))
  const release = killedBy(signal, packing)
  const said = textOf(packing.stderr)
  const [end, passed] = await Promise.all([
    packing.ended,
    pipeline(packing.stdout, tar, { end: false }).catch((error: unknown) => ({ error })),
  ]).finally(release)
  signal.throwIfAborted()
  if (end.exitCode === undefined) throw new Fault('pack a layer', { cause: `signal ${end.signal}` })
  if (end.exitCode !== 0) throw layerRefusal('packed', end.exitCode, (await said).trim())
  if (passed) throw passed.error
  options.confirm?.()
}

function argvOf({ program, upper, ids, newestMs, without, stubs, lowers, maxBytes, groups }: PackOptions) {
  const each = (option: string, values: readonly string[] = []) => values.flatMap((value) => [option, value])
  const limits = [maxBytes ?? layerLimits.maxBytes, layerLimits.maxEntries]
  return [
    ...inGroups(program, groups),
    ...['pack', upper],
    ...[ids.base, ids.count, ...limits].map(String),
    ...(newestMs === undefined ? [] : ['--newest', String(Math.max(0, Math.floor(newestMs / 1000)))]),
    ...each('--without', without),
    ...each('--stub', stubs),
    ...each('--lower', lowers),
  ] as const
}
