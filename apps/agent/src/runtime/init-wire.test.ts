import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import {
  EventReader,
  encodeRequest,
  type InitEvent,
  type InitRequest,
  MAX_DATA_BYTES,
  ProtocolError,
} from './init-wire.js'

const hex = (request: InitRequest) => encodeRequest(request).toString('hex')

/** A frame as init would write it. */
function frame(type: number, stream: number, proc: number, payload: Buffer): Buffer {
  const header = Buffer.alloc(12)
  header.writeUInt32LE(payload.length, 0)
  header.writeUInt8(type, 4)
  header.writeUInt8(stream, 5)
  header.writeUInt32LE(proc, 8)
  return Buffer.concat([header, payload])
}

describe('requests', () => {
  // Bytes written out by hand from libs/init/README.md.
  test.each<[string, InitRequest, string]>([
    ['HELLO', { type: 'hello' }, '04000000 01 00 0000 00000000 01000000'],
    [
      'STDIN',
      { type: 'stdin', proc: 1, offset: 258, bytes: Buffer.from('ab') },
      '0a000000 03 00 0000 01000000 0201000000000000 6162',
    ],
    ['STDIN_EOF', { type: 'stdinEof', proc: 1, total: 3 }, '08000000 04 00 0000 01000000 0300000000000000'],
    ['SIGNAL', { type: 'signal', proc: 7, signal: 15, scope: 'sandbox' }, '05000000 05 00 0000 07000000 0f000000 02'],
    ['RESIZE', { type: 'resize', proc: 1, rows: 24, columns: 80 }, '04000000 06 00 0000 01000000 1800 5000'],
    [
      'ACK',
      { type: 'ack', proc: 1, stream: 'stderr', offset: 2 ** 33 },
      '08000000 07 02 0000 01000000 0000000002000000',
    ],
    ['FORGET', { type: 'forget', proc: 1 }, '00000000 08 00 0000 01000000'],
    ['SHUTDOWN', { type: 'shutdown', graceMs: 1000 }, '04000000 09 00 0000 00000000 e8030000'],
  ])('%s', (_, request, expected) => {
    expect(hex(request)).toBe(expected.replaceAll(' ', ''))
  })

  test('SPAWN holds every field in the order of the protocol', () => {
    const request: InitRequest = {
      type: 'spawn',
      proc: 1,
      spawn: {
        flags: 13,
        uid: 1000,
        gid: 1001,
        groups: [5],
        capabilities: { bounding: 0xa80425fbn, effective: 1n, inheritable: 0n, ambient: 0n },
        limits: [{ resource: 7, soft: 1024n, hard: 0xffff_ffff_ffff_ffffn }],
        timeoutMs: 10_000,
        graceMs: 2000,
        oomScoreAdj: -1,
        rows: 0,
        columns: 0,
        ringBytes: 65_536,
        cwd: '/é',
        argv: ['a', ''],
        env: ['B=c'],
      },
    }
    const expected = `
      0d000000 e8030000 e9030000 01000000 05000000
      fb2504a800000000 0100000000000000 0000000000000000 0000000000000000
      01000000 07000000 0004000000000000 ffffffffffffffff
      10270000 d0070000 ffffffff 0000 0000 00000100
      03000000 2fc3a9 02000000 01000000 61 00000000 01000000 03000000 423d63`.replaceAll(/\s/g, '')
    const bytes = hex(request)
    expect(bytes.slice(24)).toBe(expected)
    expect(encodeRequest(request).readUInt32LE(0)).toBe(expected.length / 2)
  })
})

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

describe('events', () => {
  test('any cutting of the byte stream gives the same events', () => {
    const bytes = Buffer.concat(samples.map(([raw]) => raw))
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: bytes.length }), { maxLength: 40 }), (cuts) => {
        const reader = new EventReader()
        const edges = [0, ...cuts.sort((a, b) => a - b), bytes.length]
        const events = edges.slice(1).flatMap((end, i) => reader.push(bytes.subarray(edges[i], end)))
        expect(events).toEqual(samples.map(([, event]) => event))
      }),
    )
  })

  test.each<[string, Buffer]>([
    ['a frame beyond the largest', frame(69, 1, 1, Buffer.alloc(MAX_DATA_BYTES + 9))],
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
