import { JobSpec, SandboxSpec } from '@berth/contracts'
import { defaultCapabilities } from '@berth/oci'
import { describe, expect, test } from '@jest/globals'
import { type Abilities, impossible, jobShape, sandboxShape } from './shape.plan.js'

const able: Abilities = { hardLimits: { nofile: 4096, nice: 0 }, raisesLimits: true, weighsIo: true, cpus: 4 }
const unable: Abilities = { ...able, raisesLimits: false, weighsIo: false, cpus: 2 }
const spec = (more: Partial<typeof SandboxSpec._zod.input> = {}) => SandboxSpec.parse(more)

test('a job asks for nothing but its limits', () => {
  const job = JobSpec.parse({ command: ['true'] })
  expect(jobShape(job)).toEqual({ limits: job.limits, diskBytes: job.limits.diskBytes, seccompProfile: 'default' })
})

test('a sandbox is made as its spec says', () => {
  const it = spec({
    tmpfs: [{ path: '/t' }],
    readOnlyRootfs: true,
    capAdd: ['NET_RAW'],
    noNewPrivileges: false,
    sysctls: { 'net.core.somaxconn': '10' },
    seccompProfile: 'strict',
  })
  const shape = sandboxShape(it, able)
  expect(shape).toMatchObject({
    tmpfs: [{ path: '/t', mode: 0o1777 }],
    readOnlyRootfs: true,
    noNewPrivileges: false,
    sysctls: { 'net.core.somaxconn': '10' },
    seccompProfile: 'strict',
    raisedLimits: [],
  })
  expect([...(shape.capabilities ?? [])].sort()).toEqual([...defaultCapabilities, 'CAP_NET_RAW'].sort())
})

test('the runtime raises what is above the agent’s own, and core files always', () => {
  const ulimits = {
    nofile: { soft: 100, hard: 5000 },
    stack: { soft: 1, hard: 2 },
    nice: { soft: 0, hard: 0 },
    core: { soft: 0, hard: 9 },
  }
  expect(sandboxShape(spec({ limits: { ulimits } }), able).raisedLimits).toEqual([
    { type: 'RLIMIT_NOFILE', hard: 5000 },
    { type: 'RLIMIT_CORE', hard: 9 },
  ])
})

describe('what a node cannot do it says', () => {
  test.each<[string, Partial<typeof SandboxSpec._zod.input>, RegExp | undefined]>([
    ['nothing special', {}, undefined],
    ['an unknown profile', { seccompProfile: 'mine' }, /no seccomp profile mine/],
    ['a weight of disk access', { limits: { ioWeight: 100 } }, /weigh disk access/],
    ['a CPU that is not there', { limits: { cpuset: '0-1,5' } }, /cpuset names 5/],
    ['CPUs that are', { limits: { cpuset: '0-1' } }, undefined],
    ['a limit above its own', { limits: { ulimits: { nofile: { soft: 1, hard: 9999 } } } }, /nofile limit of 9999/],
    ['a limit within', { limits: { ulimits: { nofile: { soft: 1, hard: 4096 } } } }, undefined],
    ['a limit that it has none of', { limits: { ulimits: { stack: { soft: 1, hard: 1e9 } } } }, undefined],
  ])('%s', (_, more, expected) => {
    const why = impossible(spec(more), unable)
    if (expected) expect(why).toMatch(expected)
    else expect(why).toBeUndefined()
  })

  test('one that may raise limits gives any', () => {
    expect(impossible(spec({ limits: { ulimits: { nofile: { soft: 1, hard: 1e9 } } } }), able)).toBeUndefined()
  })
})
