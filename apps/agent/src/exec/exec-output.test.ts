import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ExecFrame, OutputStream } from '@berth/contracts'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { Changes } from '../logs/changes.js'
import { Spool } from '../logs/spool.js'
import { type ExecPiece, type ReadOptions, readPieces, textFrames } from './exec-output.js'

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-output-'))
})
afterEach(() => rmSync(directory, { recursive: true }))

function streams(keepBytes = 1000) {
  const changes = new Changes()
  const spool = (name: string) => Spool.begin({ directory, name, keepBytes, segmentBytes: 16, changes })
  const made = { stdout: spool('stdout'), stderr: spool('stderr'), changes, over: false }
  const write = (stream: OutputStream, text: string) =>
    made[stream].append(made[stream].total, Buffer.from(text), () => undefined)
  const end = () => {
    made.over = true
    changes.tell()
  }
  return { made, write, end }
}
const options = (more: Partial<ReadOptions> = {}): ReadOptions => ({
  ...{ stdout: 0, stderr: 0, follow: true, signal: new AbortController().signal },
  ...more,
})
async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = []
  for await (const item of items) list.push(item)
  return list
}
const textOf = (pieces: readonly ExecPiece[], stream: OutputStream) =>
  Buffer.concat(
    pieces.map((piece) => (piece.kind === 'bytes' && piece.stream === stream ? piece.bytes : Buffer.alloc(0))),
  ).toString()

describe('reading both streams', () => {
  test('goes on until the exec has ended, each stream in its order', async () => {
    const { made, write, end } = streams()
    write('stdout', 'one ')
    const reading = all(readPieces(made, options()))
    write('stderr', 'error')
    await new Promise((resolve) => setImmediate(resolve))
    write('stdout', 'two')
    end()
    const pieces = await reading
    expect([textOf(pieces, 'stdout'), textOf(pieces, 'stderr')]).toEqual(['one two', 'error'])
  })

  test('ends where the streams were at the end, though something writes on', async () => {
    const { made, write, end } = streams()
    write('stdout', 'before')
    end()
    const pieces: ExecPiece[] = []
    for await (const piece of readPieces(made, options())) {
      pieces.push(piece)
      write('stdout', 'after')
    }
    expect(textOf(pieces, 'stdout')).toBe('before')
  })

  test('without following it ends where the streams are', async () => {
    const { made, write } = streams()
    write('stdout', 'so far')
    expect(textOf(await all(readPieces(made, options({ follow: false, stdout: 3 }))), 'stdout')).toBe('far')
  })

  test('one stream only, and none beyond its end', async () => {
    const { made, write, end } = streams()
    write('stdout', 'out')
    write('stderr', 'err')
    end()
    expect(await all(readPieces(made, options({ only: 'stderr' })))).toHaveLength(1)
    expect(await all(readPieces(made, options({ stdout: 99, stderr: 3 })))).toEqual([])
  })

  test('ends when its reader goes, also while it waits', async () => {
    const { made } = streams()
    const gone = new AbortController()
    const reading = all(readPieces(made, options({ signal: gone.signal })))
    await new Promise((resolve) => setImmediate(resolve))
    gone.abort()
    expect(await reading).toEqual([])
  })

  test('a reader that is behind is told of the gap', async () => {
    const { made, write, end } = streams(20)
    write('stdout', 'x'.repeat(100))
    end()
    expect(await all(readPieces(made, options({ stdout: 10 })))).toEqual([
      { stream: 'stdout', kind: 'gap', offset: 80 },
      { stream: 'stdout', kind: 'bytes', offset: 80, bytes: Buffer.from('x'.repeat(16)) },
      { stream: 'stdout', kind: 'bytes', offset: 96, bytes: Buffer.from('x'.repeat(4)) },
    ])
  })
})

describe('frames', () => {
  async function* pieces(...items: readonly (readonly [OutputStream, number, Buffer | 'gap'])[]) {
    for (const [stream, offset, what] of items) {
      const piece =
        what === 'gap' ? ({ kind: 'gap', offset } as const) : ({ kind: 'bytes', offset, bytes: what } as const)
      yield { stream, ...piece }
    }
  }
  const euro = Buffer.from('€')

  test('a character that is cut waits for its rest, and one stream does not wait for the other', async () => {
    const cut = pieces(
      ['stdout', 0, Buffer.concat([Buffer.from('a'), euro.subarray(0, 1)])],
      ['stderr', 0, Buffer.from('e')],
      ['stdout', 2, euro.subarray(1, 2)],
      ['stdout', 3, Buffer.concat([euro.subarray(2), Buffer.from('b')])],
    )
    expect(await all(textFrames(cut))).toEqual([
      { type: 'stdout', offset: 0, data: 'a', encoding: 'utf8' },
      { type: 'stderr', offset: 0, data: 'e', encoding: 'utf8' },
      { type: 'stdout', offset: 1, data: '€b', encoding: 'utf8' },
    ])
  })

  test('one that is never completed is told as bytes, before a gap and at the end', async () => {
    const torn = pieces(['stdout', 0, euro.subarray(0, 2)], ['stdout', 9, 'gap'], ['stdout', 9, euro.subarray(0, 1)])
    expect(await all(textFrames(torn))).toEqual([
      { type: 'stdout', offset: 0, data: euro.subarray(0, 2).toString('base64'), encoding: 'base64' },
      { type: 'gap', stream: 'stdout', offset: 9 },
      { type: 'stdout', offset: 9, data: euro.subarray(0, 1).toString('base64'), encoding: 'base64' },
    ])
  })

  const put = (frames: readonly ExecFrame[]) => {
    let at = 0
    const parts: Buffer[] = []
    for (const frame of frames) {
      if (frame.type !== 'stdout') throw new Error('a frame of something else')
      expect(frame.offset).toBe(at)
      parts.push(Buffer.from(frame.data, frame.encoding))
      at += parts.at(-1)?.length ?? 0
    }
    return Buffer.concat(parts)
  }
  const cuts = (bytes: Buffer, sizes: readonly number[]) => {
    const items: (readonly [OutputStream, number, Buffer])[] = []
    for (let at = 0, i = 0; at < bytes.length; i++) {
      const size = sizes[i % sizes.length] ?? 1
      items.push(['stdout', at, bytes.subarray(at, at + size)])
      at += size
    }
    return pieces(...items)
  }
  const sizes = fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 5 })

  test('any text, cut anywhere, comes as text', async () => {
    await fc.assert(
      fc.asyncProperty(fc.string({ unit: 'binary', maxLength: 40 }), sizes, async (text, at) => {
        const frames = await all(textFrames(cuts(Buffer.from(text), at)))
        expect(put(frames).toString()).toBe(text)
        expect(frames.every((frame) => frame.type !== 'gap' && frame.encoding === 'utf8')).toBe(true)
      }),
    )
  })

  test('any bytes, cut anywhere, come as they are', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 60 }), sizes, async (bytes, at) => {
        expect(put(await all(textFrames(cuts(Buffer.from(bytes), at))))).toEqual(Buffer.from(bytes))
      }),
    )
  })
})
