import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { RunAttempt } from '@berth/contracts'
import { takeInventory } from '@berth/host'
import { afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals'
import { killed, leftOf, newNodeDirectory, nothing, runCommand, TestNode } from './node.fixture.js'
import { holdings } from './recovery.js'

const repository = join(import.meta.dirname, '../../../..')

let place: ReturnType<typeof newNodeDirectory>
let node: TestNode | undefined
let victim: ChildProcess | undefined

// The victim is a real process, so it runs what is built; building what is built already takes a moment.
beforeAll(() => {
  execFileSync(join(repository, 'node_modules/.bin/tsc'), ['-b', 'apps/agent'], { cwd: repository })
})
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

/** Starts an agent that will kill itself at the point, and gives it the command. */
function startVictim(command: RunAttempt, point: string): ChildProcess {
  const script = join(repository, 'apps/agent/dist/sandbox/crash.fixture.js')
  const child = spawn(process.execPath, [script, place.directory, place.cgroupParent, point], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  child.stdin?.end(JSON.stringify(command))
  victim = child
  return child
}

async function crashAt(command: RunAttempt, point: string): Promise<void> {
  const child = startVictim(command, point)
  const [, signal] = await once(child, 'exit')
  expect(signal).toBe('SIGKILL')
}

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; i < 2000; i++) {
    if (await condition()) return
    await delay(5)
  }
  throw new Error(`never: ${what}`)
}

/** Nothing of any attempt is left but what is kept on purpose. */
async function expectNothingHeld(on: TestNode): Promise<void> {
  await until('all archived', async () => (await on.journal.load()).length === 0)
  const held = await holdings(on.shop)
  expect(held).toEqual({ containers: [], layers: [], groups: [] })
  const { directory: dataDir, cgroupParent } = place
  const look = () => takeInventory({ dataDir, cgroupParent, trees: ['agent/attempts', 'agent/runtime'] })
  // The pool may be making a layer ahead just now.
  await until('no process is left', async () => (await look()).processes.length === 0)
  const inventory = await look()
  expect(inventory.trees).toEqual([])
  expect(inventory.mounts).toEqual([`${dataDir}/agent/pool (btrfs)`])
}

const script = 'echo begin; sleep 0.1; echo end; exit 7'

describe('killed at any point, an attempt ends with its true result and leaves nothing', () => {
  const steps = ['layer', 'bundle', 'cgroup', 'container']
  const points = [
    ...steps.flatMap((step) => [`step.acquire ${step}`, `step.acquired ${step}`]),
    'attempt.spawn',
    'attempt.started',
    'attempt.ended',
    'attempt.result',
    ...steps.toReversed().map((step) => `step.release ${step}`),
  ]
  test.each(points)('%s', async (point) => {
    const command = runCommand({ command: ['sh', '-c', script] })
    await crashAt(command, point)
    node = await TestNode.open(place)
    // As the reconciler would, when no answer came.
    await node.supervisor.run(command)
    const result = await node.result(command.attemptId)
    expect(result).toMatchObject({ outcome: 'failed', exitCode: 7, reason: { code: 'exit_nonzero' } })
    expect(await node.output(command.attemptId)).toEqual({ stdout: 'begin\nend\n', stderr: '' })
    await expectNothingHeld(node)
  })

  test('at moments that nobody chose', async () => {
    for (let i = 0; i < 12; i++) {
      const command = runCommand({ command: ['sh', '-c', 'echo begin; echo end; exit 7'] })
      const child = startVictim(command, 'never')
      const exited = once(child, 'exit')
      await once(child.stdout ?? child, 'data')
      await delay(i * 6) // the moment; some come after the end
      child.kill('SIGKILL')
      await exited
      node = await TestNode.open(place)
      await node.supervisor.run(command)
      expect(await node.result(command.attemptId)).toMatchObject({ exitCode: 7 })
      expect((await node.output(command.attemptId)).stdout).toBe('begin\nend\n')
      await expectNothingHeld(node)
      await node.supervisor.close()
    }
  }, 120_000)
})

describe('while the agent is dead', () => {
  test('output goes on, and every byte is there exactly once', async () => {
    const command = runCommand({ command: ['sh', '-c', 'seq 1 400000; echo done >&2'] })
    const child = startVictim(command, 'never')
    const file = join(place.directory, 'agent/attempts', command.attemptId, 'stdout')
    await until('some output', () => existsSync(file) && statSync(file).size > 300_000)
    child.kill('SIGKILL')
    await once(child, 'exit')
    node = await TestNode.open(place)
    expect(await node.result(command.attemptId)).toMatchObject({ outcome: 'succeeded' })
    const { stdout, stderr } = await node.output(command.attemptId)
    expect(stdout.split('\n')).toEqual([...Array.from({ length: 400_000 }, (_, i) => String(i + 1)), ''])
    expect(stderr).toBe('done\n')
  })

  test('input that had not arrived arrives', async () => {
    const stdin = Buffer.from('0123456789'.repeat(40_000))
    const command = runCommand({ command: ['sh', '-c', 'sleep 0.3; cat'], stdin: stdin.toString('base64') })
    await crashAt(command, 'attempt.started')
    node = await TestNode.open(place)
    expect(await node.result(command.attemptId)).toMatchObject({ outcome: 'succeeded' })
    expect((await node.output(command.attemptId)).stdout).toBe(String(stdin))
  })

  test('the timeout is kept', async () => {
    const command = runCommand({ command: ['sleep', '1000'], timeoutMs: 400 })
    await crashAt(command, 'attempt.started')
    const group = `/sys/fs/cgroup/pids/${place.cgroupParent}/${command.tenantId}/${command.attemptId}/pids.current`
    const { readFileSync } = await import('node:fs')
    // Only berth-init is left, and nobody has asked it anything.
    await until('ended by berth-init', () => readFileSync(group, 'utf8').trim() === '1')
    node = await TestNode.open(place)
    const result = await node.result(command.attemptId)
    expect(result).toMatchObject({ outcome: 'timed_out', reason: { code: 'timeout' } })
    expect(result.usage?.wallMs).toBeLessThan(60_000)
  })

  test('a sandbox that vanishes is told as lost, not as run again', async () => {
    const command = runCommand({ command: ['sleep', '1000'] })
    await crashAt(command, 'attempt.started')
    const helper = await TestNode.open(place)
    await helper.supervisor.close()
    await helper.shop.cgroups.kill(`${place.cgroupParent}/${command.tenantId}/${command.attemptId}`)
    node = await TestNode.open(place)
    expect(await node.result(command.attemptId)).toMatchObject({ outcome: 'lost', reason: { code: 'sandbox_lost' } })
    await expectNothingHeld(node)
  })

  test('a cancel that was written down is carried out', async () => {
    const command = runCommand({ command: ['sleep', '1000'], graceMs: 100 })
    await crashAt(command, 'attempt.started')
    const { attemptId, nodeId } = command
    node = await TestNode.open(place)
    await node.supervisor.cancel({ kind: 'cancel', nodeId, attemptId, generation: 2, cause: 'canceled', by: 'key_x' })
    const result = await node.result(attemptId)
    expect(result).toMatchObject({ outcome: 'canceled', generation: 2, reason: { code: 'canceled', by: 'key_x' } })
  })
})

test('what is on nobody’s record is removed', async () => {
  const command = runCommand({ command: ['sleep', '1000'] })
  await crashAt(command, 'attempt.started')
  const { rmSync } = await import('node:fs')
  rmSync(join(place.directory, 'agent/attempts', command.attemptId), { recursive: true })
  node = await TestNode.open(place)
  await expectNothingHeld(node)
  expect(node.results.size).toBe(0)
})
