// files-handler.ts: what the API may ask about files. Paths, queries and bodies are those of the public routes; the API
// has checked them, and they are checked again here, where they have an effect.

import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createGunzip } from 'node:zlib'
import {
  downloadTree,
  errnoOf,
  Failure,
  type FileEvent,
  type FileStat,
  InvalidRequest,
  listFiles,
  makeDirectory,
  type Route,
  readFile,
  removeFile,
  renameFile,
  statFile,
  uploadTree,
  watchFiles,
  writeFile,
} from '@berth/contracts'
import type { NodeCall, SandboxHandler } from '@berth/node-rpc'
import type { z } from 'zod'
import type { FileProcess } from './file-process.js'
import type { Files } from './files.js'
import { type FileOperation, nonsense, rangeOf } from './files.plan.js'
import { eventOf, type RawRecord, RecordReader, statOf } from './records.js'

type Answer = (call: NodeCall, files: Files) => Promise<void>

export function filesHandler(files: Files): SandboxHandler {
  return {
    async request(call) {
      const answer = answers.get(`${call.method} ${call.rest.join('/')}`)
      if (!answer) throw new Failure('route_not_found', 'no such request about files')
      await answer(call, files)
    },
  }
}

const asked = (route: Route) => `${route.method} ${route.path.split('/').slice(4).join('/')}` // '', v1, sandboxes, :sandbox

const answers: ReadonlyMap<string, Answer> = new Map([
  [asked(statFile), stat],
  [asked(listFiles), list],
  [asked(readFile), read],
  [asked(writeFile), write],
  [asked(makeDirectory), mkdir],
  [asked(renameFile), rename],
  [asked(removeFile), remove],
  [asked(watchFiles), watch],
  [asked(downloadTree), pack],
  [asked(uploadTree), unpack],
])

async function stat(call: NodeCall, files: Files): Promise<void> {
  const query = queryOf(call, statFile.query)
  call.answer(200, await statAfter(call, files, { kind: 'stat', ...query }, query.path))
}

async function mkdir(call: NodeCall, files: Files): Promise<void> {
  const { path, user, mode, parents } = await call.json(makeDirectory.body)
  call.answer(201, await statAfter(call, files, { kind: 'mkdir', path, user, mode, parents }, path))
}

async function rename(call: NodeCall, files: Files): Promise<void> {
  const { from, to, user, replace } = await call.json(renameFile.body)
  call.answer(200, await statAfter(call, files, { kind: 'rename', path: from, to, user, replace }, to))
}

async function remove(call: NodeCall, files: Files): Promise<void> {
  const { path, user, recursive } = queryOf(call, removeFile.query)
  await files.run(call.sandboxId, { kind: 'remove', path, user, recursive }, call.signal, rest)
  call.answer(204)
}

async function write(call: NodeCall, files: Files): Promise<void> {
  const { path, user, mode, owner, parents, ifExists } = queryOf(call, writeFile.query)
  const operation: FileOperation = { kind: 'write', path, user, mode, owner, parents, ifExists }
  const written = await files.run(call.sandboxId, operation, call.signal, async (process) => {
    await process.feed(call.body)
    return oneStat(process, path)
  })
  call.answer(200, written)
}

async function unpack(call: NodeCall, files: Files): Promise<void> {
  const { path, user, owner, group } = queryOf(call, uploadTree.query)
  const operation: FileOperation = { kind: 'unpack', path, user, owner, group }
  const done = await files.run(call.sandboxId, operation, call.signal, async (process) => {
    await inflated(call.body, (source) => process.feed(source))
    const [, entries, bytes] = /^unpacked (\d{1,15}) (\d{1,15})$/.exec(await process.head()) ?? []
    await rest(process)
    if (entries === undefined) throw nonsense()
    return { entries: Number(entries), bytes: Number(bytes) }
  })
  call.answer(200, done)
}

async function list(call: NodeCall, files: Files): Promise<void> {
  const { path, user } = queryOf(call, listFiles.query)
  await files.run(call.sandboxId, { kind: 'list', path, user }, call.signal, (process) =>
    lines(call, process, (record): FileStat => statOf(record, path)),
  )
}

async function watch(call: NodeCall, files: Files): Promise<void> {
  const { path, user, recursive } = queryOf(call, watchFiles.query)
  await files.run(call.sandboxId, { kind: 'watch', path, user, recursive }, call.signal, (process) =>
    lines(call, process, (record): FileEvent => eventOf(record, path)),
  )
}

async function read(call: NodeCall, files: Files): Promise<void> {
  const { path, user } = queryOf(call, readFile.query)
  const range = rangeOf(call.request.headers.range)
  const operation: FileOperation = { kind: 'read', path, user, range: range ?? {} }
  await files.run(call.sandboxId, operation, call.signal, async (process) => {
    const [, size, first, count] = /^read (-1|\d{1,15}) (\d{1,15}) (-1|\d{1,15})$/.exec(await process.head()) ?? []
    if (size === undefined || first === undefined || count === undefined) throw nonsense()
    if (size === '-1') return call.bytes(process.output)
    const partial = { 'content-range': `bytes ${first}-${Number(first) + Number(count) - 1}/${size}` }
    await call.bytes(Readable.from(exactly(process.output, Number(count)), { objectMode: false }), {
      status: range ? 206 : 200,
      headers: { 'content-length': Number(count), 'accept-ranges': 'bytes', ...(range ? partial : {}) },
    })
  })
}

/**
 * As many bytes as were announced. More would be read as the beginning of another answer on the same connection, which
 * may be another tenant's.
 */
async function* exactly(output: Readable, count: number): AsyncGenerator<Buffer> {
  let left = count
  for await (const chunk of output) {
    left -= chunk.length
    if (left < 0) throw nonsense()
    yield chunk
  }
  if (left > 0) throw nonsense()
}

async function pack(call: NodeCall, files: Files): Promise<void> {
  const { path, user } = queryOf(call, downloadTree.query)
  await files.run(call.sandboxId, { kind: 'pack', path, user }, call.signal, async (process) => {
    await process.begun()
    await call.bytes(process.output, { headers: { 'content-type': 'application/x-tar' } })
  })
}

const statAfter = (call: NodeCall, files: Files, operation: FileOperation, path: string): Promise<FileStat> =>
  files.run(call.sandboxId, operation, call.signal, (process) => oneStat(process, path))

/** The one record that an operation answers when it has succeeded. */
async function oneStat(process: FileProcess, path: string): Promise<FileStat> {
  const reader = new RecordReader()
  const records: RawRecord[] = []
  for await (const chunk of process.output) {
    records.push(...reader.push(chunk))
    if (records.length > 1) throw nonsense()
  }
  reader.end()
  const [record] = records
  if (!record) throw nonsense()
  return statOf(record, path)
}

/** Nothing more is expected of it. @throws Failure of the operation */
async function rest(process: FileProcess): Promise<void> {
  for await (const _ of process.output) throw nonsense()
}

/** Answers once the first record is there, or the end: until then it may still fail as a whole. */
async function lines(call: NodeCall, process: FileProcess, parse: (record: RawRecord) => unknown): Promise<void> {
  await process.begun()
  await call.lines(values(process.output, parse))
}

async function* values(output: Readable, parse: (record: RawRecord) => unknown): AsyncGenerator<unknown> {
  const reader = new RecordReader()
  for await (const chunk of output) for (const record of reader.push(chunk)) yield parse(record)
  reader.end()
}

/** What comes before a stream is known to be gzip (RFC 1952, 2.3.1). */
const GZIP = Buffer.from([0x1f, 0x8b])

/** Hands on a body, inflated where it is gzip. @throws Failure archive_invalid where that is damaged */
async function inflated(body: Readable, feed: (source: AsyncIterable<Buffer>) => Promise<void>): Promise<void> {
  const rest: AsyncIterator<Buffer> = body[Symbol.asyncIterator]()
  const begin = await beginning(rest, GZIP.length)
  const source = continued(begin, rest)
  if (!begin.subarray(0, GZIP.length).equals(GZIP)) return feed(source)
  const gunzip = createGunzip({ chunkSize: 64 * 1024 })
  // What it fails with destroys `gunzip`, so that `feed` hears of it; where that has enough, nobody has to.
  pipeline(source, gunzip).catch(() => undefined)
  await feed(gunzip).catch((error: unknown) => {
    if (/^Z_/.test(errnoOf(error) ?? '')) throw new Failure('archive_invalid', 'the gzip data is damaged')
    throw error
  })
}

/** At least `wanted` bytes, unless there are fewer. */
async function beginning(source: AsyncIterator<Buffer>, wanted: number): Promise<Buffer> {
  let bytes: Buffer = Buffer.alloc(0)
  while (bytes.length < wanted) {
    const { done, value } = await source.next()
    if (done) break
    bytes = Buffer.concat([bytes, value])
  }
  return bytes
}

async function* continued(begin: Buffer, rest: AsyncIterator<Buffer>): AsyncGenerator<Buffer> {
  try {
    if (begin.length > 0) yield begin
    for (let next = await rest.next(); !next.done; next = await rest.next()) yield next.value
  } finally {
    await rest.return?.()
  }
}

const queryOf = <S extends z.ZodType>(call: NodeCall, schema: S): z.output<S> => {
  const result = schema.safeParse(Object.fromEntries(call.query))
  if (result.success) return result.data
  throw new InvalidRequest(
    result.error.issues.map(({ path, message }) => ({ field: ['query', ...path].join('.'), message })),
  )
}
