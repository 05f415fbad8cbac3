import { capabilityMask } from '@berth/oci'
import { expect, test } from '@jest/globals'
import { type SpawnRequest, spawnFlags } from '../runtime/init-wire.js'
import { ociProcess, startFailure } from './oci-process.plan.js'

const spawn: SpawnRequest = {
  flags: spawnFlags.noNewPrivs,
  uid: 1000,
  gid: 1001,
  groups: [7, 8],
  capabilities: { bounding: capabilityMask(['CAP_CHOWN', 'CAP_KILL']), effective: 0n, inheritable: 0n, ambient: 0n },
  limits: [{ resource: 7, soft: 10n, hard: 20n }],
  timeoutMs: 0,
  graceMs: 0,
  oomScoreAdj: 5,
  rows: 24,
  columns: 80,
  ringBytes: 0,
  cwd: '/srv',
  argv: ['echo', 'a b'],
  env: ['A=b'],
}

test('a process is the same for berth-init and for a runtime', () => {
  expect(ociProcess(spawn)).toEqual({
    terminal: false,
    user: { uid: 1000, gid: 1001, additionalGids: [7, 8] },
    args: ['echo', 'a b'],
    env: ['A=b'],
    cwd: '/srv',
    capabilities: { bounding: ['CAP_CHOWN', 'CAP_KILL'], effective: [], permitted: [], inheritable: [], ambient: [] },
    rlimits: [{ type: 'RLIMIT_NOFILE', soft: 10, hard: 20 }],
    noNewPrivileges: true,
    oomScoreAdj: 5,
  })
  expect(ociProcess({ ...spawn, flags: spawnFlags.tty })).toMatchObject({
    terminal: true,
    consoleSize: { height: 24, width: 80 },
    noNewPrivileges: false,
  })
})

test.each([
  ['exec failed: unable to start container process: exec: "nope": executable file not found in $PATH', 'exec', 2],
  ['unable to start container process: exec: "/nope": stat /nope: no such file or directory: unknown', 'exec', 2],
  ['unable to start container process: exec: "/etc/passwd": permission denied', 'exec', 13],
  ['unable to start container process: exec: "/etc": is a directory', 'exec', 13],
  ['chdir to cwd ("/nowhere") set in config.json failed: no such file or directory', 'cwd', 2],
  ['2026-11-27T08:00:00Z: chdir: No such file or directory', 'cwd', 2],
  ['something else altogether', 'setup', 22],
  ['', 'setup', 22],
])('%s', (said, stage, errno) => expect(startFailure(said)).toEqual({ stage, errno }))
