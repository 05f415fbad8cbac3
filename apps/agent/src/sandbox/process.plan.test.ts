import { JobSpec, SandboxSpec } from '@berth/contracts'
import { capabilitiesOf, defaultCapabilities } from '@berth/oci'
import { describe, expect, test } from '@jest/globals'
import type { Identity } from '../runtime/identity.js'
import { spawnFlags } from '../runtime/init-wire.js'
import { environment, processRequest, sandboxCapabilities, sandboxConfinement, spawnRequest } from './process.plan.js'

const root: Identity = { uid: 0, gid: 0, groups: [], home: '/root' }
const app: Identity = { uid: 1000, gid: 1001, groups: [29], home: '/home/app' }
const sandbox = (spec: Partial<typeof SandboxSpec._zod.input> = {}) => SandboxSpec.parse(spec)

test('of a variable that is given more than once the last counts, and each is given once', () => {
  const image = { env: ['PATH=/image', 'A=image', 'B=image', 'no value', '=nameless', 'E=x=y'] }
  expect(environment(image, '/home/app', 'box', { B: 'sandbox', C: 'sandbox' }, { C: 'exec' })).toEqual([
    'PATH=/image',
    'HOME=/home/app',
    'HOSTNAME=box',
    'A=image',
    'B=sandbox',
    'E=x=y',
    'C=exec',
  ])
})

describe('the command of a job', () => {
  const job = JobSpec.parse({ command: ['env'], env: { A: '1' }, limits: { openFiles: 99 }, timeoutMs: '5s' })

  test('is the main process, with the default capabilities for root and none for others', () => {
    const asRoot = spawnRequest(job, { workingDir: '/srv' }, root, 'box')
    expect(asRoot).toMatchObject({
      flags: spawnFlags.main | spawnFlags.noNewPrivs,
      cwd: '/srv',
      argv: ['env'],
      timeoutMs: 5000,
      limits: [
        { resource: 7, soft: 99n, hard: 99n },
        { resource: 4, soft: 0n, hard: 0n },
      ],
    })
    expect(capabilitiesOf(asRoot.capabilities.effective).toSorted()).toEqual([...defaultCapabilities].toSorted())
    const asApp = spawnRequest(job, {}, app, 'box')
    expect(asApp).toMatchObject({ uid: 1000, gid: 1001, groups: [29], cwd: '/' })
    expect(asApp.capabilities).toEqual({ ...asRoot.capabilities, effective: 0n })
  })
})

describe('a process of a sandbox', () => {
  test('has the limits of the sandbox, where none are given 1,024 open files and no core file', () => {
    expect(sandboxConfinement(sandbox()).limits).toEqual([
      { resource: 4, soft: 0n, hard: 0n },
      { resource: 7, soft: 1024n, hard: 1024n },
    ])
    const limits = { ulimits: { nofile: { soft: 5, hard: 6 }, stack: { soft: 7, hard: 8 } } }
    expect(sandboxConfinement(sandbox({ limits })).limits).toEqual([
      { resource: 3, soft: 7n, hard: 8n },
      { resource: 4, soft: 0n, hard: 0n },
      { resource: 7, soft: 5n, hard: 6n },
    ])
  })

  test('may gain privileges only where the sandbox says so, and is killed for memory as it says', () => {
    const plan = {
      command: ['true'],
      env: [],
      workingDir: '/',
      who: root,
      flags: spawnFlags.tty,
      timeoutMs: 0,
      graceMs: 1,
    }
    const confined = (spec: Parameters<typeof sandbox>[0]) =>
      processRequest({ ...plan, confinement: sandboxConfinement(sandbox(spec)), terminal: { rows: 3, columns: 4 } })
    expect(confined({ oomScoreAdj: 9 })).toMatchObject({ oomScoreAdj: 9, rows: 3, columns: 4 })
    expect(confined({}).flags).toBe(spawnFlags.tty | spawnFlags.noNewPrivs)
    expect(confined({ noNewPrivileges: false }).flags).toBe(spawnFlags.tty)
  })

  test.each<[readonly string[], readonly string[], readonly string[]]>([
    [[], [], defaultCapabilities],
    [['NET_RAW'], ['CHOWN'], [...defaultCapabilities.filter((name) => name !== 'CAP_CHOWN'), 'CAP_NET_RAW']],
    [[], ['ALL'], []],
    [['net_raw'], ['ALL'], ['CAP_NET_RAW']],
  ])('adding %j and dropping %j leaves %j', (capAdd, capDrop, left) => {
    const { capAdd: add, capDrop: drop } = sandbox({ capAdd: [...capAdd], capDrop: [...capDrop] })
    expect(capabilitiesOf(sandboxCapabilities({ capAdd: add, capDrop: drop })).toSorted()).toEqual([...left].toSorted())
  })

  test('adding all and dropping one leaves all but that one', () => {
    const left = capabilitiesOf(sandboxCapabilities({ capAdd: ['CAP_ALL'], capDrop: ['CAP_SYS_ADMIN'] }))
    expect(left).toHaveLength(40)
    expect(left).not.toContain('CAP_SYS_ADMIN')
  })
})
