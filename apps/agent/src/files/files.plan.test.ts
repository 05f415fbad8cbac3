import { Failure, InvalidRequest, SandboxSpec } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { spawnFlags } from '../runtime/init-wire.js'
import type { MainEnd } from '../runtime/processes.js'
import { argumentsOf, type FileOperation, failureOf, filesRequest, parseFailure, rangeOf } from './files.plan.js'

const spec = SandboxSpec.parse({ user: 'app', groups: ['audio'], limits: { pids: 64 } })
const accounts = {
  passwd: 'root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n',
  group: 'root:x:0:\napp:x:1001:\naudio:x:29:\nvideo:x:44:app\n',
}
const place = { spec, image: { user: 'root' }, ids: 65_536 }
const path = '/a b/é'

test.each<[FileOperation, string]>([
  [{ kind: 'stat', path, follow: false }, 'stat|/a b/é|nofollow'],
  [{ kind: 'stat', path, follow: true }, 'stat|/a b/é|follow'],
  [{ kind: 'list', path }, 'list|/a b/é'],
  [{ kind: 'read', path, range: {} }, 'read|/a b/é|-|-'],
  [{ kind: 'read', path, range: { first: 0, last: 9 } }, 'read|/a b/é|0|9'],
  [{ kind: 'read', path, range: { last: 9 } }, 'read|/a b/é|-|9'],
  [
    { kind: 'write', path, mode: undefined, owner: undefined, parents: false, ifExists: 'replace' },
    'write|/a b/é|-|-|-|-|replace',
  ],
  [
    { kind: 'write', path, mode: 0o640, owner: '1', parents: true, ifExists: 'fail' },
    'write|/a b/é|640|7|8|parents|fail',
  ],
  [{ kind: 'mkdir', path, mode: 0o1777, parents: true }, 'mkdir|/a b/é|1777|parents'],
  [{ kind: 'rename', path, to: '-', replace: false }, 'rename|/a b/é|-|fail'],
  [{ kind: 'remove', path, recursive: true }, 'remove|/a b/é|recursive'],
  [{ kind: 'watch', path, recursive: false }, 'watch|/a b/é|-'],
  [{ kind: 'pack', path }, 'pack|/a b/é'],
  [{ kind: 'unpack', path, owner: 'archive', group: undefined }, 'unpack|/a b/é|archive|-|-'],
  [{ kind: 'unpack', path, owner: 'user', group: 'audio' }, 'unpack|/a b/é|user|7|8'],
])('%j', (operation, argv) => {
  const owned = 'owner' in operation && (operation.owner === '1' || operation.owner === 'user')
  expect(argumentsOf(operation, owned ? { uid: 7, gid: 8 } : undefined)).toEqual(argv.split('|'))
})

describe('filesRequest', () => {
  test('is the user’s process, with the capabilities of any other of his', () => {
    const request = filesRequest({ kind: 'list', path }, place, accounts)
    expect(request).toMatchObject({ uid: 1000, gid: 1001, groups: [29, 44], cwd: '/', flags: spawnFlags.noNewPrivs })
    expect(request.argv).toEqual(['/dev/.berth/files', 'list', path])
    expect(request.capabilities.effective).toBe(0n)
    expect(filesRequest({ kind: 'list', path, user: '0' }, place, accounts).capabilities.effective).not.toBe(0n)
  })

  test('takes input where there is some', () => {
    const unpack = filesRequest({ kind: 'unpack', path, owner: 'user', group: undefined }, place, accounts)
    expect(unpack.flags & spawnFlags.stdin).toBe(spawnFlags.stdin)
  })

  test('owners and groups are looked up in the sandbox', () => {
    const write = { kind: 'write', path, mode: undefined, parents: false, ifExists: 'replace' } as const
    expect(filesRequest({ ...write, owner: 'root:video' }, place, accounts).argv.slice(4, 6)).toEqual(['0', '44'])
    const unpack = { kind: 'unpack', path, owner: 'user', group: 'video' } as const
    expect(filesRequest(unpack, place, accounts).argv.slice(4)).toEqual(['1000', '44'])
  })

  test.each<[object, string]>([
    [{ user: 'nobody-here' }, 'user'],
    [{ user: '65536' }, 'user'],
    [{ owner: 'nobody-here' }, 'owner'],
    [{ owner: 'app:nothing' }, 'owner'],
  ])('%j is refused by its field', (more, field) => {
    const write = { kind: 'write', path, mode: undefined, owner: undefined, parents: false, ifExists: 'fail' } as const
    const refused = expect.objectContaining({ violations: [expect.objectContaining({ field })] })
    expect(() => filesRequest({ ...write, ...more }, place, accounts)).toThrow(InvalidRequest)
    try {
      filesRequest({ ...write, ...more }, place, accounts)
    } catch (error) {
      expect(error).toEqual(refused)
    }
  })
})

test.each([
  ['bytes=0-', { first: 0 }],
  ['bytes=5-9', { first: 5, last: 9 }],
  ['bytes=-5', { last: 5 }],
  ['Bytes = 5 - 9', { first: 5, last: 9 }],
  ['bytes=9-5', undefined],
  ['bytes=-', undefined],
  ['bytes=0-1,3-4', undefined],
  ['lines=0-1', undefined],
  ['bytes=0-1e3', undefined],
  [`bytes=0-${'9'.repeat(16)}`, undefined],
  ['', undefined],
  [undefined, undefined],
])('Range: %s', (header, range) => expect(rangeOf(header)).toEqual(range))

describe('failures', () => {
  test.each([
    ['path 2 /a%20b%0A%25%C3%A9 \n', 'path_not_found', '/a b\n%é: no such file or directory (ENOENT)'],
    ['path 13 /x \n', 'path_denied', '/x: permission denied (EACCES)'],
    ['path 122 /x \n', 'disk_full', '/x: the disk limit is reached (EDQUOT)'],
    ['path 28 /x \n', 'disk_full', '/x: the disk limit is reached (ENOSPC)'],
    ['path 12  \n', 'unavailable', 'the operation: failed (errno 12)'],
    ['kind 0 /x \n', 'path_not_file', '/x: not a regular file'],
    ['range 10 /x \n', 'range_not_satisfiable', '/x: it has 10 bytes'],
    ['archive 0  it ends inside a header\n', 'archive_invalid', 'it ends inside a header'],
    ['archive 0 ../x a name with ..\n', 'archive_invalid', '../x: a name with ..'],
    ['watches 16384 /x \n', 'watch_limit', '/x: at most 16384 directories'],
    ['watches 0 /x \n', 'watch_limit', '/x: at most what its user may have watched'],
    ['short 0 /x \n', 'unavailable', '/x: became shorter while it was read'],
  ])('%j', (line, code, message) => {
    expect(parseFailure(line)).toMatchObject({ code, message })
  })

  test('bytes that are no UTF-8 are shown as such', () => {
    expect(parseFailure('path 2 /%FF%FE \n')?.data.path).toBe('/\ufffd\ufffd')
  })

  test.each(['', 'path', 'path 2 /x', 'path x /x \n', 'no 2 /x \n', 'path 2 /x \npath 2 /y \n', 'usage 0  x\n'])(
    '%j is none',
    (line) => expect(parseFailure(line)).toBeUndefined(),
  )

  const exited = (exitCode: number | undefined, signal?: number): MainEnd => ({
    kind: 'exited',
    exit: { exitCode, signal, cause: 'itself', wallMs: 1, cpuMs: 1, peakMemoryBytes: 1 },
  })
  test.each<[string, MainEnd, string, string | undefined]>([
    ['success', exited(0), '', undefined],
    ['a failure that is told', exited(1), 'path 2 /x \n', 'path_not_found'],
    ['a failure that is not', exited(1), 'Killed\n', 'unavailable'],
    ['another program in its place', exited(127), '', 'unavailable'],
    ['a signal', exited(undefined, 9), '', 'unavailable'],
    ['the sandbox ends', { kind: 'gone', error: new Error('x') }, '', 'wrong_state'],
    ['no process left', { kind: 'failed', stage: 'fork', errno: 11 }, '', 'unavailable'],
    ['too many known', { kind: 'failed', stage: 'fork', errno: 23 }, '', 'unavailable'],
    ['a shutdown', { kind: 'failed', stage: 'fork', errno: 108 }, '', 'wrong_state'],
    ['no program', { kind: 'failed', stage: 'exec', errno: 2 }, '', 'unavailable'],
  ])('%s', (_, end, stderr, code) => expect(failureOf(end, stderr, spec)?.code).toBe(code))

  test('a limit that is reached is named with its size', () => {
    const failure = failureOf({ kind: 'failed', stage: 'fork', errno: 11 }, '', spec)
    expect(failure).toBeInstanceOf(Failure)
    expect(failure).toMatchObject({ message: expect.stringContaining('64'), data: { limit: 'pids', pids: 64 } })
  })
})
