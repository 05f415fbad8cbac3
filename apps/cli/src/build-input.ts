// build-input.ts: `./berth build -`: what comes by standard input is the context, a tar, packed or not, or a Dockerfile that
// needs none, as with docker.
import { Readable } from 'node:stream'
import { Fault, invariant, KiB } from '@berth/contracts'
import { pack } from 'tar-stream'
import type { FoundDockerfile } from './build-context.js'

/** What is sent. */
export interface BuildInput {
  readonly dockerfile: FoundDockerfile
  readonly bytes: Readable
}

/** A tar has its mark there (POSIX ustar); what packs one begins with its own. */
const [MARK, MARK_AT] = [Buffer.from('ustar'), 257]
const packed = [[0x1f, 0x8b], Buffer.from('BZh'), [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00], [0x28, 0xb5, 0x2f, 0xfd]].map(
  (of) => Buffer.from(of),
)

/** Most bytes of a Dockerfile: what has more goes into no header (build.ts). */
const MAX_TEXT = 56 * KiB

/**
 * @param file as `--file` names it: a path in the tar
 * @throws Fault where `file` and the input are both a Dockerfile, or the input is neither that nor a tar
 */
export async function readInput(input: AsyncIterable<unknown>, file: string | undefined): Promise<BuildInput> {
  const chunks = bytesOf(input)
  const head = await firstOf(chunks, MARK_AT + MARK.length)
  if (isArchive(head) && file !== '-') {
    const path = file ?? 'Dockerfile'
    const bytes = Readable.from(followedBy(head, chunks), { objectMode: false })
    return { dockerfile: { path, target: path, text: null, ignoreFile: null }, bytes }
  }
  const text = file === undefined ? Buffer.concat([head, await firstOf(chunks, MAX_TEXT)]) : head
  // What is left of it is not waited for.
  await chunks.return()
  if (file !== undefined) throw new Fault('read the context', { cause: 'both it and --file are a Dockerfile' })
  if (text.length > MAX_TEXT)
    throw new Fault('read the context', { cause: 'it is no tar, and too long for a Dockerfile' })
  const nothing = pack()
  nothing.finalize()
  return {
    dockerfile: { path: null, target: null, text: text.toString(), ignoreFile: null },
    bytes: Readable.from(nothing, { objectMode: false }),
  }
}

const isArchive = (head: Buffer): boolean =>
  packed.some((mark) => head.subarray(0, mark.length).equals(mark)) ||
  head.subarray(MARK_AT, MARK_AT + MARK.length).equals(MARK)

async function* bytesOf(input: AsyncIterable<unknown>): AsyncGenerator<Buffer, void> {
  for await (const chunk of input) {
    invariant(Buffer.isBuffer(chunk), 'standard input is bytes')
    yield chunk
  }
}

async function firstOf(chunks: AsyncGenerator<Buffer, void>, length: number): Promise<Buffer> {
  let head = Buffer.alloc(0)
  while (head.length < length) {
    const { done, value } = await chunks.next()
    if (done) break
    head = Buffer.concat([head, value])
  }
  return head
}

async function* followedBy(head: Buffer, chunks: AsyncGenerator<Buffer, void>): AsyncGenerator<Buffer> {
  yield head
  yield* chunks
}
