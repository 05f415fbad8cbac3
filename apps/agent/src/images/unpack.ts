// unpack.ts: a layer's blob → the tar inside, checked against its digest, and by berth-layer (libs/init) → a directory
// that overlayfs takes as a lower one.
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { Transform, Writable } from 'node:stream'
import { Failure, Fault } from '@berth/contracts'
import { stream } from '@berth/host'
import type { LayerCompression } from '@berth/oci'
import { digestOf } from './content.js'
import { inflate, killedBy, textOf } from './inflate.js'
import { noRoom } from './room.js'

/** What a layer may become; a tar bomb ends here. */
export interface LayerLimits {
  /** Of files, without the holes of sparse ones. */
  readonly maxBytes: number
  /** Of files as they are read, holes too: they are kept as holes, and take nothing. */
  readonly maxBytesWithHoles: number
  readonly maxEntries: number
}

/** The layer is more than its limits; whose they are is known to who set them. */
export class LayerTooLarge extends Failure {
  constructor(why: string) {
    super('image_invalid', why)
  }
}

export interface LayerSource {
  readonly blob: string
  readonly compression: LayerCompression
}

const CHUNK = 256 * 1024
/** Exit codes of berth-layer. */
const exits = { refused: 3, noRoom: 4, tooLarge: 5 } as const

/**
 * The digest of the tar in a layer's blob, which nothing is made of.
 * @throws Failure image_invalid when it cannot be unpacked, or is larger than its limits
 */
export const diffIdOf = (source: LayerSource, limits: LayerLimits, signal: AbortSignal): Promise<string> =>
  digestThrough(source, limits, signal, new Writable({ write: (_chunk, _encoding, done) => done() }))

/**
 * Unpacks a layer into `target`, an empty directory that nobody else uses. All of it is on disk when this resolves.
 * @param program berth-layer
 * @param synced false: it need not outlive a crash of the machine
 * @returns digest of the tar, and bytes of its files
 * @throws Failure image_invalid for what is not allowed in a layer, LayerTooLarge, no_capacity when the disk is full
 */
export async function unpackLayer(
  program: string,
  source: LayerSource,
  target: string,
  limits: LayerLimits,
  signal: AbortSignal,
  synced = true,
): Promise<{ readonly diffId: string; readonly bytes: number }> {
  const feed = (into: Writable) => digestThrough(source, limits, signal, into)
  const { fed, bytes } = await unpackTar(program, target, limits, signal, synced, feed)
  return { diffId: fed, bytes }
}

/**
 * As `unpackLayer`, of a tar that `feed` writes.
 * @param feed what it resolves to is returned; a Failure of it is what went wrong, all else that it throws counts less
 *   than what berth-layer says
 * @param groups directories of control groups that the work is done in
 */
export async function unpackTar<T>(
  program: string,
  target: string,
  limits: LayerLimits,
  signal: AbortSignal,
  synced: boolean,
  feed: (into: Writable) => Promise<T>,
  groups?: readonly string[],
): Promise<{ readonly fed: T; readonly bytes: number }> {
  signal.throwIfAborted()
  const argv = [
    ...inGroups(program, groups),
    target,
    String(limits.maxBytes),
    String(limits.maxBytesWithHoles),
    String(limits.maxEntries),
    ...(synced ? [] : ['unsynced']),
  ] as const
  const unpacking = await stream(argv, { stdin: true })
  const release = killedBy(signal, unpacking)
  const said = Promise.all([textOf(unpacking.stdout), textOf(unpacking.stderr)])
  if (!unpacking.stdin) throw new Fault('unpack a layer', { cause: 'berth-layer has no input' })
  const [read, end, [out, err]] = await Promise.all([
    // Of the two that fail together it is berth-layer that knows why.
    feed(unpacking.stdin).then(
      (fed) => ({ fed }),
      (error: unknown) => {
        unpacking.stdin?.destroy()
        return { error }
      },
    ),
    unpacking.ended,
    said,
  ]).finally(release)
  signal.throwIfAborted()
  // berth-layer then only knows that it was cut.
  if ('error' in read && read.error instanceof Failure) throw read.error
  if (end.exitCode !== 0 && end.exitCode !== undefined && err !== '')
    throw layerRefusal('unpacked', end.exitCode, err.trim())
  if ('error' in read) throw read.error
  const [, bytes] = /^\d+ (\d+)\n$/.exec(out) ?? []
  if (end.exitCode !== 0 || bytes === undefined) throw new Fault('unpack a layer', { cause: `${err} ${end.signal}` })
  return { fed: read.fed, bytes: Number(bytes) }
}

/** berth-layer, to be followed by its arguments. */
export const inGroups = (program: string, groups: readonly string[] = []): readonly [string, ...string[]] => [
  program,
  ...groups.flatMap((directory) => ['--group', directory]),
]

/** What berth-layer's exit code means; `why` is what it said. */
export function layerRefusal(done: 'packed' | 'unpacked', exitCode: number, why: string): Error {
  if (exitCode === exits.refused) return new Failure('image_invalid', `a layer cannot be ${done}: ${why}`)
  if (exitCode === exits.tooLarge) return new LayerTooLarge(`a layer cannot be ${done}: ${why}`)
  if (exitCode === exits.noRoom) return noRoom()
  return new Fault(`a layer is ${done}`, { cause: why })
}

/** Content and headers of so many entries, long names included. */
export const tarAtMost = ({ maxBytes, maxEntries }: LayerLimits): number => maxBytes + maxEntries * 4096

async function digestThrough(
  { blob, compression }: LayerSource,
  limits: LayerLimits,
  signal: AbortSignal,
  into: Writable,
): Promise<string> {
  const hash = createHash('sha256')
  let bytes = 0
  const most = tarAtMost(limits)
  const meter = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      bytes += chunk.length
      hash.update(chunk)
      if (bytes > most) done(new LayerTooLarge('a layer cannot be unpacked: it is too large'))
      else done(null, chunk)
    },
  })
  await inflate(createReadStream(blob, { highWaterMark: CHUNK }), compression, [meter, into], signal)
  return digestOf(hash)
}
