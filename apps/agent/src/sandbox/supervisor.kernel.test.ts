import { existsSync } from 'node:fs'
import { buffer } from 'node:stream/consumers'
import { setTimeout as delay } from 'node:timers/promises'
import type { AttemptId, CancelAttempt, JobSpec } from '@berth/contracts'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { attemptOutput } from '../streams.js'
import { leftOf, newNodeDirectory, newTenant, nothing, runCommand, TestNode } from './node.fixture.js'
import { holdings } from './recovery.js'

let node: TestNode
const readStdout = (attemptId: AttemptId, since: number, follow: boolean) =>
  attemptOutput(node, { attemptId, stream: 'stdout', since, follow }, new AbortController().signal)
const place = newNodeDirectory()
beforeAll(async () => {
  node = await TestNode.open(place)
})
afterAll(async () => {
  await until('all archived', async () => (await node.journal.load()).length === 0)
  expect(await holdings(node.shop)).toEqual({ containers: [], layers: [], groups: [] })
  await node.destroy()
  expect(await leftOf(place)).toEqual(nothing)
  expect(existsSync(place.directory)).toBe(false)
})

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; i < 2000; i++) {
    if (await condition()) return
    await delay(5)
  }
  throw new Error(`never: ${what}; standing: ${JSON.stringify(node.supervisor.standing())}`)
}

const MiB = 1024 ** 2
const limits: JobSpec['limits'] = {
  memoryBytes: 64 * MiB,
  cpus: 2,
  pids: 32,
  diskBytes: 16 * MiB,
  shmBytes: 8 * MiB,
  openFiles: 64,
  outputBytes: 4 * MiB,
}
const sh = (script: string, more: Partial<JobSpec> = {}): Partial<JobSpec> => ({
  command: ['sh', '-c', script],
  limits,
  ...more,
})
const cancelOf = (attemptId: AttemptId, cause: CancelAttempt['cause'] = 'canceled'): CancelAttempt => ({
  ...runCommand({}),
  kind: 'cancel',
  attemptId,
  generation: 2,
  cause,
  by: 'key_1',
})
const started = (id: AttemptId) => until('started', () => node.started.some((report) => report.attemptId === id))

describe('a command', () => {
  test('has its output, exit code and usage told, streams apart', async () => {
    const result = await node.run(sh('echo out; echo err >&2; exit 3'))
    expect(result).toMatchObject({ outcome: 'failed', exitCode: 3, signal: null, stdout: 'out\n', stderr: 'err\n' })
    expect(result.usage).toMatchObject({ stdout: { bytes: 4, keptBytes: 4, truncated: false }, stderr: { bytes: 4 } })
    expect(result.usage?.peakMemoryBytes).toBeGreaterThan(100_000)
    const { placeMs: _, ...phases } = result.phases
    for (const ms of Object.values(phases)) expect(ms).toBeGreaterThanOrEqual(0)
  })

  test.each([0, 1, 2, 125, 126, 127, 128, 137, 255])('exit code %i', async (code) => {
    expect(await node.run(sh(`exit ${code}`))).toMatchObject({ exitCode: code, oomKilled: false })
  })

  test.each<[string, Partial<JobSpec>, string, number | null]>([
    ['does not exist', { command: ['no-such-program'] }, 'command_not_found', 127],
    ['is not executable', { command: ['/bin/not-executable'] }, 'command_not_executable', 126],
    ['is a directory', { command: ['/bin'] }, 'command_not_executable', 126],
    ['has no working directory', { command: ['true'], workingDir: '/nowhere' }, 'working_dir_not_found', null],
    ['has no such user', { command: ['true'], user: 'nobody-here' }, 'user_not_found', null],
    ['has no image', { command: ['true'], image: 'nothing' }, 'image_not_found', null],
  ])('that %s', async (_, spec, code, exitCode) => {
    expect(await node.run(spec)).toMatchObject({ outcome: 'failed', exitCode, reason: { code } })
  })

  test('gets its arguments and environment as they are', async () => {
    const strange = ['a b', '$(id)', '`id`', '"\'\\', 'line\nbreak', 'é✓', '; rm -rf /', '-n', '']
    const result = await node.run({ command: ['printf', '<%s>', ...strange], env: { A: strange.join('|') } })
    expect(result.stdout).toBe(strange.map((text) => `<${text}>`).join(''))
    const env = await node.run({
      command: ['sh', '-c', 'printf %s "$A"; printf "|%s|%s" "$HOME" "$PATH"'],
      env: { A: strange.join('|') },
    })
    expect(env.stdout).toBe(`${strange.join('|')}|/root|/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`)
  })

  test('gets its input, whole, and its end', async () => {
    const input = Buffer.from(Array.from({ length: 1_000_000 }, (_, i) => (i * 7919) % 251))
    const result = await node.run({ command: ['sh', '-c', 'cat | wc -c; cat'], stdin: input.toString('base64') })
    expect(result.stdout.trim()).toBe('1000000')
  })

  test('that leaves its input unread ends nevertheless', async () => {
    const result = await node.run({ command: ['true'], stdin: Buffer.alloc(3 * MiB).toString('base64') })
    expect(result.outcome).toBe('succeeded')
  })

  test('runs as another user without any capability', async () => {
    const script = 'id; grep -E "CapEff|NoNewPrivs|Seccomp:" /proc/self/status'
    const result = await node.run(sh(script, { user: 'app' }))
    expect(result.stdout).toContain(
      'uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)'.replace('1000(app),', ''),
    )
    expect(result.stdout).toMatch(/CapEff:\s0{16}/)
    expect(result.stdout).toMatch(/NoNewPrivs:\s1/)
    expect(result.stdout).toMatch(/Seccomp:\s2/)
  })

  test('sees itself alone, under its own name', async () => {
    const result = await node.run(
      sh('hostname; ls /proc | grep -c "^[0-9]"; cat /etc/hosts; ls /sys/class/net', { hostname: 'here' }),
    )
    const [hostname, processes, ...rest] = result.stdout.trim().split('\n')
    expect(hostname).toBe('here')
    expect(Number(processes)).toBeLessThan(6)
    expect(rest.join('\n')).toContain('127.0.1.1\there')
    expect(rest.at(-1)).toBe('lo')
  })

  test('leaves nothing behind for the next one of its tenant', async () => {
    const tenant = newTenant()
    await node.run(sh('echo secret > /tmp/x; echo secret > /dev/shm/x'), tenant)
    expect((await node.run(sh('cat /tmp/x /dev/shm/x'), tenant)).stdout).toBe('')
  })
})

describe('limits', () => {
  test('memory: told apart from a kill', async () => {
    const hog = await node.run(sh('a=x; while :; do a=$a$a; done'))
    expect(hog).toMatchObject({ outcome: 'failed', oomKilled: true, signal: 'SIGKILL', reason: { code: 'oom_killed' } })
    expect(hog.usage?.peakMemoryBytes).toBeLessThanOrEqual(limits.memoryBytes)
    const killed = await node.run(sh('kill -9 $$'))
    expect(killed).toMatchObject({ oomKilled: false, signal: 'SIGKILL', reason: { code: 'signaled' } })
  })

  test('/dev/shm has its own size, and counts as memory', async () => {
    const full = await node.run(sh('dd if=/dev/zero of=/dev/shm/x bs=1M count=20; wc -c < /dev/shm/x'))
    expect(full.stdout).toBe(`${limits.shmBytes}\n`)
    const large = { ...limits, shmBytes: 256 * MiB }
    const hog = await node.run(sh('dd if=/dev/zero of=/dev/shm/x bs=1M count=200', { limits: large }))
    expect(hog).toMatchObject({ oomKilled: true, reason: { code: 'oom_killed' } })
  })

  test('disk', async () => {
    const result = await node.run(sh('dd if=/dev/zero of=/x bs=1M count=64 && sync'))
    expect(result.exitCode).toBe(1)
    expect(result.stderr).toMatch(/quota exceeded|no space left/i)
  })

  test('processes', async () => {
    const result = await node.run(sh('for i in $(seq 60); do sleep 5 & done; wait', { timeoutMs: 10_000 }))
    expect(result.stderr).toMatch(/can't fork|Resource temporarily unavailable/)
  })

  test('open files', async () => {
    expect((await node.run(sh('ulimit -n; ulimit -c'))).stdout).toBe('64\n0\n')
  })

  test('time, also of one that will not listen', async () => {
    const meek = await node.run(sh('sleep 100', { timeoutMs: 150 }))
    expect(meek).toMatchObject({ outcome: 'timed_out', signal: 'SIGTERM', reason: { code: 'timeout' } })
    const stubborn = await node.run(sh('trap "" TERM; while :; do sleep 0.05; done', { timeoutMs: 1000, graceMs: 150 }))
    expect(stubborn).toMatchObject({ outcome: 'timed_out', signal: 'SIGKILL', reason: { code: 'timeout' } })
  })

  test('output is cut, counted, and never in the way', async () => {
    const result = await node.run(sh('yes | head -c 20000000; echo over >&2'))
    expect(result).toMatchObject({ outcome: 'succeeded', stderr: 'over\n' })
    expect(result.usage?.stdout).toEqual({ bytes: 20_000_000, keptBytes: 4 * MiB, truncated: true })
    expect(result.usage?.stderr.truncated).toBe(false)
    expect(result.stdout).toHaveLength(4 * MiB)
  })

  test('a daemon does not outlive the command', async () => {
    const result = await node.run(sh('setsid sh -c "sleep 1000" & setsid setsid sleep 1000 & exit 0'))
    expect(result).toMatchObject({ outcome: 'succeeded', exitCode: 0 })
  })

  test('bytes that are no text arrive as they are', async () => {
    const command = runCommand(sh("printf '\\377\\376\\000\\001'"))
    await node.supervisor.run(command)
    await node.result(command.attemptId)
    expect(await buffer(readStdout(command.attemptId, 0, false))).toEqual(Buffer.from([0xff, 0xfe, 0, 1]))
  })
})

describe('commands of the API', () => {
  test('a repeat changes nothing and repeats the report', async () => {
    const command = runCommand(sh('echo once; sleep 0.2'))
    await Promise.all([node.supervisor.run(command), node.supervisor.run(command)])
    await started(command.attemptId)
    const before = node.started.length
    await node.supervisor.run(command)
    expect(node.started).toHaveLength(before + 1)
    await node.result(command.attemptId)
    await until('archived', () => node.journal.hasEnded(command.attemptId))
    node.results.delete(command.attemptId)
    await node.supervisor.run(command)
    expect((await node.result(command.attemptId)).outcome).toBe('succeeded')
    expect((await node.output(command.attemptId)).stdout).toBe('once\n')
  })

  test('cancel ends what runs', async () => {
    const command = runCommand(sh('trap "echo bye; exit 0" TERM; echo hi; while :; do sleep 0.02; done'))
    await node.supervisor.run(command)
    await started(command.attemptId)
    await until('trapping', async () => (await node.output(command.attemptId)).stdout === 'hi\n')
    await node.supervisor.cancel(cancelOf(command.attemptId))
    const result = await node.result(command.attemptId)
    expect(result).toMatchObject({ outcome: 'canceled', generation: 2, reason: { code: 'canceled', by: 'key_1' } })
    expect((await node.output(command.attemptId)).stdout).toBe('hi\nbye\n')
  })

  test('cancel ends what will not listen, after its grace', async () => {
    const command = runCommand(sh('trap "" TERM; while :; do sleep 0.02; done', { graceMs: 200 }))
    await node.supervisor.run(command)
    await started(command.attemptId)
    await node.supervisor.cancel(cancelOf(command.attemptId, 'deadline_exceeded'))
    const result = await node.result(command.attemptId)
    expect(result).toMatchObject({ outcome: 'timed_out', signal: 'SIGKILL', reason: { code: 'deadline_exceeded' } })
  })

  test.each([0, 1, 3, 6, 10, 15, 25])('cancel after %i ms of a start leaves no half-made sandbox', async (ms) => {
    const command = runCommand(sh('sleep 1000', { graceMs: 50 }))
    await node.supervisor.run(command)
    await delay(ms)
    await node.supervisor.cancel(cancelOf(command.attemptId))
    expect(await node.result(command.attemptId)).toMatchObject({ outcome: 'canceled' })
  })

  test('cancel before its command is remembered', async () => {
    const command = runCommand(sh('echo never'))
    await node.supervisor.cancel(cancelOf(command.attemptId))
    expect(await node.result(command.attemptId)).toMatchObject({ outcome: 'canceled', generation: 2, usage: null })
    await node.supervisor.run(command)
    expect(node.supervisor.standing().map(({ id }) => id)).not.toContain(command.attemptId)
    expect((await node.output(command.attemptId)).stdout).toBe('')
  })

  test('forget drops what is kept; a later command would be a new one', async () => {
    const { attemptId } = await node.run(sh('echo kept'))
    await until('archived', () => node.journal.hasEnded(attemptId))
    await node.supervisor.forget({ attemptId })
    expect(node.journal.locate(attemptId)).toBeUndefined()
  })

  test('what nobody wants any more ends without a word', async () => {
    const command = runCommand(sh('sleep 1000'))
    await node.supervisor.run(command)
    await started(command.attemptId)
    await node.supervisor.discard(command.attemptId)
    await until('gone', () => node.journal.locate(command.attemptId) === undefined)
    expect(node.results.has(command.attemptId)).toBe(false)
  })
})

test('a follower reads along from the start to the end', async () => {
  const command = runCommand(sh('for i in 1 2 3 4 5; do echo $i; sleep 0.03; done'))
  await node.supervisor.run(command)
  expect(String(await buffer(readStdout(command.attemptId, 2, true)))).toBe('2\n3\n4\n5\n')
})

test('forty at once, each with its own result', async () => {
  const tenants = [newTenant(), newTenant(), newTenant()]
  const jobs = Array.from({ length: 40 }, (_, i) => node.run(sh(`echo ${i}; exit ${i}`), tenants[i % 3]))
  const results = await Promise.all(jobs)
  results.forEach((result, i) => {
    expect(result).toMatchObject({ exitCode: i, stdout: `${i}\n` })
  })
})
