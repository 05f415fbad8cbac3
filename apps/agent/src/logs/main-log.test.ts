import {
  appendFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { afterAll, afterEach, describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import type { StreamName } from '../runtime/init-wire.js'
import { type LogQuery, readLog } from './log-reader.js'
import { decodeRecord, encodeRecord, type LogRecord, MAX_BYTES, unfinishedCharacter } from './log-record.js'
import { MainLog, type MainLogOptions } from './main-log.js'

const MiB = 1024 ** 2
const root = mkdtempSync(join(tmpdir(), 'berth-log-'))
afterAll(() => rmSync(root, { recursive: true }))
let serial = 0
const newDirectory = () => join(root, `${serial++}`)
const warned: object[] = []
const log = { warn: (fields: object) => void warned.push(fields) }
const both = ['stdout', 'stderr'] as const
const never = new AbortController().signal

const opened: MainLog[] = []
afterEach(async () => {
  for (const one of opened.splice(0)) await one.close()
})
async function openLog(directory: string, options: Partial<MainLogOptions> = {}): Promise<MainLog> {
  const one = await MainLog.open({ directory, keepBytes: 64 * MiB, log, ...options })
  opened.push(one)
  return one
}

interface Shown {
  readonly stream: StreamName
  readonly offset: number
  readonly text: string
}
async function read(from: MainLog, query: Partial<LogQuery> = {}): Promise<Shown[]> {
  const shown: Shown[] = []
  for await (const { stream, offset, bytes } of readLog(from, { streams: both, follow: false, ...query }, never))
    shown.push({ stream, offset, text: bytes.toString('latin1') })
  return shown
}
const textOf = (shown: readonly Shown[], stream?: StreamName) =>
  shown
    .filter((part) => stream === undefined || part.stream === stream)
    .map(({ text }) => text)
    .join('')

/** Writes each part by itself, so that each is a record of its own. */
async function write(to: MainLog, parts: readonly (readonly [StreamName, string])[], run = 1): Promise<void> {
  const sinks = to.begin({ run, restart: 0 })
  const offsets = { stdout: 0, stderr: 0 }
  for (const [stream, text] of parts) {
    const bytes = Buffer.from(text)
    sinks[stream].append(offsets[stream], bytes, () => undefined)
    offsets[stream] += bytes.length
    await sinks[stream].settled()
  }
}

describe('a record', () => {
  const record: fc.Arbitrary<LogRecord> = fc.record({
    stream: fc.constantFrom(...both),
    at: fc.integer({ min: 0, max: 2 ** 50 }),
    offset: fc.integer({ min: 0, max: 2 ** 50 }),
    run: fc.integer({ min: 0, max: 2 ** 31 }),
    restart: fc.integer({ min: 0, max: 2 ** 31 }),
    totals: fc.record({ stdout: fc.maxSafeNat(), stderr: fc.maxSafeNat() }),
    bytes: fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
  })

  test('is read as it was written, wherever it begins', () => {
    fc.assert(
      fc.property(record, fc.nat(50), (one, before) => {
        const buffer = Buffer.concat([Buffer.alloc(before, 7), encodeRecord(one), Buffer.alloc(3, 7)])
        expect(decodeRecord(buffer, before)).toEqual(one)
      }),
    )
  })

  test('is none when any bit of it differs, and short when cut', () => {
    fc.assert(
      fc.property(record, fc.nat(), fc.nat(7), (one, where, bit) => {
        const bytes = encodeRecord(one)
        const at = where % bytes.length
        const cut = decodeRecord(bytes.subarray(0, at), 0)
        expect(typeof cut === 'string').toBe(true)
        bytes[at] = (bytes[at] ?? 0) ^ (1 << bit)
        expect(typeof decodeRecord(bytes, 0)).toBe('string')
      }),
    )
  })
})

test('an unfinished character is what is missing to the next one', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 20 }), fc.nat(), (text, at) => {
      const bytes = Buffer.from(text)
      const cut = bytes.length === 0 ? 0 : at % (bytes.length + 1)
      const part = bytes.subarray(0, cut)
      const whole = part.subarray(0, part.length - unfinishedCharacter(part))
      expect(text.startsWith(whole.toString())).toBe(true)
      expect(part.length - whole.length).toBeLessThan(4)
    }),
  )
})

// The law of the log: whatever is written in whatever pieces, wherever files are changed and the agent is killed, a
// reader that was there all along has every byte of each stream once, in order; and so has who reads it again from any
// of the offsets that it was given. `Source` is berth-init: it has what was not acknowledged, and sends it again.
type Step =
  | { readonly do: 'write'; readonly stream: StreamName; readonly bytes: number; readonly pieces: number }
  | { readonly do: 'settle' }
  | { readonly do: 'kill'; readonly torn: number; readonly forgetAcks: boolean }
  | { readonly do: 'run' }

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('write' as const),
      stream: fc.constantFrom(...both),
      bytes: fc.integer({ min: 1, max: 400 }),
      pieces: fc.integer({ min: 1, max: 4 }),
    }),
  },
  { weight: 2, arbitrary: fc.constant({ do: 'settle' as const }) },
  {
    weight: 2,
    arbitrary: fc.record({ do: fc.constant('kill' as const), torn: fc.nat(120), forgetAcks: fc.boolean() }),
  },
  { weight: 1, arbitrary: fc.constant({ do: 'run' as const }) },
)

/** The output of runs, made of characters of all lengths and of bytes that are none. */
class Source {
  readonly streams: Record<StreamName, { all: Buffer; sent: number; acked: number }>
  /** What former runs wrote. */
  readonly before: Record<StreamName, Buffer> = { stdout: Buffer.alloc(0), stderr: Buffer.alloc(0) }
  run = 1
  #n = 0

  constructor() {
    this.streams = { stdout: this.#fresh(), stderr: this.#fresh() }
  }

  more(stream: StreamName, bytes: number): void {
    const alphabet = ['a', 'é', '€', '😀', '\n', '\xff']
    let text = ''
    while (Buffer.byteLength(text) < bytes) text += `${this.#n++}${alphabet[this.#n % alphabet.length]}`
    const { all } = this.streams[stream]
    const made = this.#n % 3 === 0 ? Buffer.from(text, 'latin1') : Buffer.from(text)
    this.streams[stream].all = Buffer.concat([all, made.subarray(0, bytes)])
  }

  next(): void {
    for (const stream of both) this.before[stream] = this.whole(stream)
    this.streams.stdout = this.#fresh()
    this.streams.stderr = this.#fresh()
    this.run += 1
  }

  /** What is to be acknowledged of what was sent. */
  due(stream: StreamName): number {
    const { all, sent } = this.streams[stream]
    return sent - unfinishedCharacter(all.subarray(0, sent))
  }

  whole(stream: StreamName): Buffer {
    return Buffer.concat([this.before[stream], this.streams[stream].all])
  }

  #fresh() {
    return { all: Buffer.alloc(0), sent: 0, acked: 0 }
  }
}

test('replay and live are all bytes once, whatever is written, changed and killed', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { maxLength: 30 }),
      fc.constantFrom(200, 1000, 100_000),
      fc.nat(),
      async (steps, segmentBytes, again) => {
        const directory = newDirectory()
        const source = new Source()
        const options = { segmentBytes, now: () => 1000 + source.run }
        let now = await openLog(directory, options)
        let sinks = now.begin({ run: 1, restart: 0 })
        const send = (stream: StreamName, from: number, to: number, pieces: number) => {
          const state = source.streams[stream]
          for (let i = 0; i < pieces; i++) {
            const [a, b] = [i, i + 1].map((n) => from + Math.floor(((to - from) * n) / pieces))
            sinks[stream].append(a ?? from, state.all.subarray(a, b), (stored) => {
              state.acked = Math.max(state.acked, stored)
            })
          }
          state.sent = to
        }
        const settle = () => Promise.all(both.map((stream) => sinks[stream].settled()))
        for (const one of steps) {
          if (one.do === 'write') {
            const { sent } = source.streams[one.stream]
            source.more(one.stream, one.bytes)
            // Some of what was sent comes again, as after a connection that broke.
            const from = Math.max(0, sent - (one.pieces > 2 ? 5 : 0))
            send(one.stream, from, source.streams[one.stream].all.length, one.pieces)
          } else if (one.do === 'settle') await settle()
          else if (one.do === 'run') {
            await settle()
            await now.close()
            source.next()
            sinks = now.begin({ run: source.run, restart: 0 })
          } else {
            // A kill: what is being written comes to be whole, or in part; acknowledgements may not have left.
            const acked = both.map((stream) => source.streams[stream].acked)
            // All but the beginning of a character, which nobody but berth-init has.
            while (both.some((stream) => source.streams[stream].acked < source.due(stream))) await pause(1)
            if (one.forgetAcks) for (const [i, stream] of both.entries()) source.streams[stream].acked = acked[i] ?? 0
            const last = existsSync(directory) ? readdirSync(directory).sort().at(-1) : undefined
            if (last !== undefined && one.torn > 0) {
              const torn = encodeRecord({
                ...{ stream: 'stdout', at: 1, offset: now.end, run: 9, restart: 9, bytes: Buffer.alloc(100) },
                totals: { stdout: 0, stderr: 0 },
              })
              appendFileSync(join(directory, last), torn.subarray(0, one.torn))
            }
            now = await openLog(directory, options)
            sinks = now.begin({ run: source.run, restart: 0 })
            for (const stream of both) {
              const { acked: from, all } = source.streams[stream]
              sinks[stream].resume(from)
              send(stream, from, all.length, 1)
            }
          }
        }
        await settle()

        const shown = await read(now)
        let position = 0
        for (const part of shown) {
          expect(part.offset).toBe(position)
          position += part.text.length
        }
        for (const stream of both) expect(textOf(shown, stream)).toBe(source.whole(stream).toString('latin1'))
        // From any offset that was told, the rest is the same.
        const from = shown.length === 0 ? undefined : shown[again % shown.length]
        if (from) {
          const rest = await read(now, { since: { offset: from.offset } })
          expect(textOf(rest)).toBe(textOf(shown).slice(from.offset))
        }
      },
    ),
    { numRuns: 60 },
  )
}, 120_000)

describe('a log', () => {
  test('keeps both streams in order of arrival, over runs', async () => {
    const one = await openLog(newDirectory())
    await write(one, [
      ['stdout', 'a'],
      ['stderr', 'b'],
      ['stdout', 'c'],
    ])
    await write(one, [['stderr', 'd']], 2)
    expect(await read(one)).toEqual([
      { stream: 'stdout', offset: 0, text: 'a' },
      { stream: 'stderr', offset: 1, text: 'b' },
      { stream: 'stdout', offset: 2, text: 'c' },
      { stream: 'stderr', offset: 3, text: 'd' },
    ])
    expect(textOf(await read(one, { streams: ['stderr'] }))).toBe('bd')
    expect(await read(one, { since: { offset: 2 } })).toMatchObject([{ text: 'c' }, { text: 'd' }])
    expect(await read(one, { since: { offset: 99 } })).toEqual([])
  })

  test('does not cut a character, and waits with its beginning for the rest or the end', async () => {
    const one = await openLog(newDirectory())
    const sinks = one.begin({ run: 1, restart: 0 })
    const acks: number[] = []
    const euro = Buffer.from('x€')
    const ack = (offset: number) => void acks.push(offset)
    sinks.stdout.append(0, euro.subarray(0, 2), ack)
    while (acks.length === 0) await pause(1)
    expect(acks).toEqual([1])
    sinks.stdout.append(2, euro.subarray(2), ack)
    while (acks.at(-1) !== 4) await pause(1)
    sinks.stdout.append(4, euro.subarray(1, 2), ack)
    await sinks.stdout.settled()
    expect(acks.at(-1)).toBe(5)
    expect((await read(one)).map(({ text }) => Buffer.from(text, 'latin1').toString())).toEqual(['x', '€', '\ufffd'])
  })

  test('drops the oldest files, and keeps what is to be kept', async () => {
    const directory = newDirectory()
    const keepBytes = 100_000
    const one = await openLog(directory, { keepBytes })
    const sinks = one.begin({ run: 1, restart: 0 })
    const line = Buffer.from(`${'x'.repeat(999)}\n`)
    for (let i = 0; i < 1000; i++) {
      sinks.stdout.append(i * 1000, line, () => undefined)
      if (i % 10 === 9) await sinks.stdout.settled()
    }
    const bytes = readdirSync(directory).reduce((sum, name) => sum + statSync(join(directory, name)).size, 0)
    expect(bytes).toBeLessThanOrEqual(keepBytes)
    expect(bytes).toBeGreaterThan(keepBytes / 2)
    expect(one.from).toBeGreaterThan(800_000)
    const shown = await read(one)
    expect(shown[0]?.offset).toBe(one.from)
    expect(textOf(shown)).toHaveLength(1_000_000 - one.from)
    // Who asks for what is gone gets what there is.
    expect((await read(one, { since: { offset: 5 } }))[0]?.offset).toBe(one.from)
  })

  test('is followed over all its files, while it is written and they are dropped', async () => {
    const one = await openLog(newDirectory(), { keepBytes: 200_000 })
    const sinks = one.begin({ run: 1, restart: 0 })
    const stop = new AbortController()
    let got = 0
    const reading = (async () => {
      for await (const { offset, bytes } of readLog(one, { streams: both, follow: true }, stop.signal)) {
        expect(offset).toBeGreaterThanOrEqual(got)
        got = offset + bytes.length
      }
    })()
    for (let i = 0; i < 2000; i++) {
      sinks.stdout.append(i * 1000, Buffer.alloc(1000, 'x'), () => undefined)
      if (i % 20 === 19) await sinks.stdout.settled()
    }
    while (got < 2_000_000) await pause(5)
    stop.abort()
    await reading
  })

  test('that is removed ends for its followers', async () => {
    const one = await openLog(newDirectory())
    await write(one, [['stdout', 'a']])
    const parts: string[] = []
    const reading = (async () => {
      for await (const { bytes } of readLog(one, { streams: both, follow: true }, never)) parts.push(String(bytes))
    })()
    while (parts.length === 0) await pause(5)
    await one.remove()
    await reading
    expect(parts).toEqual(['a'])
  })

  test('that cannot be written costs output, tells of it once, and goes on', async () => {
    const directory = newDirectory()
    writeFileSync(directory, 'a file where the directory should be')
    const one = await MainLog.open({ directory: join(directory), keepBytes: MiB, log }).catch((error: unknown) => error)
    expect(one).toMatchObject({ attempted: `open the log in ${directory}` })
    rmSync(directory)
    const other = await openLog(directory)
    warned.length = 0
    writeFileSync(directory, '')
    const acks: number[] = []
    const sinks = other.begin({ run: 1, restart: 0 })
    for (let i = 0; i < 3; i++) {
      sinks.stdout.append(i, Buffer.from('x'), (offset) => acks.push(offset))
      await sinks.stdout.settled()
    }
    expect(acks.at(-1)).toBe(3)
    expect(warned).toHaveLength(1)
    rmSync(directory)
    sinks.stdout.append(3, Buffer.from('y'), (offset) => acks.push(offset))
    await sinks.stdout.settled()
    expect(await read(other)).toEqual([{ stream: 'stdout', offset: 3, text: 'y' }])
  })

  test('is opened again where it lies in ruins, with what is whole of it', async () => {
    const directory = newDirectory()
    const one = await openLog(directory, { segmentBytes: 200 })
    await write(
      one,
      Array.from({ length: 9 }, (_, i) => ['stdout', `${i}${'x'.repeat(60)}`] as const),
    )
    await one.close()
    const names = readdirSync(directory).sort()
    writeFileSync(join(directory, names.at(-1) ?? ''), 'nonsense')
    writeFileSync(join(directory, 'other.file'), 'x')
    const again = await openLog(directory, { segmentBytes: 200 })
    const shown = await read(again)
    expect(shown.length).toBeLessThan(9)
    expect(shown.length).toBeGreaterThan(5)
    await write(again, [['stdout', 'new']], 2)
    expect((await read(again)).at(-1)?.text).toBe('new')
    expect(readFileSync(join(directory, 'other.file'), 'utf8')).toBe('x')
  })

  test('splits what is longer than a record', async () => {
    const one = await openLog(newDirectory())
    const sinks = one.begin({ run: 1, restart: 0 })
    const text = '€'.repeat(50_000)
    sinks.stderr.append(0, Buffer.from(text), () => undefined)
    await sinks.stderr.settled()
    const shown = await read(one)
    expect(Math.max(...shown.map((part) => part.text.length))).toBeLessThanOrEqual(MAX_BYTES)
    expect(shown.map((part) => Buffer.from(part.text, 'latin1').toString()).join('')).toBe(text)
  })
})

describe('times', () => {
  async function timed(segmentBytes: number): Promise<MainLog> {
    let now = 0
    const one = await openLog(newDirectory(), { segmentBytes, now: () => now })
    const sinks = one.begin({ run: 1, restart: 0 })
    for (let i = 1; i <= 20; i++) {
      // A clock that goes back now and then.
      now = i % 5 === 0 ? 1 : i * 100
      sinks.stdout.append(i - 1, Buffer.from(String.fromCharCode(64 + i)), () => undefined)
      await sinks.stdout.settled()
    }
    return one
  }

  test.each([70, 300, 10_000])('find where to begin and to end, in files of %d bytes', async (segmentBytes) => {
    const one = await timed(segmentBytes)
    expect(textOf(await read(one, { since: { at: 700 } }))).toBe('GHIJKLMNOPQRST')
    expect(textOf(await read(one, { since: { at: 701 } }))).toBe('HIJKLMNOPQRST')
    expect(textOf(await read(one, { since: { at: 0 } }))).toHaveLength(20)
    expect(textOf(await read(one, { since: { at: 1901 } }))).toBe('')
    expect(textOf(await read(one, { until: 300 }))).toBe('AB')
    expect(textOf(await read(one, { since: { at: 200 }, until: 400 }))).toBe('BC')
    expect(textOf(await read(one, { until: 0 }))).toBe('')
  })

  test('end a follower', async () => {
    const one = await openLog(newDirectory())
    await write(one, [['stdout', 'a']])
    expect(textOf(await read(one, { follow: true, until: Date.now() + 200 }))).toBe('a')
  })
})

describe('the last lines', () => {
  /** The last lines as anybody would find them who has all of it: by where they end. */
  function expected(parts: readonly (readonly [StreamName, string])[], streams: readonly StreamName[]) {
    const lines: { stream: StreamName; text: string }[] = []
    const open: Record<StreamName, string> = { stdout: '', stderr: '' }
    const unfinished: StreamName[] = []
    for (const [stream, text] of parts.filter(([one]) => streams.includes(one))) {
      const pieces = (open[stream] + text).split('\n')
      open[stream] = pieces.pop() ?? ''
      for (const piece of pieces) lines.push({ stream, text: `${piece}\n` })
      if (unfinished.includes(stream)) unfinished.splice(unfinished.indexOf(stream), 1)
      if (text !== '') unfinished.push(stream)
    }
    // A line without its break ends where its last byte is.
    const ends = parts.map(([stream]) => stream)
    for (const stream of unfinished.sort((a, b) => ends.lastIndexOf(a) - ends.lastIndexOf(b)))
      if (open[stream] !== '') lines.push({ stream, text: open[stream] })
    return lines
  }

  const part = fc.tuple(
    fc.constantFrom<StreamName>('stdout', 'stderr'),
    fc
      .array(fc.constantFrom('a', 'bb', '\n', '\n\n', 'long '.repeat(20)), { minLength: 1, maxLength: 4 })
      .map((p) => p.join('')),
  )

  test('of one stream are found from the end, whatever the pieces and files', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(part, { maxLength: 15 }),
        fc.nat(12),
        fc.constantFrom(100, 400, 100_000),
        async (parts, tail, segmentBytes) => {
          const one = await openLog(newDirectory(), { segmentBytes })
          await write(one, parts)
          for (const stream of both) {
            const lines = expected(parts, [stream])
            const want = lines.slice(lines.length - Math.min(tail, lines.length)).map(({ text }) => text)
            expect(textOf(await read(one, { streams: [stream], tail }))).toBe(want.join(''))
          }
        },
      ),
      { numRuns: 60 },
    )
  }, 60_000)

  test('of both streams are those that end last, each whole', async () => {
    const one = await openLog(newDirectory())
    await write(one, [
      ['stdout', 'one\ntwo\nthr'],
      ['stderr', 'err one\nerr two\n'],
      ['stdout', 'ee\nfour'],
    ])
    expect(textOf(await read(one, { tail: 0 }))).toBe('')
    expect(textOf(await read(one, { tail: 1 }))).toBe('four')
    expect(await read(one, { tail: 2 })).toMatchObject([{ text: 'thr' }, { text: 'ee\nfour' }])
    expect(await read(one, { tail: 3 })).toMatchObject([{ text: 'thr' }, { text: 'err two\n' }, { text: 'ee\nfour' }])
    expect(textOf(await read(one, { tail: 5 }))).toBe('two\nthrerr one\nerr two\nee\nfour')
    expect(textOf(await read(one, { tail: 1_000_000 }))).toBe('one\ntwo\nthrerr one\nerr two\nee\nfour')
  })

  test('are of what was asked for: a part of the log, and then what comes', async () => {
    const one = await openLog(newDirectory())
    await write(one, [
      ['stdout', '1\n'],
      ['stdout', '2\n'],
      ['stdout', '3\n'],
    ])
    expect(textOf(await read(one, { tail: 5, since: { offset: 2 } }))).toBe('2\n3\n')
    expect(textOf(await read(one, { tail: 5, since: { offset: 3 } }))).toBe('\n3\n')
    const stop = new AbortController()
    const parts: string[] = []
    const reading = (async () => {
      for await (const { bytes } of readLog(one, { streams: both, follow: true, tail: 1 }, stop.signal))
        parts.push(String(bytes))
    })()
    while (parts.length < 1) await pause(5)
    await write(
      one,
      [
        ['stdout', '4\n'],
        ['stderr', '5\n'],
      ],
      2,
    )
    while (parts.length < 3) await pause(5)
    stop.abort()
    await reading
    expect(parts).toEqual(['3\n', '4\n', '5\n'])
  })
})
