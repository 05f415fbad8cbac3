// inflate.ts: what is packed, or not at all, as a stream of what is in it.
import type { Readable, Writable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createGunzip } from 'node:zlib'
import { errnoOf, Failure, Fault } from '@berth/contracts'
import { type StreamedProcess, sendSignal, stream } from '@berth/host'
import type { LayerCompression } from '@berth/oci'

const CHUNK = 256 * 1024
const SIGKILL = 9
/** How something is packed: as layers may be, or as archives may be besides. */
export type Packing = LayerCompression | 'bzip2' | 'xz'

/** By programs of Debian's packages: Node 20 has only gzip of its own. */
const programs = {
  // Windows of up to 128 MiB, as zstd's own programs take them unless told otherwise; what `xz -9` needs is 65 MiB.
  zstd: ['zstd', '--decompress', '--stdout', '--quiet', '--memory=134217728'],
  xz: ['xz', '--decompress', '--stdout', '--quiet', '--memlimit-decompress=134217728'],
  bzip2: ['bzip2', '--decompress', '--stdout', '--quiet'],
} as const

/**
 * Passes what is in `source` through `into` to its end.
 * @throws Failure image_invalid where it is not packed as it says, archive_invalid where the node cannot unpack that; what a stream of `into` fails with
 */
export async function inflate(
  source: Readable,
  packing: Packing,
  into: readonly Writable[],
  signal: AbortSignal,
): Promise<void> {
  switch (packing) {
    case 'none':
      return pipeline([source, ...into], { signal })
    case 'gzip':
      return pipeline([source, createGunzip({ chunkSize: CHUNK }), ...into], { signal }).catch((error: unknown) => {
        throw isOfZlib(error) ? notPacked('gzip') : error
      })
    case 'zstd':
    case 'xz':
    case 'bzip2':
      return throughProgram(packing, source, into, signal)
  }
}

const isOfZlib = (error: unknown) => /^Z_/.test(errnoOf(error) ?? '')
const notPacked = (how: string) => new Failure('image_invalid', `it is not packed as it says: ${how}`)

async function throughProgram(
  packing: keyof typeof programs,
  source: Readable,
  into: readonly Writable[],
  signal: AbortSignal,
): Promise<void> {
  const unpacking = await stream(programs[packing], { stdin: true }).catch((error: unknown) => {
    if (!(error instanceof Fault) || errnoOf(error.cause) !== 'ENOENT') throw error
    throw new Failure('archive_invalid', `it is packed by ${packing}, and the node has no program for that`)
  })
  const release = killedBy(signal, unpacking)
  const { stdin, stderr } = unpacking
  if (!stdin) throw new Fault(`unpack ${packing}`, { cause: 'it has no input' })
  const said = textOf(stderr)
  const [fed, got, end] = await Promise.allSettled([
    pipeline(source, stdin, { signal }),
    pipeline([unpacking.stdout, ...into], { signal }).catch((error: unknown) => {
      sendSignal(unpacking.pid, SIGKILL, true)
      throw error
    }),
    unpacking.ended,
  ]).finally(release)
  signal.throwIfAborted()
  if (got.status === 'rejected') throw got.reason
  if (end.status === 'rejected' || end.value.exitCode !== 0) throw notPacked((await said).trim().slice(0, 500))
  if (fed.status === 'rejected') throw fed.reason
}

/** An aborted signal kills the process. @returns what ends that */
export function killedBy(signal: AbortSignal, process: StreamedProcess): () => void {
  let over = false
  void process.ended.then(() => {
    over = true
  })
  const kill = () => {
    if (!over) sendSignal(process.pid, SIGKILL, true)
  }
  signal.addEventListener('abort', kill, { once: true })
  if (signal.aborted) kill()
  return () => signal.removeEventListener('abort', kill)
}

/** The first 4 KiB. */
export async function textOf(source: NodeJS.ReadableStream | undefined): Promise<string> {
  let text = ''
  if (source) for await (const chunk of source) if (text.length < 4096) text += chunk.toString()
  return text.slice(0, 4096)
}
