import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { EventReader } from './event-reader.js'
import { type InitEvent, MAX_DATA_BYTES, ProtocolError } from './init-wire.js'

/** A frame as init would write it. */
function frame(type: number, stream: number, proc: number, payload: Buffer): Buffer {
  const header = Buffer.alloc(12)
  header.writeUInt32LE(payload.length, 0)
  header.writeUInt8(type, 4)
  header.writeUInt8(stream, 5)
  header.writeUInt32LE(proc, 8)
  return Buffer.concat([header, payload])
}

const u64 = (value: number) => {
  const buffer = Buffer.alloc(8)
  buffer.writeBigUInt64LE(BigInt(value))
  return buffer
}

const exitPayload = () => {
  const p = Buffer.alloc(39)
  p.writeUInt8(1, 0)
  p.writeInt32LE(9, 1)
  p.writeUInt8(1, 5)
  p.writeBigUInt64LE(1_500n, 7)
  p.writeBigUInt64LE(500n, 15)
  p.writeBigUInt64LE(4096n, 23)
  p.writeBigUInt64LE(2_500_000n, 31)
  return p
}

/** One of each event, with the value it stands for. */
const samples: readonly (readonly [Buffer, InitEvent])[] = [
  [frame(65, 0, 0, Buffer.from('0100000002000000', 'hex')), { type: 'hello', version: 1, processes: 2 }],
  [
    frame(66, 0, 1, Buffer.concat([Buffer.from('0107000000', 'hex'), ...[1, 2, 3, 4, 5].map(u64)])),
    {
      type: 'state',
      proc: 1,
      state: 'running',
      pid: 7,
      stdout: { start: 1, end: 2 },
      stderr: { start: 3, end: 4 },
      stdinExpected: 5,
    },
  ],
  [
    frame(67, 0, 1, Buffer.concat([Buffer.from('02000000', 'hex'), u64(99)])),
    { type: 'started', proc: 1, pid: 2, monotonicNs: 99n },
  ],
  [frame(68, 0, 1, Buffer.from('0402000000', 'hex')), { type: 'failed', proc: 1, stage: 'exec', errno: 2 }],
  [
    frame(69, 1, 1, Buffer.concat([u64(3), Buffer.from('hey')])),
    { type: 'data', proc: 1, stream: 'stdout', offset: 3, bytes: Buffer.from('hey') },
  ],
  [frame(70, 2, 1, u64(6)), { type: 'eof', proc: 1, stream: 'stderr', total: 6 }],
  [
    frame(71, 0, 1, exitPayload()),
    {
      type: 'exit',
      proc: 1,
      exit: { exitCode: undefined, signal: 9, cause: 'timeout', cpuMs: 2, peakMemoryBytes: 4096, wallMs: 2.5 },
    },
  ],
  [frame(72, 0, 1, u64(10)), { type: 'stdinAck', proc: 1, offset: 10 }],
  [
    frame(73, 0, 1, Buffer.concat([Buffer.from('1600000004000000', 'hex'), Buffer.from('nope')])),
    { type: 'error', proc: 1, errno: 22, message: 'nope' },
  ],
]

/** As they are read: into one buffer, again and again. */
function read(chunks: readonly Buffer[]): readonly InitEvent[] {
  const reader = new EventReader()
  return chunks.flatMap((chunk) => {
    const scratch = Buffer.from(chunk)
    const events = reader.push(scratch)
    scratch.fill('!')
    return events
  })
}

/** Output that was cut in pieces, whole again. */
function joined(events: readonly InitEvent[]): readonly InitEvent[] {
  const whole: InitEvent[] = []
  for (const event of events) {
    const last = whole.at(-1)
    if (last?.type === 'data' && event.type === 'data' && last.offset + last.bytes.length === event.offset)
      whole[whole.length - 1] = { ...last, bytes: Buffer.concat([last.bytes, event.bytes]) }
    else whole.push(event)
  }
  return whole
}

describe('events', () => {
  test('any cutting of the byte stream gives the same events', () => {
    const bytes = Buffer.concat(samples.map(([raw]) => raw))
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: bytes.length }), { maxLength: 40 }), (cuts) => {
        const edges = [0, ...cuts.sort((a, b) => a - b), bytes.length]
        const chunks = edges.slice(1).map((end, i) => bytes.subarray(edges[i], end))
        expect(joined(read(chunks))).toEqual(samples.map(([, event]) => event))
      }),
    )
  })

  test('output is told in pieces, however it is framed', () => {
    const output = (offset: number, text: string, stream = 1) =>
      frame(69, stream, 1, Buffer.concat([u64(offset), Buffer.from(text)]))
    const told = (...frames: Buffer[]) =>
      read([Buffer.concat(frames)]).map(
        (event) => event.type === 'data' && [event.stream, event.offset, `${event.bytes}`],
      )
    // Short ones in a row are one; another stream, a hole or another event begin another.
    expect(told(output(0, 'ab'), output(2, 'c'), output(3, 'd'))).toEqual([['stdout', 0, 'abcd']])
    expect(told(output(0, 'ab'), output(0, 'c', 2), output(2, 'd'))).toEqual([
      ['stdout', 0, 'ab'],
      ['stderr', 0, 'c'],
      ['stdout', 2, 'd'],
    ])
    expect(told(output(0, 'ab'), output(7, 'c'))).toEqual([
      ['stdout', 0, 'ab'],
      ['stdout', 7, 'c'],
    ])
    expect(told(output(0, 'ab'), frame(72, 0, 1, u64(1)), output(2, 'c'))).toEqual([
      ['stdout', 0, 'ab'],
      false,
      ['stdout', 2, 'c'],
    ])
    const long = 'x'.repeat(MAX_DATA_BYTES)
    const lengths = read([Buffer.concat([output(0, 'ab'), output(2, long)])]).map(
      (event) => event.type === 'data' && event.bytes.length,
    )
    expect(lengths).toEqual([MAX_DATA_BYTES, 2])
  })

  test.each<[string, Buffer]>([
    ['a frame beyond the largest', frame(69, 1, 1, Buffer.alloc(MAX_DATA_BYTES + 9))],
    ['another frame as long as one of output', frame(73, 0, 1, Buffer.alloc(MAX_DATA_BYTES))],
    ['output without its offset', frame(69, 1, 1, Buffer.alloc(7))],
    ['an unknown type', frame(99, 0, 1, Buffer.alloc(8))],
    ['a request sent back', frame(2, 0, 1, Buffer.alloc(8))],
    ['a payload too short for its type', frame(71, 0, 1, Buffer.alloc(38))],
    ['a stream that is none', frame(69, 3, 1, u64(0))],
    ['an unknown cause', frame(71, 0, 1, exitPayload().fill(9, 5, 6))],
    ['an offset beyond 2^53', frame(70, 1, 1, Buffer.alloc(8, 0xff))],
  ])('%s is refused', (_, bytes) => {
    expect(() => new EventReader().push(bytes)).toThrow(ProtocolError)
  })

  test('no bytes whatsoever make the reader throw anything but a ProtocolError', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        try {
          new EventReader().push(Buffer.from(bytes))
        } catch (error) {
          expect(error).toBeInstanceOf(ProtocolError)
        }
      }),
    )
  })
})
