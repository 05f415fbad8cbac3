import { describe, expect, test } from '@jest/globals'
import { encodeRequest, type InitRequest } from './init-wire.js'

const hex = (request: InitRequest) => encodeRequest(request).toString('hex')

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
