import { existsSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import type { SandboxId, SandboxReport } from '@berth/contracts'
import { takeInventory } from '@berth/host'
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals'
import { applySandbox, newNodeDirectory, Tape, TestNode } from './node.fixture.js'
import { holdings } from './recovery.js'

let node: TestNode
let tape: Tape
const place = newNodeDirectory()
beforeAll(async () => {
  tape = new Tape()
  node = await TestNode.open({ ...place, companions: [tape] })
})
afterEach(async () => {
  for (const { id } of node.residents.standing()) node.residents.discard(id)
  await until('all gone', () => node.residents.standing().length === 0)
  await until('nothing held', async () => Object.values(await holdings(node.shop)).every((held) => held.length === 0))
})
afterAll(async () => {
  await node.destroy()
  const { directory: dataDir, cgroupParent } = place
  const inventory = await takeInventory({ dataDir, cgroupParent })
  expect(inventory).toMatchObject({ processes: [], mounts: [], cgroups: [], loops: [] })
  expect(existsSync(dataDir)).toBe(false)
})

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; i < 6000; i++) {
    if (await condition()) return
    await delay(5)
  }
  throw new Error(`never: ${what}; standing: ${JSON.stringify(node.residents.standing())}`)
}

const loop = 'while :; do sleep 0.02; done'
const sh = (script: string) => ({ command: ['sh', '-c', script] })
const ended = (id: SandboxId, run = 1, restart = 0) =>
  node.reported(id, ({ ends }) => ends.some((end) => end.run === run && end.restart === restart))
const endOf = async (id: SandboxId, run = 1, restart = 0) =>
  (await ended(id, run, restart)).ends.find((end) => end.run === run && end.restart === restart)
const stopped = (id: SandboxId, since = 0) => node.reported(id, ({ state }) => state === 'stopped', since)
const says = (id: SandboxId, text: string) =>
  until(`says ${text}`, async () => (await node.taped(id)).stdout.includes(text))

describe('a sandbox', () => {
  test('without a main process runs until it is stopped, and is there again when it is started', async () => {
    const { sandboxId: id, ...command } = await node.up()
    expect((await node.inside(id, 'echo hello > /file; cat /file')).out).toBe('hello\n')
    const stopping = await node.become({ ...command, sandboxId: id }, 'stopped')
    expect(await endOf(id)).toMatchObject({ reason: { code: 'requested', by: 'key_1' }, exitCode: null, signal: null })
    const again = await node.become(stopping, 'running', { run: 2 })
    expect((await node.inside(id, 'cat /file')).out).toBe('hello\n')
    await node.become(again, 'deleted')
    expect(existsSync(node.residents.get(id)?.directory ?? '')).toBe(false)
  })

  test('tells the timeline of its start', async () => {
    const { sandboxId: id } = await node.up(sh(loop))
    const { phases, startedAt, generation, reason } = node.told(id) as SandboxReport
    for (const key of ['placeMs', 'imageMs', 'rootfsMs', 'startMs', 'readyMs'] as const)
      expect(phases[key]).toBeGreaterThanOrEqual(0)
    expect(phases.networkMs).toBeNull()
    expect(startedAt).not.toBeNull()
    expect([generation, reason]).toEqual([1, null])
  })

  test('is made but not started where that is not wanted, and its files can be had', async () => {
    const command = applySandbox({}, { desired: 'stopped', run: 0 })
    await node.residents.apply(command)
    expect(await stopped(command.sandboxId)).toMatchObject({ run: 0, phase: 'stopped', reason: null, startedAt: null })
    expect((await node.inside(command.sandboxId, 'cat /etc/hostname')).code).toBe(0)
  })

  test('that the node has had and does not have any more is not made anew, without its files', async () => {
    await node.residents.apply(applySandbox({}, { known: true, generation: 3, run: 2 }))
    expect(node.residents.standing()).toEqual([])
  })

  test('has the output and the exit code of its main process kept', async () => {
    const { sandboxId: id } = await node.up(sh('echo out; echo err >&2; read x || exit 1'))
    await says(id, 'out')
    expect(await endOf(id)).toMatchObject({ exitCode: 1, reason: { code: 'exit_nonzero', by: 'sandbox' } })
    expect(await node.taped(id)).toEqual({ stdout: 'out\n', stderr: 'err\n' })
    expect(await stopped(id)).toMatchObject({ phase: 'stopped', reason: { code: 'exit_nonzero' }, run: 1 })
  })
})
