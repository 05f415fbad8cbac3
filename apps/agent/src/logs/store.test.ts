import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { OutputFile, readHead, readOutput } from './store.js'

let directory: string
let path: string
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'berth-logs-'))
  path = join(directory, 'stdout')
})
afterEach(() => rm(directory, { recursive: true }))

const ignoreStored = () => undefined
const noAbort = () => new AbortController().signal

describe('keeping', () => {
  test('bytes come into the file in order and are told as stored', async () => {
    const output = await OutputFile.open(path, 100)
    const stored: number[] = []
    output.append(0, Buffer.from('hello '), (offset) => stored.push(offset))
    output.append(6, Buffer.from('world'), (offset) => stored.push(offset))
    await output.end()
    expect(await readFile(path, 'utf8')).toBe('hello world')
    expect(stored.at(-1)).toBe(11)
    expect([output.total, output.kept, output.truncated]).toEqual([11, 11, false])
  })

  test('what is over the limit is counted, acknowledged and dropped', async () => {
    const output = await OutputFile.open(path, 4)
    const stored: number[] = []
    output.append(0, Buffer.from('abcdef'), (offset) => stored.push(offset))
    await output.settled()
    output.append(6, Buffer.from('gh'), (offset) => stored.push(offset))
    await output.end()
    expect(await readFile(path, 'utf8')).toBe('abcd')
    expect(stored).toEqual([6, 8])
    expect([output.total, output.kept, output.truncated]).toEqual([8, 4, true])
  })

  test('a limit of nothing keeps nothing', async () => {
    const output = await OutputFile.open(path, 0)
    output.append(0, Buffer.from('a'), ignoreStored)
    await output.end()
    expect([output.total, output.kept, output.truncated]).toEqual([1, 0, true])
  })

  test('after a crash it goes on at the end of the file, however often bytes are repeated and chunks cut', async () => {
    const whole = Buffer.from(Array.from({ length: 300 }, (_, i) => i % 251))
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 1, max: 60 }), { minLength: 1, maxLength: 12 }),
        fc.integer({ min: 0, max: 300 }),
        fc.integer({ min: 0, max: 300 }),
        async (sizes, crashAt, limit) => {
          await rm(path, { force: true })
          const first = await OutputFile.open(path, limit)
          let acknowledged = 0
          first.append(0, whole.subarray(0, crashAt), (offset) => {
            acknowledged = offset > 20 ? offset - 20 : 0 // the last acknowledgement did not arrive
          })
          await first.end()

          const second = await OutputFile.open(path, limit)
          second.resume(acknowledged)
          for (let at = acknowledged, i = 0; at < whole.length; i++) {
            const size = sizes[i % sizes.length] ?? 1
            second.append(at, whole.subarray(at, at + size), ignoreStored)
            at += size
          }
          await second.end()
          expect(await readFile(path)).toEqual(whole.subarray(0, limit))
          expect(second.total).toBe(whole.length)
          expect(second.truncated).toBe(limit < whole.length)
        },
      ),
      { numRuns: 60 },
    )
  })
})

describe('reading', () => {
  test('from an offset to the present end', async () => {
    await writeFile(path, 'hello world')
    const ask = (since: number) => ({
      path: () => path,
      live: Promise.resolve(undefined),
      since,
      follow: false,
      signal: noAbort(),
    })
    expect(String(await buffer(readOutput(ask(6))))).toBe('world')
    expect(String(await buffer(readOutput(ask(50))))).toBe('')
  })

  test('a stream that was never opened is empty', async () => {
    const reader = readOutput({
      path: () => path,
      live: Promise.resolve(undefined),
      since: 0,
      follow: true,
      signal: noAbort(),
    })
    expect(await buffer(reader)).toHaveLength(0)
  })

  test('a follower gets every byte exactly once, whenever it began, and ends with the stream', async () => {
    const output = await OutputFile.open(path, 1e6)
    const live = Promise.resolve(output)
    output.append(0, Buffer.from('one '), ignoreStored)
    await output.settled()
    const early = buffer(readOutput({ path: () => path, live, since: 0, follow: true, signal: noAbort() }))
    for (let i = 0; i < 200; i++) {
      output.append(output.total, Buffer.alloc(1000, i), ignoreStored)
      await output.settled()
    }
    const late = buffer(readOutput({ path: () => path, live, since: 4, follow: true, signal: noAbort() }))
    await output.end()
    const whole = await readFile(path)
    expect(whole).toHaveLength(200_004)
    expect((await early).equals(whole)).toBe(true)
    expect((await late).equals(whole.subarray(4))).toBe(true)
  })

  test('an aborted follower ends although the stream goes on', async () => {
    const output = await OutputFile.open(path, 100)
    const abort = new AbortController()
    const reader = readOutput({
      path: () => path,
      live: Promise.resolve(output),
      since: 0,
      follow: true,
      signal: abort.signal,
    })
    const read = buffer(reader)
    output.append(0, Buffer.from('x'), ignoreStored)
    await output.settled()
    abort.abort()
    await read
    expect(output.ended).toBe(false)
    await output.end()
  })

  test('a link in place of the file is not followed', async () => {
    const { symlink } = await import('node:fs/promises')
    await symlink('/etc/passwd', path)
    await expect(OutputFile.open(path, 10)).rejects.toThrow('ELOOP')
    await expect(readHead(path, 10)).rejects.toThrow('ELOOP')
  })
})
