import type { TerminalSize } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { Emulator } from './emulator.js'
import { redraw } from './redraw.js'
import { Reducer, type Step } from './reduce.js'
import { alongLine, dump, endless, flood, mode, pieces, runs, size, style } from './screen.fixture.js'

const scrollback = () => 8
/** Small ones, so that short streams are cut often. */
const grain = { piece: 32, cut: 64, mark: 16 }

function apply(emulator: Emulator, steps: readonly Step[]): number {
  for (const step of steps) step.kind === 'draw' ? emulator.write(step.bytes) : emulator.resize(step.size)
  return steps.reduce((sum, step) => sum + (step.kind === 'draw' ? step.bytes.length : 0), 0)
}

/** How a stream comes and is drawn. */
const course = fc.record({
  /** Lengths of chunks. */
  chunks: fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 8 }),
  /** What is drawn after each of them. */
  costs: fc.array(fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 3000 })), { minLength: 1, maxLength: 5 }),
  /** After which chunk the size changes, and to what. */
  resizes: fc.array(fc.tuple(fc.integer({ min: 0, max: 20 }), size), { maxLength: 2 }),
})

interface Course {
  readonly chunks: readonly number[]
  readonly costs: readonly number[]
  readonly resizes: readonly (readonly [number, TerminalSize])[]
}

/** @returns both screens, and how many bytes of the stream were drawn */
function run(size: TerminalSize, stream: Buffer, { chunks, costs, resizes }: Course) {
  const whole = new Emulator(size, scrollback)
  const budgeted = new Emulator(size, scrollback)
  const reducer = new Reducer({ size, scrollback, offset: 0, grain })
  let bytes = 0
  let cuts = 0
  for (let at = 0, i = 0; at < stream.length; i++) {
    const chunk = stream.subarray(at, at + (chunks[i % chunks.length] ?? 1))
    at += chunk.length
    reducer.feed(chunk)
    whole.write(chunk)
    if (reducer.cut) cuts += 1
    for (const [after, to] of resizes) {
      // xterm.js resizes in the middle of a sequence, the reducer before it: no program can tell.
      if (after !== i || reducer.offset !== at) continue
      reducer.resize(to)
      whole.resize(to)
    }
    const cost = costs[i % costs.length] ?? 0
    if (cost > 0) bytes += apply(budgeted, reducer.take(cost))
  }
  bytes += apply(budgeted, reducer.take(Number.POSITIVE_INFINITY))
  expect(reducer.offset).toBe(stream.length)
  expect(reducer.taken).toBe(stream.length)
  expect(reducer.weight).toBe(0)
  return { whole, budgeted, bytes, cuts }
}

describe('what is drawn of a stream gives the screen of all of it', () => {
  test('with everything in it', () => {
    fc.assert(
      fc.property(size, pieces, course, (size, pieces, course) => {
        const { whole, budgeted } = run(size, Buffer.from(`${pieces.join('')}\x18`), course)
        expect(dump(budgeted)).toEqual(dump(whole))
      }),
      runs(150),
    )
  })

  test('where it is a flood, of which little is drawn', () => {
    const some = fc.oneof(
      { weight: 8, arbitrary: flood },
      { weight: 3, arbitrary: style },
      { weight: 2, arbitrary: alongLine },
      { weight: 1, arbitrary: mode },
    )
    let sent = 0
    let drawn = 0
    fc.assert(
      fc.property(size, fc.array(some, { minLength: 5, maxLength: 40 }), course, (size, pieces, course) => {
        const stream = Buffer.from(`${pieces.join('')}\x18`)
        const { whole, budgeted, bytes } = run(size, stream, { ...course, costs: [0] })
        expect(dump(budgeted)).toEqual(dump(whole))
        sent += stream.length
        drawn += bytes
      }),
      runs(150),
    )
    expect(drawn / sent).toBeLessThan(0.6)
  })

  test('where it is one without line ends', () => {
    const some = fc.oneof(
      { weight: 12, arbitrary: endless },
      { weight: 3, arbitrary: style },
      { weight: 1, arbitrary: flood },
      { weight: 1, arbitrary: fc.oneof(alongLine, mode, fc.constant('\x1bc'), fc.constant('\r')) },
    )
    let sent = 0
    let drawn = 0
    fc.assert(
      fc.property(size, fc.array(some, { minLength: 5, maxLength: 40 }), course, (size, pieces, course) => {
        const stream = Buffer.from(`${pieces.join('')}\x18`)
        const { whole, budgeted, bytes } = run(size, stream, { ...course, costs: [0] })
        expect(dump(budgeted)).toEqual(dump(whole))
        sent += stream.length
        drawn += bytes
      }),
      runs(150),
    )
    expect(drawn / sent).toBeLessThan(0.6)
  })

  test('and of a long one nearly nothing', () => {
    const size = { rows: 24, columns: 80 }
    const reducer = new Reducer({ size, scrollback: () => 1000, offset: 0 })
    const line = `\x1b[3${1}mdrwxr-xr-x\x1b[0m 2 root root ${'x'.repeat(40)} \x1b[1;34mname\x1b[0m\r\n`
    const chunk = Buffer.from(line.repeat(600))
    for (let i = 0; i < 200; i++) {
      reducer.feed(chunk)
      expect(reducer.weight).toBeLessThan(400_000)
    }
    const emulator = new Emulator(size)
    expect(apply(emulator, reducer.take(Number.POSITIVE_INFINITY))).toBeLessThan(400_000)
    const { lines, ybase } = dump(emulator).normal
    expect(ybase).toBe(1000)
    expect(lines.slice(0, -1).every((text) => text === lines[0])).toBe(true)
  })
})

test('of megabytes without a line end, what screen and scrollback hold is drawn', () => {
  for (const columns of [80, 64]) {
    const size = { rows: 24, columns }
    const reducer = new Reducer({ size, scrollback: () => 1000, offset: 0 })
    for (let i = 0; i < 200; i++) {
      reducer.feed(Buffer.alloc(65_536, 'x'))
      expect(reducer.weight).toBeLessThan(500_000)
    }
    const emulator = new Emulator(size)
    expect(apply(emulator, reducer.take(Number.POSITIVE_INFINITY))).toBeLessThan(500_000)
    const { lines, ybase } = dump(emulator).normal
    expect(ybase).toBe(1000)
    expect(lines.at(-1)).toBe(`W${'x'.repeat(((200 * 65_536 - 1) % columns) + 1)}`)
  }
})

describe('places to go on from', () => {
  test('a cut spares everything before it, on the screen of any place in its run', () => {
    fc.assert(
      fc.property(
        size,
        fc.array(fc.oneof(flood, endless, style, alongLine), { minLength: 5, maxLength: 40 }),
        (size, pieces) => {
          const stream = Buffer.from(pieces.join(''))
          const reducer = new Reducer({ size, scrollback, offset: 0, grain })
          const screens: { readonly at: number; readonly text: string }[] = []
          const kept = new Emulator(size, scrollback)
          for (let at = 0; at < stream.length; at += 50) {
            reducer.feed(stream.subarray(at, at + 50))
            // Some of it is drawn, and read.
            if (at % 400 === 0) {
              apply(kept, reducer.take(20))
              screens.push({ at: reducer.taken, text: redraw(kept, { scrollback: 8, limit: 1e6 }) })
            }
          }
          const { cut } = reducer
          const usable = screens.filter(({ at }) => cut && at >= cut.from && at <= cut.to)
          const whole = new Emulator(size, scrollback)
          whole.write(stream)
          for (const { text } of usable.slice(-2)) {
            const again = new Emulator(size, scrollback)
            for (const part of [Buffer.from(text), cut?.bytes, stream.subarray(cut?.to ?? 0)])
              again.write(part ?? Buffer.of())
            expect(dump(again)).toEqual(dump(whole))
          }
        },
      ),
      runs(100),
    )
  })

  test('in the middle of a string a terminal is told that it is in one', () => {
    for (const [begin, end] of [
      ['\x1b]0;some title', ' goes on\x07'],
      ['\x1bP0;1q', '#0;2;0\x1b\\'],
      ['\x1b_Gf=100;', 'AAAA\x1b\\'],
      ['\x9d0;c1', 'more\x9c'],
    ] as const) {
      const reducer = new Reducer({ size: { rows: 3, columns: 20 }, scrollback, offset: 0 })
      reducer.feed(Buffer.from(`a${begin}`))
      expect(reducer.offset).toBe(Buffer.byteLength(`a${begin}`))
      const emulator = new Emulator({ rows: 3, columns: 20 }, scrollback)
      for (const text of ['a', reducer.introducer, end, 'b']) emulator.write(Buffer.from(text))
      expect(dump(emulator).normal.lines[0]).toBe('ab')
    }
  })
})

test('titles are read, wherever they are cut, and nothing else is taken for one', () => {
  const titles: string[] = []
  const reducer = new Reducer({ size: { rows: 3, columns: 20 }, scrollback, offset: 0, onTitle: (t) => titles.push(t) })
  const stream = Buffer.from(
    '\x1b]0;first\x07\x1b]2;zwei – ü\x1b\\\x1b]1;icon\x07\x1b]8;;http://a\x07\x1b]0;cut\x18\x1b]0;a\x01b\x07' +
      `\x1b]2;${'long '.repeat(1000)}\x07`,
  )
  for (const byte of stream) reducer.feed(Buffer.of(byte))
  expect(titles).toEqual(['first', 'zwei – ü', 'ab', 'long '.repeat(1000).slice(0, 256)])
})

test('counts that would keep xterm.js busy for hours are cut to what a screen can hold', () => {
  const reducer = new Reducer({ size: { rows: 5, columns: 20 }, scrollback, offset: 0 })
  reducer.feed(Buffer.from('\x1b[2147483647S\x1b[999999999Lx\x1b[2147483647b\x1b[4294967296I'))
  const [step] = reducer.take(Number.POSITIVE_INFINITY)
  expect(step?.kind === 'draw' && String(Buffer.from(step.bytes))).toBe('\x1b[5S\x1b[5Lx\x1b[32767b\x1b[20I')
})

test('what does much counts as much, so that little is drawn at once', () => {
  const reducer = new Reducer({ size: { rows: 1000, columns: 1000 }, scrollback, offset: 0 })
  reducer.feed(Buffer.from('\x1b[2J'.repeat(100)))
  for (let i = 0; i < 100; i++) expect(reducer.take(16_384)).toHaveLength(1)
  expect(reducer.take(16_384)).toEqual([])
})
