import { existsSync } from 'node:fs'
import type { ApplySandbox, SandboxId } from '@berth/contracts'
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals'
import { applySandbox, newTenant, nothing, type SandboxInput, type TestNode } from './node.fixture.js'
import { loop, ResidentNode, sh } from './residents.fixture.js'

let on: ResidentNode
let node: TestNode
beforeAll(async () => {
  on = await ResidentNode.open()
  node = on.node
})
afterEach(() => on.clear())
afterAll(async () => {
  expect(await on.destroy()).toEqual(nothing)
  expect(existsSync(on.place.directory)).toBe(false)
})

const stop = (reason: Partial<ApplySandbox['stop']['reason']> = {}, more: Partial<ApplySandbox['stop']> = {}) => ({
  stop: {
    graceMs: null,
    signal: null,
    reason: { code: 'requested', message: 'asked for', by: 'key_2', ...reason },
    ...more,
  } as const,
})

describe('a sandbox', () => {
  test('without a main process runs until it is stopped, and is there again when it is started', async () => {
    const command = await node.up()
    const id = command.sandboxId
    expect((await node.inside(id, 'echo hello > /file; cat /file')).out).toBe('hello\n')
    const stopped = await node.become(command, 'stopped')
    expect(await on.end(id)).toMatchObject({ reason: { code: 'requested', by: 'key_1' }, exitCode: null, signal: null })
    const again = await node.become(stopped, 'running', { run: 2 })
    expect((await node.inside(id, 'cat /file')).out).toBe('hello\n')
    await node.become(again, 'deleted')
    expect(node.residents.get(id)).toBeUndefined()
    await on.until('its directory is gone', () => !existsSync(`${on.place.directory}/agent/sandboxes/${id}`))
  })

  test('tells the timeline of its start', async () => {
    const { sandboxId: id } = await node.up(sh(loop))
    const report = node.told(id)
    for (const key of ['placeMs', 'imageMs', 'rootfsMs', 'startMs', 'readyMs'] as const)
      expect(report?.phases[key]).toBeGreaterThanOrEqual(0)
    expect(report).toMatchObject({ generation: 1, reason: null, phases: { networkMs: null } })
    expect(report?.startedAt).not.toBeNull()
  })

  test('is made but not started where that is not wanted, and its files can be had', async () => {
    const command = applySandbox({}, { desired: 'stopped', run: 0 })
    await node.residents.apply(command)
    expect(await on.stopped(command.sandboxId)).toMatchObject({ run: 0, reason: null, startedAt: null, ends: [] })
    expect((await node.inside(command.sandboxId, 'cat /etc/hostname')).code).toBe(0)
    await node.become(command, 'running', { run: 1 })
  })

  test('has the output and the exit code of its main process kept, and then stays ended', async () => {
    const command = applySandbox(sh('echo out; echo err >&2; exit 3'))
    expect(await on.once(command)).toMatchObject({
      ...{ exitCode: 3, signal: null, oomKilled: false, stdout: 'out\n', stderr: 'err\n' },
      reason: { code: 'exit_nonzero', by: 'sandbox' },
    })
    const { sandboxId: id } = command
    expect(await on.stopped(id)).toMatchObject({ reason: { code: 'exit_nonzero' }, run: 1, restarts: 0 })
    expect((await on.end(id)).usage?.peakMemoryBytes).toBeGreaterThan(100_000)
    const before = node.reports.length
    await node.want(command, { clocksFrom: new Date().toISOString() })
    expect(await on.stopped(id, before)).toMatchObject({ generation: 2, run: 1 })
  })

  test.each<[string, SandboxInput, string, number | null]>([
    ['a command that does not exist', { command: ['no-such'] }, 'command_not_found', 127],
    ['one that is not executable', { command: ['/bin/not-executable'] }, 'command_not_executable', 126],
    ['no such directory', { command: ['true'], workingDir: '/nowhere' }, 'working_dir_not_found', null],
    ['no such user', { command: ['true'], user: 'nobody-here' }, 'user_not_found', null],
    ['no such group', { command: ['true'], groups: ['nothing'] }, 'user_not_found', null],
    ['no such image', { image: 'nothing' }, 'image_not_found', null],
    ['an unknown profile', { command: ['true'], seccompProfile: 'mine' }, 'start_failed', null],
  ])(
    'with %s has failed, and says why',
    async (_, spec, code, exitCode) => {
      const command = applySandbox({ ...spec, restart: { policy: 'always' } })
      await node.residents.apply(command)
      const report = await node.reported(command.sandboxId, ({ state }) => state === 'failed')
      expect(report).toMatchObject({
        phase: code === 'start_failed' ? expect.any(String) : 'stopped',
        reason: { code },
      })
      if (exitCode !== null) expect((await on.end(command.sandboxId)).exitCode).toBe(exitCode)
    },
    60_000,
  )

  test('that failed for its image is made when that is there and it is started again', async () => {
    const command = applySandbox({ image: 'nothing' })
    await node.residents.apply(command)
    await node.reported(command.sandboxId, ({ state }) => state === 'failed')
    await expect(node.residents.lease(command.sandboxId)).rejects.toMatchObject({ code: 'wrong_state' })
    await node.become(command, 'running', { run: 2, spec: { ...command.spec, image: 'busybox' } })
  })
})

describe('the main process', () => {
  test('is what spec and image say, in the environment and directory of both', async () => {
    const script = 'id; pwd; echo $FROM $OWN $HOSTNAME; hostname'
    const spec = { image: 'service', command: [script], runImage: true, env: { OWN: 'spec' }, hostname: 'here' }
    const { stdout } = await on.once(applySandbox(spec))
    expect(stdout.split('\n')).toEqual([
      ...['uid=1000(app) gid=1000(app) groups=2000(extra)', '/tmp', 'image spec here', 'here', ''],
    ])
  })

  test('has the user and the groups that were asked for, of accounts that the sandbox has made itself', async () => {
    const spec = { ...sh('id'), user: '1000:extra', groups: ['root', '77'] }
    const { stdout } = await on.once(applySandbox(spec))
    expect(stdout).toBe('uid=1000(app) gid=2000(extra) groups=0(root),77,2000(extra)\n')
    const command = applySandbox({ command: ['id', '-un'], user: 'late' })
    await node.residents.apply(command)
    await node.reported(command.sandboxId, ({ state }) => state === 'failed')
    await node.inside(command.sandboxId, 'echo late:x:500:500::/:/bin/sh >> /etc/passwd')
    await node.want(command, { run: 2 })
    await on.end(command.sandboxId, 2)
    expect((await node.taped(command.sandboxId, 2)).stdout).toBe('late\n')
  })

  test('may have a terminal', async () => {
    const { stdout } = await on.once(
      applySandbox({ ...sh('test -t 0 && stty size; echo $TERM'), tty: { rows: 33, columns: 99 } }),
    )
    expect(stdout).toBe('33 99\r\nxterm\r\n')
  })

  test('gets signals; without one everything in the sandbox does', async () => {
    const { sandboxId: id } = await node.up(sh(`trap "echo usr" USR1; echo up; ${loop}`))
    await on.says(id, 'up')
    node.residents.signal(id, 10)
    await on.says(id, 'usr')
    const idle = await node.up()
    await using lease = await node.residents.lease(idle.sandboxId)
    const sleeper = node.inside(idle.sandboxId, 'sleep 1000').catch((error: unknown) => error)
    await on.until('it sleeps', async () => (await lease.processes.known()).length >= 0)
    const before = performance.now()
    await on.until('signalled', async () => {
      node.residents.signal(idle.sandboxId, 15)
      return Promise.race([
        sleeper.then(() => true),
        new Promise<boolean>((resolve) => setTimeout(() => resolve(false), 20)),
      ])
    })
    expect(performance.now() - before).toBeLessThan(30_000)
    await expect(async () =>
      node.residents.signal((await node.become(idle, 'stopped')).sandboxId, 15),
    ).rejects.toMatchObject({
      code: 'wrong_state',
    })
  })
})

describe('stopping', () => {
  test('sends the stop signal: of the image, of the spec, of the request', async () => {
    const script =
      'for s in TERM QUIT USR1 USR2; do trap "echo $s; exit 0" $s; done; echo up; while :; do sleep 0.02; done'
    const cases: readonly (readonly [SandboxInput, number | null, string])[] = [
      [sh(script), null, 'TERM'],
      [{ image: 'service', ...sh(script) }, null, 'QUIT'],
      [{ image: 'service', ...sh(script), stopSignal: 'SIGUSR1' }, null, 'USR1'],
      [{ image: 'service', ...sh(script), stopSignal: 'SIGUSR1' }, 12, 'USR2'],
    ]
    await Promise.all(
      cases.map(async ([spec, signal, expected]) => {
        const command = await node.up(spec)
        await on.says(command.sandboxId, 'up')
        await node.become(command, 'stopped', stop({}, { signal }))
        expect(await on.end(command.sandboxId)).toMatchObject({
          exitCode: 0,
          reason: { code: 'requested', by: 'key_2' },
        })
        expect((await node.taped(command.sandboxId)).stdout).toBe(`up\n${expected}\n`)
      }),
    )
  })

  test('kills what will not listen after the grace, its children too', async () => {
    const command = await node.up(sh(`trap "" TERM; setsid sh -c 'trap "" TERM; ${loop}' & echo up; ${loop}`))
    await on.says(command.sandboxId, 'up')
    await node.become(command, 'stopped', stop({}, { graceMs: 200 }))
    expect(await on.end(command.sandboxId)).toMatchObject({ signal: 'SIGKILL', reason: { code: 'requested' } })
  })

  test('is hurried by a second command with a shorter grace, and keeps its first reason', async () => {
    const command = await node.up(sh(`trap "" TERM; echo up; ${loop}`))
    await on.says(command.sandboxId, 'up')
    const slow = await node.want(command, { desired: 'stopped', ...stop({ message: 'first' }, { graceMs: 600_000 }) })
    await node.reported(command.sandboxId, ({ phase }) => phase === 'stopping')
    await node.become(slow, 'stopped', stop({ code: 'killed', message: 'second' }, { graceMs: 0 }))
    expect((await on.end(command.sandboxId)).reason).toMatchObject({ code: 'requested', message: 'first' })
  })

  test('a kill is a stop without grace', async () => {
    const command = await node.up(sh(`trap "echo no" TERM; ${loop}`))
    await node.become(command, 'stopped', stop({ code: 'killed', message: 'killed by SIGKILL' }, { graceMs: 0 }))
    expect(await on.end(command.sandboxId)).toMatchObject({
      signal: 'SIGKILL',
      reason: { code: 'killed', by: 'key_2' },
    })
  })

  test('an idle sandbox tells its processes to end, and kills them after the grace', async () => {
    const command = await node.up()
    const stubborn = node.inside(command.sandboxId, `trap "" TERM; echo > /started; ${loop}`).catch(() => undefined)
    await on.until('it runs', async () => (await node.inside(command.sandboxId, 'test -e /started')).code === 0)
    await node.become(command, 'stopped', stop({}, { graceMs: 300 }))
    await stubborn
    expect(await on.end(command.sandboxId)).toMatchObject({ reason: { code: 'requested' } })
  })

  test('a shell on a terminal does not take its whole grace', async () => {
    const command = await node.up({ command: ['sh', '-i'], tty: { rows: 24, columns: 80 }, stopGraceMs: '1h' })
    await on.until('it ignores SIGTERM', async () => (await node.taped(command.sandboxId)).stdout !== '')
    await node.become(command, 'stopped')
    expect(await on.end(command.sandboxId)).toMatchObject({ reason: { code: 'requested' } })
  })

  test('a start that is not over is broken off, and leaves nothing', async () => {
    for (const pauseMs of [0, 2, 5, 10, 20]) {
      const command = applySandbox(sh(loop))
      await node.residents.apply(command)
      await new Promise((resolve) => setTimeout(resolve, pauseMs))
      await node.become(command, 'stopped')
      expect(node.told(command.sandboxId)).toMatchObject({ run: 1, reason: { code: 'requested' } })
    }
  })

  test('a start that was to stop before it came here is passed over', async () => {
    const command = applySandbox(sh('touch /ran'), { generation: 2, desired: 'stopped', ...stop() })
    await node.residents.apply(command)
    expect(await on.stopped(command.sandboxId)).toMatchObject({
      run: 1,
      reason: { code: 'requested', by: 'key_2' },
      ends: [],
    })
    expect((await node.inside(command.sandboxId, 'test -e /ran')).code).toBe(1)
  })
})

describe('restarting', () => {
  test('by request: the run before is ended, its files stay', async () => {
    const command = await node.up(sh(`echo run >> /runs; echo up; ${loop}`))
    await on.says(command.sandboxId, 'up')
    await node.become(command, 'running', { run: 2, ...stop() })
    await on.says(command.sandboxId, 'up', 2)
    expect(await on.end(command.sandboxId, 1)).toMatchObject({ reason: { code: 'requested', by: 'key_2' } })
    expect((await node.inside(command.sandboxId, 'cat /runs')).out).toBe('run\nrun\n')
  })

  test('by policy, with a back-off, until its retries are spent', async () => {
    const spec = { ...sh('echo run >> /runs; exit 5'), restart: { policy: 'on-failure', maxRetries: 3 } } as const
    const command = applySandbox(spec)
    await node.residents.apply(command)
    const id = command.sandboxId
    const report = await node.reported(id, ({ state, phase }) => state === 'failed' && phase === 'stopped')
    expect(report).toMatchObject({ run: 1, restarts: 3, reason: { code: 'exit_nonzero' } })
    for (const restart of [0, 1, 2, 3]) expect(await on.end(id, 1, restart)).toMatchObject({ exitCode: 5 })
    const waiting = node.reports.filter(({ sandboxId, phase }) => sandboxId === id && phase === 'backing_off')
    for (const { state } of waiting) expect(state).toBe('creating')
    expect((await node.inside(id, 'wc -l < /runs')).out.trim()).toBe('4')
    await node.want(command, { run: 2 })
    await on.end(id, 2, 3)
  })

  test('always, also after a good end; a stop ends the waiting', async () => {
    const command = applySandbox({ ...sh('true'), restart: { policy: 'always' } })
    await node.residents.apply(command)
    await on.end(command.sandboxId, 1, 3)
    await node.become(command, 'stopped', stop())
    expect(await on.stopped(command.sandboxId)).toMatchObject({ reason: { code: 'requested', by: 'key_2' } })
    const ends = node.told(command.sandboxId)?.restarts
    await new Promise((resolve) => setTimeout(resolve, 1000))
    expect(node.told(command.sandboxId)?.restarts).toBe(ends)
  })

  test('not after a stop, and not of what ended well on-failure', async () => {
    const command = await node.up({ ...sh(loop), restart: { policy: 'unless-stopped' } })
    await node.become(command, 'stopped')
    expect(node.told(command.sandboxId)).toMatchObject({ restarts: 0, reason: { code: 'requested' } })
    const good = applySandbox({ ...sh('true'), restart: { policy: 'on-failure' } })
    await node.residents.apply(good)
    expect(await on.stopped(good.sandboxId)).toMatchObject({ restarts: 0, reason: { code: 'completed' } })
  })

  test('a request while it waits starts at once and counts anew', async () => {
    const command = applySandbox({ ...sh('test -e /ok || exit 1; sleep 1000'), restart: { policy: 'always' } })
    await node.residents.apply(command)
    await on.end(command.sandboxId, 1, 4)
    const before = node.reports.length
    await node.want(command, { run: 2 })
    await node.reported(command.sandboxId, ({ run, restarts }) => run === 2 && restarts === 0, before)
  })
})

describe('pausing', () => {
  const counting = 'i=0; while :; do i=$((i+1)); echo $i > /count; done'
  const frozenFor = async (id: SandboxId): Promise<boolean> => {
    const group = node.residents.get(id)?.group ?? ''
    const before = node.shop.cgroups.usage(group)?.cpuUsageUs
    await new Promise((resolve) => setTimeout(resolve, 100))
    return node.shop.cgroups.frozen(group) && node.shop.cgroups.usage(group)?.cpuUsageUs === before
  }

  test('stops every process where it is; resuming lets them go on', async () => {
    const command = await node.up(sh(counting))
    const paused = await node.become(command, 'paused')
    expect(await frozenFor(command.sandboxId)).toBe(true)
    expect(node.told(command.sandboxId)).toMatchObject({ state: 'paused', phase: 'paused' })
    await expect(node.residents.lease(command.sandboxId)).rejects.toMatchObject({ code: 'wrong_state' })
    const resumed = await node.become(paused, 'running')
    const count = async () => Number((await node.inside(command.sandboxId, 'cat /count')).out)
    const first = await count()
    await on.until('it counts on', async () => (await count()) > first)
    expect(resumed.run).toBe(1)
  })

  test('a paused one can be stopped, with its stop signal and grace', async () => {
    const command = await node.up(sh(`trap "echo bye; exit 4" TERM; echo up; ${loop}`))
    await on.says(command.sandboxId, 'up')
    const paused = await node.become(command, 'paused')
    const since = node.reports.length
    await node.become(paused, 'stopped')
    expect(await on.end(command.sandboxId)).toMatchObject({ exitCode: 4, reason: { code: 'requested' } })
    expect((await node.taped(command.sandboxId)).stdout).toBe('up\nbye\n')
    const states = node.reports.slice(since).filter(({ sandboxId }) => sandboxId === command.sandboxId)
    expect(states.map(({ state }) => state)).not.toContain('running')
  })

  test('a paused one can be deleted, and restarted', async () => {
    const doomed = await node.become(await node.up(sh(counting)), 'paused')
    await node.become(doomed, 'deleted', stop({}, { graceMs: 0 }))
    const restarted = await node.become(await node.up(sh(counting)), 'paused')
    await node.become(restarted, 'running', { run: 2, ...stop({}, { graceMs: 0 }) })
  })

  test('may be wanted before it runs', async () => {
    const command = applySandbox(sh(counting), { desired: 'paused' })
    await node.residents.apply(command)
    await node.reported(command.sandboxId, ({ state }) => state === 'paused')
    expect(await frozenFor(command.sandboxId)).toBe(true)
  })
})

describe('commands', () => {
  test('that are repeated change nothing; older ones are dropped', async () => {
    const first = await node.up(sh(loop))
    const second = await node.become(first, 'stopped')
    await node.residents.apply(first)
    await node.residents.apply(second)
    await node.residents.apply(second)
    await new Promise((resolve) => setTimeout(resolve, 50))
    expect(node.told(first.sandboxId)).toMatchObject({ state: 'stopped', generation: 2, run: 1 })
  })

  test('for one that was deleted do not make it anew', async () => {
    const command = await node.up()
    await node.become(command, 'deleted', stop({}, { graceMs: 0 }))
    await on.until('it is forgotten', () => node.residents.get(command.sandboxId) === undefined)
    await node.residents.apply(command)
    expect(node.residents.get(command.sandboxId)).toBeUndefined()
  })

  test('to delete what never came here are answered', async () => {
    const command = applySandbox({}, { desired: 'deleted' })
    await node.residents.apply(command)
    await node.reported(command.sandboxId, ({ state, phase }) => state === 'deleted' && phase === 'removed')
  })

  test('for one that was here before and is not known are answered: it is gone', async () => {
    const command = applySandbox(sh('touch /ran'), { known: true, generation: 7 })
    await node.residents.apply(command)
    await node.reported(command.sandboxId, ({ state, generation }) => state === 'deleted' && generation === 7)
    await on.until('it is forgotten', () => node.residents.get(command.sandboxId) === undefined)
  })

  test('in quick succession end where the last one says', async () => {
    let command = applySandbox(sh(loop))
    await node.residents.apply(command)
    for (let i = 0; i < 30; i++) {
      const desired = (['stopped', 'running', 'paused', 'running'] as const)[i % 4] ?? 'running'
      command = await node.want(command, {
        desired,
        run: command.run + (desired === 'running' ? 1 : 0),
        ...stop({}, { graceMs: 0 }),
      })
      await new Promise((resolve) => setTimeout(resolve, (i * 7) % 23))
    }
    await node.become(command, 'running', { run: command.run + 1, ...stop({}, { graceMs: 0 }) })
    expect((await node.inside(command.sandboxId, 'true')).code).toBe(0)
  }, 120_000)
})

describe('while the API is away', () => {
  test('ends and notes are kept until a report with them was stored', async () => {
    node.apiAway = true
    const command = applySandbox({ ...sh('exit 7'), restart: { policy: 'on-failure', maxRetries: 2 } })
    await node.residents.apply(command)
    const id = command.sandboxId
    await node.reported(id, ({ state, phase }) => state === 'failed' && phase === 'stopped')
    expect(node.residents.report(id)?.ends.map(({ restart }) => restart)).toEqual([0, 1, 2])
    node.apiAway = false
    await node.residents.apply(command)
    await on.until('all were told', () => node.residents.report(id)?.ends.length === 0)
  })

  test('a deletion is told until it was stored', async () => {
    const command = await node.up()
    node.apiAway = true
    await node.become(command, 'deleted', stop({}, { graceMs: 0 }))
    expect(node.residents.standing().map(({ id }) => id)).toContain(command.sandboxId)
    node.apiAway = false
    await node.residents.apply({ ...command, desired: 'deleted', generation: 3 })
    await on.until('it is forgotten', () => node.residents.get(command.sandboxId) === undefined)
  })
})

describe('a companion', () => {
  test('is attached before the main process, detached after the run, and removed with the sandbox', async () => {
    on.tape.attached.length = 0
    const command = await node.up({ ...sh('echo up; sleep 1000') })
    await on.says(command.sandboxId, 'up')
    await node.become(command, 'running', { run: 2, ...stop({}, { graceMs: 0 }) })
    await node.become({ ...command, generation: 2, run: 2, known: true }, 'deleted', stop({}, { graceMs: 0 }))
    const seen = on.tape.attached.filter((what, i, all) => what !== all[i - 1])
    expect(seen).toEqual(['attach 1.0', 'detach 1.0', 'attach 2.0', 'detach 2.0', 'remove'])
  })

  test('that fails holds up nothing', async () => {
    const { tape } = on
    const { attach } = tape
    tape.attach = async () => {
      throw new Error('disk full')
    }
    try {
      expect(await on.once(applySandbox(sh('exit 2')))).toMatchObject({ exitCode: 2 })
    } finally {
      tape.attach = attach
    }
  })
})

test('thirty at once of three tenants, each with its own files and end', async () => {
  const tenants = [newTenant(), newTenant(), newTenant()]
  const commands = Array.from({ length: 30 }, (_, i) =>
    applySandbox(sh(`echo ${i} > /mine; cat /mine; exit ${i}`), { tenantId: tenants[i % 3] ?? newTenant() }),
  )
  const ends = await Promise.all(commands.map((command) => on.once(command)))
  ends.forEach((end, i) => {
    expect(end).toMatchObject({ exitCode: i, stdout: `${i}\n` })
  })
})
