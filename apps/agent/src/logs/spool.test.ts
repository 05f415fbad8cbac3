import { mkdtempSync, readdirSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { type Piece, Spool, type SpoolOptions, type SpoolReader } from './spool.js'

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-spool-'))
})
afterEach(() => rmSync(directory, { recursive: true }))

const ignoreStored = () => undefined
/** The stream of all these tests: what stands at an offset is known from the offset. */
const at = (offset: number, length: number) => Buffer.from(Array.from({ length }, (_, i) => ((offset + i) * 31) % 251))
const text = (value: string) => Buffer.from(value)
const options = (more: Partial<SpoolOptions> = {}): SpoolOptions => ({
  directory: join(directory, 'exe'),
  name: 'stdout',
  keepBytes: 64,
  segmentBytes: 16,
  ...more,
})

async function readAll(reader: SpoolReader): Promise<readonly Piece[]> {
  const pieces: Piece[] = []
  for (let piece = await reader.read(1000); piece; piece = await reader.read(1000)) pieces.push(piece)
  await reader.close()
  return pieces
}

test('whoever reads along with a flood needs no file', async () => {
  const size = 300_000
  const spool = Spool.begin(options({ keepBytes: 2 ** 20, segmentBytes: 2 ** 20, promptBytes: 0 }))
  for (let offset = 0; offset < size; offset += 3000) spool.append(offset, at(offset, 3000), ignoreStored)
  await spool.settled()
  for (const file of readdirSync(join(directory, 'exe'))) rmSync(join(directory, 'exe', file))
  for (const since of [0, 1, 2999, 3000, 123_456, size - 1]) {
    const reader = spool.reader(since)
    for (let limit = 997; reader.offset < size; limit = (limit * 7 + 1) % 20_011) {
      const { offset } = reader
      const piece = await reader.read(limit)
      expect(piece).toEqual({ kind: 'bytes', offset, bytes: at(offset, Math.min(limit, size - offset)) })
    }
  }
  await spool.end()
})

describe.each([
  ['written at once', 1e9],
  ['written asynchronously', 0],
])('a spool %s', (_, promptBytes) => {
  test('gives back what was appended, by offset', async () => {
    const spool = Spool.begin(options({ promptBytes }))
    const stored: number[] = []
    spool.append(0, text('hello '), (offset) => stored.push(offset))
    spool.append(6, text('world'), (offset) => stored.push(offset))
    await spool.settled()
    expect(stored.at(-1)).toBe(11)
    expect([spool.from, spool.total, spool.kept]).toEqual([0, 11, 11])
    expect(await readAll(spool.reader(0))).toEqual([{ kind: 'bytes', offset: 0, bytes: text('hello world') }])
    expect(await readAll(spool.reader(6))).toEqual([{ kind: 'bytes', offset: 6, bytes: text('world') }])
    expect(await readAll(spool.reader(11))).toEqual([])
    expect(await readAll(spool.reader(99))).toEqual([])
    await spool.end()
    expect(await readAll(spool.reader(4))).toEqual([{ kind: 'bytes', offset: 4, bytes: text('o world') }])
  })

  test('makes nothing on disk before there is a byte', async () => {
    const spool = Spool.begin(options({ promptBytes }))
    spool.append(0, text(''), ignoreStored)
    await spool.end()
    expect(readdirSync(directory)).toEqual([])
    expect(await spool.tail(100)).toEqual({ offset: 0, bytes: Buffer.alloc(0) })
  })

  test('keeps at least the last bytes, and tells readers of the gap', async () => {
    const spool = Spool.begin(options({ promptBytes }))
    spool.append(0, at(0, 1000), ignoreStored)
    await spool.settled()
    expect(spool.total).toBe(1000)
    expect(spool.from).toBe(928) // the segment that holds 1000 - 64
    expect(readdirSync(join(directory, 'exe'))).toHaveLength(5)
    const [gap, ...rest] = await readAll(spool.reader(5))
    expect(gap).toEqual({ kind: 'gap', offset: 928 })
    expect(Buffer.concat(rest.map((piece) => (piece.kind === 'bytes' ? piece.bytes : text('!'))))).toEqual(at(928, 72))
    expect(await spool.tail(10)).toEqual({ offset: 990, bytes: at(990, 10) })
    expect(await spool.tail(1e6)).toEqual({ offset: 928, bytes: at(928, 72) })
    await spool.end()
  })

  test('a reader that holds a segment while it is removed goes on after the gap', async () => {
    const spool = Spool.begin(options({ promptBytes }))
    spool.append(0, at(0, 40), ignoreStored)
    await spool.settled()
    const reader = spool.reader(0)
    expect(await reader.read(3)).toEqual({ kind: 'bytes', offset: 0, bytes: at(0, 3) })
    spool.append(40, at(40, 200), ignoreStored)
    await spool.settled()
    expect(await reader.read(100)).toEqual({ kind: 'gap', offset: spool.from })
    expect(await reader.read(4)).toEqual({ kind: 'bytes', offset: spool.from, bytes: at(spool.from, 4) })
    await reader.close()
    await spool.end()
  })

  test('what cannot be stored is a gap, and what comes when it can be again is not', async () => {
    writeFileSync(join(directory, 'exe'), 'in the way')
    const spool = Spool.begin(options({ promptBytes }))
    const stored: number[] = []
    spool.append(0, at(0, 10), (offset) => stored.push(offset))
    await spool.settled()
    expect(spool.failure?.message).toMatch(/store stdout/)
    expect(stored).toEqual([10])
    rmSync(join(directory, 'exe'))
    spool.append(10, at(10, 5), (offset) => stored.push(offset))
    await spool.end()
    expect(stored).toEqual([10, 15])
    expect(await readAll(spool.reader(0))).toEqual([
      { kind: 'gap', offset: 10 },
      { kind: 'bytes', offset: 10, bytes: at(10, 5) },
    ])
    const again = Spool.resume(options())
    expect([again.from, again.total]).toEqual([10, 15])
  })
})

test('a gap at the end, of bytes that could not be stored before a crash, is told', async () => {
  const first = Spool.begin(options())
  first.append(0, at(0, 20), ignoreStored)
  await first.close()
  const second = Spool.resume(options())
  second.resume(50)
  second.append(50, at(50, 5), ignoreStored)
  second.resume(70)
  await second.end()
  expect(await readAll(second.reader(0))).toEqual([
    { kind: 'bytes', offset: 0, bytes: at(0, 16) },
    { kind: 'bytes', offset: 16, bytes: at(16, 4) },
    { kind: 'gap', offset: 50 },
    { kind: 'bytes', offset: 50, bytes: at(50, 5) },
    { kind: 'gap', offset: 70 },
  ])
})

describe('a small stream', () => {
  test('is held in memory, read from there, and not told as stored', async () => {
    const spool = Spool.begin(options({ holdBytes: 10 }))
    const stored: number[] = []
    for (let i = 0; i < 10; i += 5) spool.append(i, at(i, 5), (offset) => stored.push(offset))
    spool.append(2, at(2, 8), (offset) => stored.push(offset))
    expect(spool.held).toEqual(at(0, 10))
    expect([spool.from, spool.total, spool.kept, stored]).toEqual([0, 10, 0, []])
    expect(await readAll(spool.reader(3))).toEqual([{ kind: 'bytes', offset: 3, bytes: at(3, 7) }])
    await spool.end()
    expect(await spool.tail(4)).toEqual({ offset: 6, bytes: at(6, 4) })
    expect(readdirSync(directory)).toEqual([])
    const again = Spool.resume(options({ holdBytes: 10 }), at(0, 10))
    expect(await again.tail(100)).toEqual({ offset: 0, bytes: at(0, 10) })
  })

  test('that becomes large is on disk as if it had never been held', async () => {
    const spool = Spool.begin(options({ holdBytes: 10 }))
    const stored: number[] = []
    spool.append(0, at(0, 7), (offset) => stored.push(offset))
    spool.append(7, at(7, 20), (offset) => stored.push(offset))
    await spool.settled()
    expect([spool.held, spool.from, spool.total, spool.kept, stored]).toEqual([undefined, 0, 27, 27, [27]])
    await spool.end()
    expect(
      Buffer.concat((await readAll(spool.reader(0))).map((p) => (p.kind === 'bytes' ? p.bytes : text('!')))),
    ).toEqual(at(0, 27))
    expect(Spool.resume(options({ holdBytes: 10 }), at(0, 3)).total).toBe(27)
  })

  test('with a gap in it is not held, nor one that is discarded', async () => {
    const spool = Spool.begin(options({ holdBytes: 10 }))
    spool.append(0, at(0, 3), ignoreStored)
    spool.resume(5)
    spool.append(5, at(5, 2), ignoreStored)
    expect(await readAll(spool.reader(0))).toEqual([
      { kind: 'bytes', offset: 0, bytes: at(0, 3) },
      { kind: 'gap', offset: 5 },
      { kind: 'bytes', offset: 5, bytes: at(5, 2) },
    ])
    await spool.end()
    const other = Spool.begin(options({ name: 'other', holdBytes: 10 }))
    other.append(0, at(0, 3), ignoreStored)
    await other.discard()
    expect(await readAll(other.reader(0))).toEqual([{ kind: 'gap', offset: 3 }])
  })
})

test('spools of one directory, and names that begin alike, do not meet', async () => {
  const names = ['out', 'out.0000000000000000', 'outer']
  for (const name of names) {
    const spool = Spool.begin(options({ name }))
    spool.append(0, text(name), ignoreStored)
    await spool.end()
  }
  for (const name of names)
    expect(await Spool.resume(options({ name })).tail(100)).toEqual({ offset: 0, bytes: text(name) })
})

test('the oldest can be dropped before its time, but not what is written to', async () => {
  let segments = 0
  const spool = Spool.begin(options({ onSegment: () => segments++ }))
  spool.append(0, at(0, 40), ignoreStored)
  expect(segments).toBe(2)
  expect(await spool.dropOldest()).toBe(16)
  expect(await spool.dropOldest()).toBe(16)
  expect(await spool.dropOldest()).toBe(0)
  spool.append(40, at(40, 2), ignoreStored)
  expect(await readAll(spool.reader(0))).toEqual([
    { kind: 'gap', offset: 32 },
    { kind: 'bytes', offset: 32, bytes: at(32, 10) },
  ])
  await spool.discard()
  expect(readdirSync(join(directory, 'exe'))).toEqual([])
  expect(await readAll(spool.reader(0))).toEqual([{ kind: 'gap', offset: 42 }])
  expect([spool.from, spool.total, spool.ended]).toEqual([42, 42, true])
})

test('who waits is woken by bytes and by the end, and not by what was there before', async () => {
  const spool = Spool.begin(options())
  const gone = new AbortController()
  const { version } = spool.changes
  const first = spool.changes.after(version, gone.signal)
  spool.append(0, text('a'), ignoreStored)
  await first
  await spool.changes.after(version, gone.signal) // has changed since
  const second = spool.changes.after(spool.changes.version, gone.signal)
  await spool.end()
  await second
  const third = spool.changes.after(spool.changes.version, gone.signal)
  gone.abort()
  await third
})

/** What berth-init does: it holds what was not acknowledged, at most a ring full, and tells it again after a crash. */
class Source {
  acknowledged = 0
  sent = 0
  /** An acknowledgement up to here did arrive: what it acknowledged is no longer held. */
  #arrived = 0
  constructor(readonly ring: number) {}

  send(spool: Spool, bytes: number): void {
    const end = Math.min(this.sent + bytes, this.acknowledged + this.ring)
    spool.append(this.sent, at(this.sent, end - this.sent), (offset) => {
      this.acknowledged = offset
    })
    this.sent = end
  }

  /** All acknowledgements so far did arrive. */
  arrived(): void {
    this.#arrived = this.acknowledged
  }

  /** The last acknowledgements did not arrive. */
  reconnect(spool: Spool, lost: number): void {
    this.acknowledged = Math.max(this.#arrived, this.acknowledged - lost)
    this.arrived()
    this.sent = this.acknowledged
    spool.resume(this.acknowledged)
  }
}

type Step =
  | { readonly do: 'write'; readonly bytes: number }
  | { readonly do: 'settle' }
  | { readonly do: 'read'; readonly reader: number; readonly limit: number }
  | { readonly do: 'crash'; readonly torn: number; readonly lost: number }

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 5, arbitrary: fc.record({ do: fc.constant('write' as const), bytes: fc.integer({ min: 0, max: 90 }) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('settle' as const) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant('read' as const),
      reader: fc.integer({ min: 0, max: 1 }),
      limit: fc.integer({ min: 1, max: 50 }),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('crash' as const),
      torn: fc.integer({ min: 0, max: 60 }),
      lost: fc.integer({ min: 0, max: 60 }),
    }),
  },
)

/** The newest file loses up to so many bytes, but none that was acknowledged: what a kill in the middle of a write leaves. */
function tear(torn: number, acknowledged: number): void {
  const path = join(directory, 'exe')
  let newest: string | undefined
  try {
    newest = readdirSync(path).sort().at(-1)
  } catch {
    return // nothing was written yet
  }
  if (newest === undefined) return
  const start = Number(newest.split('.')[1])
  const { size } = statSync(join(path, newest))
  truncateSync(join(path, newest), Math.max(0, Math.min(size, Math.max(size - torn, acknowledged - start))))
}

test('whatever is written, read and killed in whatever order: no byte is lost, doubled or wrong', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { minLength: 1, maxLength: 60 }),
      fc.record({
        keepBytes: fc.integer({ min: 1, max: 200 }),
        segmentBytes: fc.integer({ min: 1, max: 70 }),
        promptBytes: fc.constantFrom(0, 100, 1e9),
        holdBytes: fc.constantFrom(0, 30),
      }),
      fc.integer({ min: 0, max: 100 }),
      async (steps, sizes, since) => {
        rmSync(join(directory, 'exe'), { recursive: true, force: true })
        const source = new Source(80)
        let spool = Spool.begin(options(sizes))
        let readers = [spool.reader(0), spool.reader(since)]
        const positions = [0, since]
        let furthest = 0 // what was written counts, even if a kill then tore it

        const check = (piece: Piece, reader: number) => {
          const position = positions[reader] ?? 0
          if (piece.kind === 'gap') {
            // Only what is further back than was to be kept may be missing.
            expect(piece.offset).toBeGreaterThan(position)
            expect(piece.offset).toBeLessThanOrEqual(Math.max(0, Math.max(furthest, spool.total) - sizes.keepBytes))
            positions[reader] = piece.offset
            return
          }
          expect(piece.offset).toBe(position)
          expect(piece.bytes).toEqual(at(piece.offset, piece.bytes.length))
          positions[reader] = piece.offset + piece.bytes.length
        }

        for (const s of steps) {
          switch (s.do) {
            case 'write':
              source.send(spool, s.bytes)
              break
            case 'settle':
              await spool.settled()
              source.arrived()
              break
            case 'read': {
              const piece = await readers[s.reader]?.read(s.limit)
              if (piece) check(piece, s.reader)
              break
            }
            case 'crash':
              // Whatever was on its way may or may not have been written: closing waits for it, tearing takes it away.
              await spool.close()
              furthest = Math.max(furthest, spool.total)
              for (const reader of readers) await reader.close()
              tear(s.torn, source.acknowledged)
              spool = Spool.resume(options(sizes))
              source.reconnect(spool, s.lost)
              // Readers are ahead of a torn file by at most what comes again.
              readers = positions.map((position) => spool.reader(position))
          }
          expect(spool.kept).toBeGreaterThanOrEqual(0)
        }
        source.send(spool, 80)
        await spool.end()
        expect(spool.total).toBe(source.sent)
        expect(spool.kept).toBeGreaterThanOrEqual(Math.min(sizes.keepBytes, spool.total))
        expect(spool.kept).toBeLessThan(sizes.keepBytes + 2 * sizes.segmentBytes)
        for (const [i, reader] of readers.entries()) {
          for (let piece = await reader.read(1000); piece; piece = await reader.read(1000)) check(piece, i)
          expect(positions[i]).toBe(Math.max(spool.total, positions[i] ?? 0))
          await reader.close()
        }
      },
    ),
    { numRuns: 120 },
  )
})
