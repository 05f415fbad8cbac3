// An agent that is killed with -9 at any point of the life of a sandbox: the next one goes on from there, nothing runs
// twice, no end is lost, and nothing is left.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { ApplySandbox, type SandboxState } from '@berth/contracts'
import { openCgroups } from '@berth/host'
import { afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals'
import {
  applySandbox,
  killed,
  leftOf,
  newNodeDirectory,
  newTenant,
  nothing,
  type SandboxInput,
  TestNode,
} from './node.fixture.js'
import { clean, holdings } from './recovery.js'
import { loop, sh } from './residents.fixture.js'

const repository = join(import.meta.dirname, '../../../..')

let place: ReturnType<typeof newNodeDirectory>
let node: TestNode | undefined
let victim: ChildProcess | undefined

// The victim is a real process, so it runs what is built; building what is built already takes a moment.
beforeAll(() => {
  execFileSync(join(repository, 'node_modules/.bin/tsc'), ['-b', 'apps/agent'], { cwd: repository })
}, 300_000)
beforeEach(() => {
  place = newNodeDirectory()
})
afterEach(async () => {
  await killed(victim)
  node ??= await TestNode.open(place)
  await node.destroy()
  node = undefined
  expect(await leftOf(place)).toEqual(nothing)
})

type Script = readonly { readonly command: ApplySandbox; readonly until?: SandboxState }[]

function startVictim(script: Script, point: string): ChildProcess {
  const program = join(repository, 'apps/agent/dist/sandbox/crash.fixture.js')
  const child = spawn(process.execPath, [program, place.directory, place.cgroupParent, point], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  child.stdin?.end(JSON.stringify(script))
  victim = child
  return child
}

async function crashAt(script: Script, point: string): Promise<void> {
  const child = startVictim(script, point)
  const [, signal] = await once(child, 'exit')
  expect(signal).toBe('SIGKILL')
}

/** Kills it when its script is over. */
async function crashAfter(script: Script): Promise<void> {
  const child = startVictim(script, 'never')
  let said = ''
  for await (const chunk of child.stdout ?? []) {
    said += String(chunk)
    if (said.includes('done')) break
  }
  child.kill('SIGKILL')
  await once(child, 'exit')
}

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; i < 6000; i++) {
    if (await condition()) return
    await delay(5)
  }
  throw new Error(`never: ${what}; ${JSON.stringify(node?.reports.at(-1))}`)
}

const next = (before: ApplySandbox, change: Partial<ApplySandbox>): ApplySandbox =>
  ApplySandbox.parse({ ...before, known: true, ...change, generation: before.generation + 1 })

/** Deletes it on the node that took over, and looks whether anything is left of it. */
async function deleteWholly(on: TestNode, command: ApplySandbox): Promise<void> {
  const id = command.sandboxId
  await on.residents.apply({
    ...next(command, { desired: 'deleted' }),
    generation: 100,
    stop: { ...command.stop, graceMs: 0 },
  })
  await until('it is forgotten', () => on.residents.get(id) === undefined)
  await until('its directory is gone', () => !existsSync(join(place.directory, 'agent/sandboxes', id)))
  expect(await holdings(on.shop)).toEqual({ containers: [], layers: [], groups: [] })
}

/** Writes what it does into a file, so that a second run of it shows. */
const once7: SandboxInput = sh('echo ran >> /runs; echo begin; sleep 0.1; echo end; exit 7')

describe('killed at any point of a run, its end is told once, with its true exit', () => {
  const points = [
    ...[
      'sandbox.accepted',
      'sandbox.step prepare',
      'step.acquire layer',
      'step.acquired layer',
      'sandbox.reached down',
    ],
    'sandbox.step start',
    ...['bundle', 'cgroup', 'container'].flatMap((step) => [`step.acquire ${step}`, `step.acquired ${step}`]),
    ...['sandbox.spawn', 'sandbox.reached up', 'sandbox.ended'],
    ...['container', 'cgroup', 'bundle'].map((step) => `step.release ${step}`),
  ]
  test.each(points)('%s', async (point) => {
    const command = applySandbox(once7)
    const id = command.sandboxId
    await crashAt([{ command }], point)
    node = await TestNode.open(place)
    await node.residents.apply(command) // as the reconciler would
    const report = await node.reported(id, ({ state, phase }) => state === 'stopped' && phase === 'stopped')
    expect(report).toMatchObject({ run: 1, restarts: 0, reason: { code: 'exit_nonzero' } })
    const ends = node.reports.flatMap(({ ends: told }) => told)
    expect(ends[0]).toMatchObject({ run: 1, restart: 0, exitCode: 7 })
    expect((await node.inside(id, 'cat /runs')).out).toBe('ran\n')
    expect(await node.taped(id)).toEqual({ stdout: 'begin\nend\n', stderr: '' })
    await deleteWholly(node, command)
  })

  test('at moments that nobody chose', async () => {
    for (let i = 0; i < 8; i++) {
      const command = applySandbox(once7)
      const child = startVictim([{ command }], 'never')
      const exited = once(child, 'exit')
      await once(child.stdout ?? child, 'data')
      await delay(i * 14)
      child.kill('SIGKILL')
      await exited
      node = await TestNode.open(place)
      await node.residents.apply(command)
      await node.reported(command.sandboxId, ({ state, phase }) => state === 'stopped' && phase === 'stopped')
      expect((await node.inside(command.sandboxId, 'cat /runs')).out).toBe('ran\n')
      await deleteWholly(node, command)
      await node.residents.close()
      await node.supervisor.close()
    }
  }, 180_000)
})

describe('killed while it ends a sandbox, the next one ends it', () => {
  const stubborn = sh(`trap "" TERM; ${loop}`)
  const points = ['sandbox.wanted', 'sandbox.step stop', 'sandbox.stop', 'sandbox.ended', 'step.release container']
  test.each(points)('stop: %s', async (point) => {
    const command = applySandbox({ ...stubborn, restart: { policy: 'always' } })
    const stop = next(command, { desired: 'stopped', stop: { ...command.stop, graceMs: 300 } })
    await crashAt([{ command, until: 'running' }, { command: stop }], point)
    node = await TestNode.open(place)
    const report = await node.reported(
      command.sandboxId,
      ({ state, phase }) => state === 'stopped' && phase === 'stopped',
    )
    expect(report).toMatchObject({ generation: 2, restarts: 0, reason: { code: 'requested', by: 'key_1' } })
    expect(node.reports.flatMap(({ ends }) => ends)[0]).toMatchObject({
      signal: 'SIGKILL',
      reason: { code: 'requested' },
    })
    await deleteWholly(node, command)
  })

  const removal = [
    'sandbox.step remove',
    'step.release container',
    'step.release layer',
    'sandbox.reached removed',
    'sandbox.removed',
  ]
  test.each(removal)('delete: %s', async (point) => {
    const command = applySandbox()
    const deletion = next(command, { desired: 'deleted', stop: { ...command.stop, graceMs: 0 } })
    await crashAt([{ command, until: 'running' }, { command: deletion }], point)
    node = await TestNode.open(place)
    await node.reported(command.sandboxId, ({ state, phase }) => state === 'deleted' && phase === 'removed')
    await deleteWholly(node, command)
  })

  test.each(['sandbox.step freeze', 'sandbox.reached frozen'])('pause: %s', async (point) => {
    const command = applySandbox(sh(loop))
    await crashAt([{ command, until: 'running' }, { command: next(command, { desired: 'paused' }) }], point)
    node = await TestNode.open(place)
    await node.reported(command.sandboxId, ({ state }) => state === 'paused')
    expect(node.shop.cgroups.frozen(node.residents.get(command.sandboxId)?.group ?? '')).toBe(true)
    await node.residents.apply({ ...next(command, { desired: 'running' }), generation: 9 })
    await node.reported(command.sandboxId, ({ state, generation }) => state === 'running' && generation === 9)
    expect((await node.inside(command.sandboxId, 'echo alive')).out).toBe('alive\n')
    await deleteWholly(node, command)
  })

  test('resume: sandbox.step thaw', async () => {
    const command = applySandbox(sh(loop))
    const paused = next(command, { desired: 'paused' })
    const script = [
      { command, until: 'running' },
      { command: paused, until: 'paused' },
      { command: next(paused, { desired: 'running' }) },
    ] as const
    await crashAt(script, 'sandbox.step thaw')
    node = await TestNode.open(place)
    await node.reported(command.sandboxId, ({ state, generation }) => state === 'running' && generation === 3)
    expect((await node.inside(command.sandboxId, 'echo alive')).out).toBe('alive\n')
    await deleteWholly(node, command)
  })
})

describe('while the agent is dead', () => {
  test('fifty sandboxes run on: the next one adopts all of them, and nobody notices', async () => {
    const tenants = [newTenant(), newTenant(), newTenant()]
    // Ten end while nobody looks, ten are paused, the others count.
    const commands = Array.from({ length: 50 }, (_, i) => {
      const script =
        i < 10
          ? `trap "echo bye; exit ${i + 1}" USR1; echo up; ${loop}`
          : 'trap "echo told; exit 0" TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done'
      const limits = { memoryBytes: '32m', cpus: 0.1 }
      return applySandbox({ ...sh(script), limits }, { tenantId: tenants[i % 3] ?? newTenant() })
    })
    const paused = commands.slice(10, 20).map((command) => next(command, { desired: 'paused' }))
    await crashAfter([
      ...commands.slice(10).map((command) => ({ command, until: 'running' }) as const),
      ...paused.map((command) => ({ command, until: 'paused' }) as const),
      ...commands.slice(0, 10).map((command) => ({ command, until: 'running' }) as const),
    ])
    const said = ({ sandboxId }: ApplySandbox) => join(place.directory, 'agent/sandboxes', sandboxId, 'log/1-0.stdout')
    await until('they are up', () => commands.slice(0, 10).every((command) => existsSync(said(command))))
    const cgroups = openCgroups()
    const pidsOf = ({ tenantId, sandboxId }: ApplySandbox) =>
      cgroups.processes(`${place.cgroupParent}/${tenantId}/${sandboxId}`)
    const initOf = (command: ApplySandbox) =>
      pidsOf(command).find((pid) => /^NSpid:.*\t1$/m.test(readFileSync(`/proc/${pid}/status`, 'utf8')))
    const before = commands.slice(10).map(initOf)
    // berth-init passes it on to the main process.
    const leaving = commands.slice(0, 10)
    for (const command of leaving) process.kill(initOf(command) ?? process.pid, 'SIGUSR1')
    await until('ten have ended', () => leaving.every((command) => pidsOf(command).length === 1))

    node = await TestNode.open(place)
    for (const [i, command] of leaving.entries()) {
      const report = await node.reported(command.sandboxId, ({ ends }) => ends.length > 0)
      expect(report.ends[0]).toMatchObject({ exitCode: i + 1, reason: { code: 'exit_nonzero' } })
      expect((await node.taped(command.sandboxId)).stdout).toBe('up\nbye\n')
    }
    for (const command of paused) {
      expect(node.told(command.sandboxId)).toMatchObject({ state: 'paused', restarts: 0 })
      await node.residents.apply(next(command, { desired: 'running' }))
    }
    for (const command of commands.slice(10)) await node.reported(command.sandboxId, ({ state }) => state === 'running')
    expect(commands.slice(10).map(initOf)).toEqual(before)
    for (const command of commands.slice(10, 15)) {
      await node.residents.apply({ ...next(command, { desired: 'stopped' }), generation: 9 })
      const end = await node.reported(command.sandboxId, ({ ends }) => ends.length > 0)
      expect(end.ends[0]).toMatchObject({ exitCode: 0, reason: { code: 'requested' } })
      const { stdout } = await node.taped(command.sandboxId)
      const counted = stdout.trim().split('\n')
      expect(counted.pop()).toBe('told')
      expect(counted).toEqual(counted.map((_, n) => String(n + 1)))
    }
    for (const command of commands) node.residents.discard(command.sandboxId)
    const there = node
    await until('all are gone', () => commands.every(({ sandboxId }) => there.residents.get(sandboxId) === undefined))
    expect(await holdings(node.shop)).toEqual({ containers: [], layers: [], groups: [] })
  }, 240_000)

  test('one whose container is gone (a reboot) is lost, or starts again by its policy with its files', async () => {
    const plain = applySandbox(sh(`echo a > /file; echo up; ${loop}`))
    const always = applySandbox({
      ...sh(`test -e /file && echo again; echo a > /file; ${loop}`),
      restart: { policy: 'always' },
    })
    await crashAfter([
      { command: plain, until: 'running' },
      { command: always, until: 'running' },
    ])
    const helper = await TestNode.open({ ...place, companions: [] })
    await until('files', async () => (await helper.inside(always.sandboxId, 'test -e /file')).code === 0)
    await Promise.all([helper.residents.close(), helper.supervisor.close()])
    for (const { tenantId, sandboxId } of [plain, always])
      await helper.shop.cgroups.kill(`${place.cgroupParent}/${tenantId}/${sandboxId}`)
    node = await TestNode.open(place)
    const lost = await node.reported(plain.sandboxId, ({ state, phase }) => state === 'stopped' && phase === 'stopped')
    expect(lost).toMatchObject({ reason: { code: 'sandbox_lost' }, run: 1 })
    const again = await node.reported(always.sandboxId, ({ state, restarts }) => state === 'running' && restarts === 1)
    expect(again.run).toBe(1)
    await until('its files are there', async () => (await node?.taped(always.sandboxId, 1, 1))?.stdout === 'again\n')
    expect((await node.inside(plain.sandboxId, 'cat /file')).out).toBe('a\n')
  }, 120_000)

  test('a clock that ran out is kept as soon as it is back', async () => {
    const command = applySandbox({ ...sh(loop), clocks: { maxLifetimeMs: 1500 } })
    await crashAfter([{ command, until: 'running' }])
    await delay(1500)
    node = await TestNode.open(place)
    await node.reported(command.sandboxId, ({ reason }) => reason?.code === 'lifetime_over')
  })

  test('a hidden container is a leftover', async () => {
    const command = applySandbox({}, { desired: 'stopped', run: 0 })
    await crashAfter([{ command, until: 'stopped' }])
    const first = await TestNode.open({ ...place, companions: [] })
    await first.residents.lease(command.sandboxId)
    expect((await holdings(first.shop)).containers).toEqual([command.sandboxId])
    await Promise.all([first.residents.close(), first.supervisor.close()])
    node = await TestNode.open(place)
    await until('it is gone', async () => (await holdings((node ?? first).shop)).containers.length === 0)
    expect(node.told(command.sandboxId)).toMatchObject({ state: 'stopped', ends: [] })
  })
})

test('a node that is cleaned keeps the files of sandboxes, which then are lost or start again', async () => {
  const command = applySandbox({
    ...sh(`test -e /file && echo again; touch /file; echo up; ${loop}`),
    restart: { policy: 'always' },
  })
  const first = await TestNode.open(place)
  await first.residents.apply(command)
  await until('up', async () => (await first.taped(command.sandboxId)).stdout.includes('up'))
  await Promise.all([first.residents.close(), first.supervisor.close()])
  await clean(first.shop, [command.sandboxId])
  expect(await holdings(first.shop)).toEqual({ containers: [], layers: [command.sandboxId], groups: [] })
  node = await TestNode.open(place)
  const there = node
  await until('again', async () => (await there.taped(command.sandboxId, 1, 1)).stdout.startsWith('again\n'))
})

test('what is on nobody’s record is removed, and a sandbox whose command was not whole is not there', async () => {
  const command = applySandbox(sh(loop))
  await crashAfter([{ command, until: 'running' }])
  const { rmSync } = await import('node:fs')
  rmSync(join(place.directory, 'agent/sandboxes', command.sandboxId, 'sandbox.json'))
  rmSync(join(place.directory, 'agent/sandboxes', command.sandboxId, 'journal'))
  node = await TestNode.open(place)
  const there = node
  await until('nothing is held', async () => (await holdings(there.shop)).groups.length === 0)
  expect(node.residents.standing()).toEqual([])
  expect(existsSync(join(place.directory, 'agent/sandboxes', command.sandboxId))).toBe(false)
})
