import { SandboxSpec } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { defaultSandboxPolicy, forbidden, type SandboxPolicy } from './policy.js'

const ask = (fields: object, policy: Partial<SandboxPolicy> = {}) =>
  forbidden({ ...defaultSandboxPolicy, ...policy }, SandboxSpec.parse(fields))?.policy

describe('by default', () => {
  test.each<[string, object]>([
    ['nothing', {}],
    ['capabilities of the list, however they are written', { capAdd: ['net_raw', 'CAP_MKNOD'] }],
    ['dropping all', { capDrop: ['ALL'] }],
    [
      'sysctls of its namespaces',
      { sysctls: { 'net.ipv4.ip_unprivileged_port_start': '0', 'kernel.shmmax': '1', 'fs.mqueue.msg_max': '9' } },
    ],
    ['its cpus, and to be killed first', { limits: { cpuset: '0-1' }, oomScoreAdj: 1000 }],
  ])('%s may be asked for', (_, fields) => expect(ask(fields)).toBeUndefined())

  test.each<[string, object]>([
    ['privileged', { privileged: true }],
    ['capAdd', { capAdd: ['ALL'] }],
    ['capAdd', { capAdd: ['NET_RAW', 'SYS_ADMIN'] }],
    ['sysctls', { sysctls: { 'kernel.hostname': 'x' } }],
    ['sysctls', { sysctls: { 'kernel.shm_rmid_forced.x': '1' } }],
    ['sysctls', { sysctls: { 'vm.swappiness': '1' } }],
    ['sysctls', { sysctls: { 'network.x': '1' } }],
    ['seccompProfile', { seccompProfile: 'unconfined' }],
    ['noNewPrivileges', { noNewPrivileges: false }],
    ['max.swapBytes', { limits: { swapBytes: '1m' } }],
  ])('%s stands in the way of %j', (policy, fields) => expect(ask(fields)).toBe(policy))
})

describe('an operator', () => {
  test('may allow more, but no sysctl beyond the safe list and nothing privileged', () => {
    const all = {
      capAdd: new Set(['CAP_SYS_ADMIN']),
      sysctls: ['*'],
      newPrivileges: true,
      seccompProfiles: new Set(['open']),
      max: {},
    }
    expect(
      ask({ capAdd: ['SYS_ADMIN'], noNewPrivileges: false, seccompProfile: 'open', limits: { swapBytes: '1g' } }, all),
    ).toBeUndefined()
    expect(ask({ seccompProfile: 'open', sysctls: { 'kernel.panic': '1' } }, all)).toBe('sysctls')
    expect(ask({ privileged: true }, all)).toBe('privileged')
  })

  test.each<[string, object, Partial<SandboxPolicy>]>([
    ['cpuset', { limits: { cpuset: '0' } }, { cpuset: false }],
    ['oomScoreAdj', { oomScoreAdj: 11 }, { maxOomScoreAdj: 10 }],
    ['sysctls', { sysctls: { 'net.core.somaxconn': '1' } }, { sysctls: ['net.ipv4.*'] }],
    ['max.cpus', { limits: { cpus: 3 } }, { max: { cpus: 2 } }],
    ['max.memoryBytes', { limits: { memoryBytes: '2g' } }, { max: { memoryBytes: 2 ** 30 } }],
    ['max.diskBytes', { limits: { diskBytes: '2g' } }, { max: { diskBytes: 2 ** 30 } }],
    ['max.pids', { limits: { pids: 9 } }, { max: { pids: 8 } }],
    ['max.openFiles', { limits: { ulimits: { nofile: { soft: 1, hard: 9 } } } }, { max: { openFiles: 8 } }],
  ])('may forbid %s', (policy, fields, change) => expect(ask(fields, change)).toBe(policy))

  test('is told what is allowed instead', () =>
    expect(forbidden(defaultSandboxPolicy, SandboxSpec.parse({ capAdd: ['SYS_TIME'] }))?.message).toContain(
      'CAP_NET_RAW',
    ))
})
