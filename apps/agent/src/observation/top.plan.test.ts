import { describe, expect, test } from '@jest/globals'
import { userNames } from '../runtime/identity.js'
import { parseChanges } from './diff.js'
import { parseNetwork } from './stats.js'
import { parseArguments, parseStat, parseStatus, processList } from './top.plan.js'

const stat = (name: string) =>
  `4711 (${name}) S 42 4711 4711 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 3 0 12345 1000 99 18446744073709551615 1 1 0`
const status = 'Name:\tsleep\nUid:\t1\t1001000\t3\t4\nNSpid:\t4711\t7\t1\nVmRSS:\t    12 kB\n'

describe('a process', () => {
  test.each(['sleep', 'a) S 1 (b', '', ')', '((', 'with space'])('of the name %j is read', (name) => {
    expect(parseStat(stat(name))).toEqual({
      ...{ name, state: 'S', parentPid: 42, cpuMs: 2000, threads: 3, startedMs: 123_450 },
    })
  })

  test.each(['', 'x', '1 (a', '1 (a) S', '1 (a) S x y z'])('is not read from %j', (text) =>
    expect(parseStat(text)).toBeUndefined(),
  )

  test('has the pid of the sandbox and the effective user; a zombie has no memory', () => {
    expect(parseStatus(status)).toEqual({ pid: 7, uid: 1_001_000, residentBytes: 12_288 })
    expect(parseStatus(status.replace(/VmRSS.*\n/, ''))?.residentBytes).toBe(0)
    expect(parseStatus('NSpid:\t4711\nUid:\t0\t0\t0\t0\n')).toBeUndefined()
    expect(parseStatus('')).toBeUndefined()
  })

  test.each<[string, boolean, string[]]>([
    ['', false, []],
    ['a\0b\0', false, ['a', 'b']],
    ['a\0\0', false, ['a', '']],
    ['no end', false, ['no end']],
    ['a\0bc', true, ['a', 'bc…']],
  ])('with the arguments %j (cut: %j)', (text, cut, words) =>
    expect(parseArguments(Buffer.from(text), cut)).toEqual(words),
  )
})

test('a list is in terms of the sandbox', () => {
  const ids = { base: 1_000_000, count: 65_536 }
  const users = userNames('root:x:0:0:root:/root:/bin/sh\nnonsense\nadmin:x:0:0::/:\napp:x:1000:1000::/:/bin/sh\n')
  const found = (hostPid: number, parentPid: number, pid: number, uid: number, words: string[]) => ({
    hostPid,
    stat: { name: 'n', state: 'S', parentPid, cpuMs: 1, threads: 1, startedMs: 500 },
    status: { pid, uid, residentBytes: 0 },
    arguments: words,
  })
  const list = processList(
    [found(100, 50, 9, 1_001_000, ['app']), found(50, 1, 1, 1_000_000, ['init']), found(101, 100, 10, 5, [])],
    ids,
    users,
    Date.parse('2026-01-01T00:00:00Z'),
  )
  expect(list).toMatchObject([
    { pid: 1, parentPid: 0, uid: 0, user: 'root', command: ['init'], startedAt: '2026-01-01T00:00:00.500Z' },
    { pid: 9, parentPid: 1, uid: 1000, user: 'app', command: ['app'] },
    { pid: 10, parentPid: 9, uid: 65_534, user: null, command: ['[n]'] },
  ])
})

test('network counters are those of all interfaces but the loopback', () => {
  const text = [
    'Inter-|   Receive                                                |  Transmit',
    ' face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed',
    '    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0',
    '  eth0: 2000 1 0 0 0 0 0 0 300 1 0 0 0 0 0 0',
    'veth1:5 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0',
    '',
  ].join('\n')
  expect(parseNetwork(text)).toEqual({ receivedBytes: 2005, sentBytes: 307 })
  expect(parseNetwork('')).toEqual({ receivedBytes: 0, sentBytes: 0 })
})

test('changes are read however their bytes are cut, and nonsense is refused', async () => {
  const all = Buffer.from('A/a\0C/with\nline\0D/é\0')
  const read = async (chunks: readonly Buffer[]) => {
    const found = []
    for await (const change of parseChanges(
      (async function* () {
        yield* chunks
      })(),
    ))
      found.push(`${change.kind} ${change.path}`)
    return found
  }
  for (let cut = 0; cut <= all.length; cut++)
    expect(await read([all.subarray(0, cut), all.subarray(cut)])).toEqual([
      'added /a',
      'changed /with\nline',
      'deleted /é',
    ])
  await expect(read([Buffer.from('X/a\0')])).rejects.toThrow('kind 88')
  await expect(read([Buffer.alloc(1024 ** 2, 'A')])).rejects.toThrow('without an end')
})
