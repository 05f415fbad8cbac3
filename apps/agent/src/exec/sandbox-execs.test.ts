import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ExecId, ExecSpec, SandboxSpec } from '@berth/contracts'
import { createLogger } from '@berth/telemetry'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { UserNotFound } from '../runtime/identity.js'
import { ScriptedDriver } from './exec.fixture.js'
import { execRequest } from './exec.plan.js'
import { type ExecHome, type ExecLimits, SandboxExecs } from './sandbox-execs.js'

let root: string
let driver: ScriptedDriver
let execs: SandboxExecs
let occupied: number
let oomKills: number

const accounts = { passwd: 'root:x:0:0::/root:/bin/sh\n', group: '' }
const place = { spec: SandboxSpec.parse({}), image: {}, hostname: 'box', ids: 65_536 }
const directory = () => join(root, 'execs')
const home = (limits: Partial<ExecLimits> = {}): ExecHome => ({
  directory: directory(),
  memoryBytes: 1000,
  log: createLogger({ name: 'test', level: 'silent' }),
  occupy: () => {
    occupied += 1
    return () => {
      occupied -= 1
    }
  },
  oomKills: () => oomKills,
  limits,
})
const run = () => ({ driver, plan: (spec: ExecSpec) => execRequest(spec, place, accounts) })

async function open(adopted = false, limits: Partial<ExecLimits> = {}): Promise<void> {
  execs = SandboxExecs.open(home(limits))
  execs.attach(run(), adopted)
}

/** kill -9 of the agent, and the next one. */
async function restart(limits: Partial<ExecLimits> = {}): Promise<void> {
  await kill()
  await open(true, limits)
}

async function kill(): Promise<void> {
  const closed = execs.close()
  driver.desert()
  await closed
}

beforeEach(async () => {
  root = mkdtempSync(join(tmpdir(), 'berth-execs-'))
  driver = new ScriptedDriver()
  occupied = 0
  oomKills = 0
  await open()
})
afterEach(async () => {
  await execs.close()
  rmSync(root, { recursive: true })
})

const spec = (more: Partial<Parameters<typeof ExecSpec.parse>[0] & object> = {}) =>
  ExecSpec.parse({ command: ['true'], ...more })
const exec = (id: string) => ExecId.parse(id)
const view = (id: ExecId) => execs.use(id, async (session) => session.view())
const output = (id: ExecId) => execs.use(id, async (session) => (await session.viewWithOutput()).output)
const ended = (id: ExecId) => execs.use(id, (session) => session.ended)
const onDisk = () => readFileSync(join(directory(), 'records'), 'utf8')
const settled = () => new Promise((resolve) => setTimeout(resolve, 5))
async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  for (const end = Date.now() + 20_000; !(await holds()); await settled())
    if (Date.now() > end) throw new Error(`not in time: ${what}`)
}
/** Directories of output. */
const files = () => readdirSync(directory()).filter((name) => name !== 'records')

describe('starting', () => {
  test('an exec is on disk before it is started, and told once it runs', async () => {
    driver.prompt = false
    let before = ''
    driver.onStart = () => {
      before = onDisk()
    }
    const id = execs.start(spec({ env: { SECRET: 'sesame' } }))
    expect(before).toContain(id)
    expect(before).not.toContain('sesame')
    expect(driver.newest.spawn?.env).toContain('SECRET=sesame')
    let started = false
    const waiting = execs
      .use(id, (session) => session.started())
      .then(() => {
        started = true
      })
    await settled()
    expect(started).toBe(false)
    driver.newest.start()
    await waiting
    expect(await view(id)).toMatchObject({ id, state: 'running', pid: 40, endedAt: null, exitCode: null })
    expect(occupied).toBe(1)
  })

  test('the same request again finds the first one, whatever became of it; another one is refused', async () => {
    const first = execs.start(spec({ id: 'one', env: { A: '1', B: '2' } }))
    expect(execs.start(spec({ id: 'one', env: { B: '2', A: '1' } }))).toBe(first)
    expect(driver.processes.size).toBe(1)
    expect(() => execs.start(spec({ id: 'one', env: { A: '1' } }))).toThrow(
      expect.objectContaining({ code: 'id_taken' }),
    )
    driver.newest.exit()
    await ended(first)
    await restart()
    expect(execs.start(spec({ id: 'one', env: { A: '1', B: '2' } }))).toBe(first)
    expect(driver.processes.size).toBe(1)
    // An id that the agent chose says nothing about what was asked for.
    const chosen = execs.start(spec())
    expect(() => execs.start(spec({ id: chosen }))).toThrow(expect.objectContaining({ code: 'id_taken' }))
  })

  test('more than may run are refused, and there is room again when one has ended', async () => {
    await restart({ running: 2 })
    const [first] = [execs.start(spec()), execs.start(spec())]
    expect(() => execs.start(spec())).toThrow(expect.objectContaining({ code: 'quota_exceeded' }))
    driver.processes.get(2)?.exit()
    await ended(first)
    await settled()
    execs.start(spec())
  })

  test('arguments of what runs are bounded together', async () => {
    await restart({ runningBytes: 1000 })
    const large = { command: ['echo', 'x'.repeat(600)] }
    execs.start(spec(large))
    expect(() => execs.start(spec(large))).toThrow(
      expect.objectContaining({ data: expect.objectContaining({ asked: 604 }) }),
    )
    execs.start(spec())
  })

  test('a user that is not known makes an exec that failed, not an error', async () => {
    const id = execs.start(spec({ user: 'nobody' }))
    await ended(id)
    expect(await view(id)).toMatchObject({ state: 'failed', exitCode: null, message: expect.stringMatching(/nobody/) })
    expect(driver.processes.size).toBe(0)
    expect(new UserNotFound('x')).toBeInstanceOf(Error)
  })

  test('where the sandbox does not run nothing does', async () => {
    await execs.detach()
    expect(() => execs.start(spec())).toThrow(expect.objectContaining({ code: 'wrong_state' }))
  })
})

describe('the end', () => {
  test('is told after the last output, and what it took', async () => {
    const id = execs.start(spec())
    driver.newest.write('stdout', 'out')
    driver.newest.write('stderr', 'err\n')
    driver.newest.exit({ exitCode: 3 })
    await ended(id)
    expect(await view(id)).toMatchObject({
      state: 'exited',
      exitCode: 3,
      signal: null,
      timedOut: false,
      oomKilled: false,
      message: null,
      usage: { wallMs: 3, cpuMs: 1, peakMemoryBytes: 2 },
      stdout: { bytes: 3, from: 0 },
      stderr: { bytes: 4, from: 0 },
    })
    expect(await output(id)).toMatchObject({
      stdout: { data: 'out', encoding: 'utf8', truncated: false },
      stderr: { data: 'err\n' },
    })
    expect(occupied).toBe(0)
    await settled()
    expect(driver.newest.forgotten).toBe(true)
  })

  test.each([
    ['a timeout', { signal: 15, cause: 'timeout' }, { timedOut: true, signal: 'SIGTERM', message: /timeout of 7 ms/ }],
    ['a signal', { signal: 11 }, { timedOut: false, signal: 'SIGSEGV', message: null }],
    ['the sandbox', { signal: 9, cause: 'shutdown' }, { signal: 'SIGKILL', message: /sandbox ended/ }],
  ] as const)('by %s is told as such', async (_, exit, told) => {
    const id = execs.start(spec({ timeoutMs: 7 }))
    driver.newest.exit({ exitCode: undefined, ...exit })
    await ended(id)
    const message = told.message === null ? null : expect.stringMatching(told.message)
    expect(await view(id)).toMatchObject({ state: 'exited', exitCode: null, ...told, message })
  })

  test('by SIGKILL while memory ran out is told as that; once, and not of an exit of its own', async () => {
    const killed = async () => {
      const id = execs.start(spec())
      driver.newest.exit({ exitCode: undefined, signal: 9 })
      await ended(id)
      return (await view(id)).oomKilled
    }
    expect(await killed()).toBe(false)
    oomKills = 1
    const id = execs.start(spec())
    driver.newest.exit({ exitCode: 1 })
    await ended(id)
    expect(await view(id)).toMatchObject({ oomKilled: false })
    expect(await killed()).toBe(true)
    expect(await killed()).toBe(false)
  })

  test.each([
    ['exec', 2, 127],
    ['exec', 13, 126],
    ['cwd', 2, null],
  ] as const)('that never began at stage %s with errno %i has exit code %p', async (stage, errno, exitCode) => {
    const id = execs.start(spec())
    driver.newest.finish({ kind: 'failed', stage, errno })
    await ended(id)
    expect(await view(id)).toMatchObject({ state: 'failed', exitCode, message: expect.any(String), usage: null })
  })

  test('does not wait for what is left behind, which may write on', async () => {
    const id = execs.start(spec())
    driver.newest.held = true
    driver.newest.write('stdout', 'before ')
    driver.newest.exit()
    await ended(id)
    await settled()
    expect(driver.newest.forgotten).toBe(false)
    expect(await output(id)).toMatchObject({ stdout: { data: 'before ' } })
    driver.newest.write('stdout', 'after')
    driver.newest.release()
    await until('it is forgotten', () => driver.newest.forgotten)
    expect(await output(id)).toMatchObject({ stdout: { data: 'before after' } })
    expect(await view(id)).toMatchObject({ state: 'exited', stdout: { bytes: 12 } })
  })

  test('of the sandbox makes what runs lost', async () => {
    const id = execs.start(spec())
    driver.newest.write('stdout', 'last words')
    driver.desert()
    await execs.detach()
    expect(await view(id)).toMatchObject({
      state: 'lost',
      exitCode: null,
      message: expect.stringMatching(/sandbox ended/),
    })
    expect(await output(id)).toMatchObject({ stdout: { data: 'last words' } })
  })
})

describe('another agent', () => {
  test('goes on with what runs: no byte lost or doubled, and ends that happened meanwhile are told', async () => {
    const [running, over] = [execs.start(spec({ id: 'running' })), execs.start(spec({ id: 'over' }))]
    const [first, second] = [driver.processes.get(2), driver.processes.get(3)]
    first?.write('stdout', 'one ')
    second?.write('stdout', 'x'.repeat(3000))
    if (second) second.output.stdout.acknowledged = 1000 // the last acknowledgement was lost with the agent
    await kill()
    second?.write('stdout', 'y'.repeat(3000))
    first?.write('stdout', 'two ')
    second?.write('stderr', 'bye')
    second?.exit({ exitCode: 9 })
    await open(true)
    await ended(over)
    expect(await view(over)).toMatchObject({ state: 'exited', exitCode: 9 })
    expect(await output(over)).toMatchObject({
      stdout: { data: 'x'.repeat(3000) + 'y'.repeat(3000) },
      stderr: { data: 'bye' },
    })
    expect(await view(running)).toMatchObject({ state: 'running', pid: 40 })
    first?.write('stdout', 'three')
    first?.exit()
    await ended(running)
    expect(await output(running)).toMatchObject({ stdout: { data: 'one two three' } })
    await settled()
    expect(first?.forgotten).toBe(true)
  })

  test('knows nothing of one that was never started', async () => {
    driver.onStart = () => {
      throw new Error('killed')
    }
    expect(() => execs.start(spec({ id: 'never', command: ['never'] }))).toThrow('killed')
    driver.onStart = () => undefined
    await restart()
    await until('it is unknown', () => execs.list().length === 0)
    await expect(view(exec('never'))).rejects.toMatchObject({ code: 'exec_not_found' })
    execs.start(spec({ id: 'never', command: ['something else'] }))
  })

  test('tells those lost whose sandbox ended meanwhile', async () => {
    const id = execs.start(spec())
    await kill()
    execs = SandboxExecs.open(home())
    expect(await view(id)).toMatchObject({ state: 'running' })
    await execs.detach()
    expect(await view(id)).toMatchObject({ state: 'lost' })
    await execs.close()
    await open(false)
    expect(execs.list().map(({ state }) => state)).toEqual(['lost'])
  })

  test('goes on with output that is held, and with input that was to come', async () => {
    const id = execs.start(spec({ stdin: true }))
    driver.newest.held = true
    await execs.use(id, (session) => session.write(undefined, Buffer.from('in')))
    await execs.use(id, (session) => session.endInput())
    const process = driver.newest
    process.inputEnd = undefined // was not told any more
    await restart()
    await until('the end of input is told again', () => process.inputEnd === 2)
    process.exit()
    await ended(id)
    await restart()
    process.write('stdout', 'late')
    process.release()
    await until('it is forgotten', () => process.forgotten)
    expect(await view(id)).toMatchObject({ state: 'exited', stdout: { bytes: 4 } })
  })

  test('removes files that nobody knows of', async () => {
    const id = execs.start(spec())
    driver.newest.write('stdout', 'x'.repeat(3000))
    driver.newest.exit()
    await ended(id)
    await settled()
    const log = onDisk()
    expect(files()).toHaveLength(1)
    const { RecordLog } = await import('./record-log.js')
    await execs.close()
    const records = RecordLog.open(join(directory(), 'records'))
    records.delete(id)
    records.close()
    expect(onDisk().length).toBeGreaterThan(log.length)
    await open()
    await execs.close()
    expect(files()).toEqual([])
    await open()
  })
})

describe('input', () => {
  test('goes on where the last of it ended, and is refused after the end', async () => {
    const id = execs.start(spec({ stdin: true }))
    await execs.use(id, async (session) => {
      await session.write(undefined, Buffer.from('ab'))
      await session.write(1, Buffer.from('bc'))
      expect(session.stdinBytes).toBe(3)
      await expect(session.write(9, Buffer.from('x'))).rejects.toMatchObject({ code: 'input_gap' })
      await session.endInput()
    })
    expect(driver.newest.input.toString()).toBe('abc')
    expect(driver.newest.inputEnd).toBe(3)
    driver.newest.exit()
    await ended(id)
    await execs.use(id, async (session) => {
      await expect(session.write(undefined, Buffer.from('x'))).rejects.toMatchObject({ code: 'wrong_state' })
      expect(() => session.signal(15, 'group')).toThrow(expect.objectContaining({ code: 'wrong_state' }))
      expect(session.view().stdinBytes).toBe(3)
    })
  })

  test('that came whole is written and ended, also by the next agent, and then removed', async () => {
    const input = Buffer.from('x'.repeat(200_000)).toString('base64')
    const id = execs.start(spec({ input }))
    const process = driver.newest
    expect(onDisk()).not.toContain(input.slice(0, 100))
    await restart()
    while (process.inputEnd === undefined) await settled()
    expect([process.inputEnd, process.input.length]).toEqual([200_000, 200_000])
    process.exit()
    await ended(id)
    await settled()
    expect(files().flatMap((name) => readdirSync(join(directory(), name)))).toEqual([])
  })

  test('a terminal is resized, anything else has no size', async () => {
    const id = execs.start(spec({ tty: { rows: 24, columns: 80 } }))
    await execs.use(id, async (session) => session.resize(10, 20))
    expect(driver.newest.sizes).toEqual(['10x20'])
    const other = execs.start(spec())
    await execs.use(other, async (session) => {
      expect(() => session.resize(1, 1)).toThrow(expect.objectContaining({ code: 'wrong_state' }))
    })
  })
})

describe('keeping', () => {
  const runToEnd = async (id: string, text = '') => {
    execs.start(spec({ id }))
    if (text) driver.newest.write('stdout', text)
    driver.newest.exit()
    await ended(exec(id))
    // Until it is let go of it counts as used.
    const { newest } = driver
    await until('it is let go of', () => newest.forgotten)
    await settled()
  }
  const ids = () => execs.list().map(({ id }) => id)

  test('the newest come first, and a state can be asked for', async () => {
    await runToEnd('a')
    await runToEnd('b')
    execs.start(spec({ id: 'c' }))
    expect(ids()).toEqual(['c', 'b', 'a'])
    expect(execs.list('running').map(({ id }) => id)).toEqual(['c'])
    expect(execs.list('exited').map(({ id }) => id)).toEqual(['b', 'a'])
  })

  test('beyond so many the one that ended first goes, with its files', async () => {
    await restart({ ended: 2 })
    execs.start(spec({ id: 'long' }))
    const long = driver.newest
    for (const id of ['a', 'b', 'c']) await runToEnd(id, id.repeat(3000))
    expect(ids()).toEqual(['c', 'b', 'long'])
    long.exit()
    await ended(exec('long'))
    await settled()
    await runToEnd('d', 'd'.repeat(3000))
    expect(ids()).toEqual(['d', 'long'])
    await execs.close()
    expect(files()).toHaveLength(1)
    await open()
    expect(ids()).toEqual(['d', 'long'])
  })

  test('after their time they go, but not while somebody uses them', async () => {
    await runToEnd('a', 'a')
    await runToEnd('b', 'b')
    const later = new Date(Date.now() + 3_600_001)
    await execs.use(exec('a'), async () => {
      execs.expire(later)
      expect(ids()).toEqual(['a'])
    })
    execs.expire(later)
    expect(ids()).toEqual([])
  })

  test('beyond what output may take, ended ones go first, then the oldest of who has most', async () => {
    const KiB = 1024
    await restart({ outputBytes: 100 * KiB })
    await runToEnd('a', 'a'.repeat(50 * KiB))
    await runToEnd('b')
    execs.start(spec({ id: 'small' }))
    driver.newest.write('stdout', 's'.repeat(30 * KiB))
    const large = ExecSpec.parse({ id: 'large', command: ['yes'], outputBytes: '64k' })
    execs.start(large)
    for (let i = 1; i <= 8; i++) {
      driver.newest.write('stdout', 'y'.repeat(12 * KiB))
      await until('it is stored', async () => (await view(exec('large'))).stdout.bytes === i * 12 * KiB)
    }
    await until('the oldest output is gone', async () => (await view(exec('large'))).stdout.from > 0)
    expect(ids()).toEqual(['large', 'small', 'b'])
    const { stdout } = await view(exec('large'))
    expect(stdout.bytes).toBe(96 * KiB)
    expect(stdout.from).toBeGreaterThan(0)
    expect((await view(exec('small'))).stdout.from).toBe(0)
  })

  test('too many uses at once are refused', async () => {
    await restart({ uses: 1 })
    await runToEnd('a')
    await execs.use(exec('a'), async () => {
      await expect(view(exec('a'))).rejects.toMatchObject({ code: 'quota_exceeded' })
    })
    await view(exec('a'))
  })
})

describe('deleting', () => {
  test('kills what runs, cuts off who reads it, and leaves nothing', async () => {
    const id = execs.start(spec({ id: 'one' }))
    driver.newest.write('stdout', 'text')
    const cut = execs.use(
      id,
      (session) => new Promise<void>((resolve) => session.gone.addEventListener('abort', () => resolve())),
    )
    const deleted = execs.delete(id)
    expect(execs.delete(id)).toBe(deleted)
    expect(() => execs.start(spec({ id: 'one' }))).toThrow(expect.objectContaining({ code: 'id_taken' }))
    expect(execs.list()).toEqual([])
    await Promise.all([cut, deleted])
    expect(driver.newest.signals).toEqual(['9 group', '9 process'])
    expect(driver.newest.forgotten).toBe(true)
    expect(files()).toEqual([])
    await expect(view(id)).rejects.toMatchObject({ code: 'exec_not_found' })
    expect(execs.start(spec({ id: 'one', command: ['other'] }))).toBe(id)
  })

  test('what has ended, and what is held, goes as well', async () => {
    const over = execs.start(spec())
    driver.newest.write('stdout', 'x')
    driver.newest.exit()
    await ended(over)
    const held = execs.start(spec())
    driver.newest.held = true
    driver.newest.exit()
    await ended(held)
    await Promise.all([execs.delete(over), execs.delete(held)])
    expect(driver.newest.forgotten).toBe(true)
    expect(execs.list()).toEqual([])
    await restart()
    expect(execs.list()).toEqual([])
    expect(existsSync(join(directory(), 'records'))).toBe(true)
  })

  test('what is not there cannot be deleted', () => {
    expect(() => execs.delete(exec('nothing'))).toThrow(expect.objectContaining({ code: 'exec_not_found' }))
  })
})

test('small output is in the record, and in no file', async () => {
  const id = execs.start(spec())
  driver.newest.write('stdout', 'grün')
  driver.newest.write('stderr', Buffer.of(255, 0))
  driver.newest.exit()
  await ended(id)
  await settled()
  expect(driver.newest.output.stdout.acknowledged).toBe(0)
  expect(files()).toEqual([])
  await restart()
  expect(await output(id)).toMatchObject({
    stdout: { data: 'grün', encoding: 'utf8' },
    stderr: { data: '/wA=', encoding: 'base64' },
  })
  expect(execs.list()[0]).toEqual(await view(id))
  expect(execs.list()[0]).not.toHaveProperty('inline')
})

test('a thousand execs leave a thousand records and nothing else', async () => {
  for (let i = 0; i < 1100; i++) {
    const id = execs.start(spec({ id: `e${i}` }))
    driver.newest.exit()
    await ended(id)
  }
  await settled()
  expect(execs.list()).toHaveLength(1000)
  expect(files()).toEqual([])
  for (const { id } of execs.list()) await execs.delete(id)
  expect(onDisk().length).toBeLessThan(300_000)
})
