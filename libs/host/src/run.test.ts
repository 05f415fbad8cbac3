import { existsSync, readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { ignore } from '@berth/contracts'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { until } from './cgroup.contract.js'
import { CommandFailed, expectSuccess, printable, run, spawnThrough } from './run.js'

const berthRun = join(import.meta.dirname, '../../init/build/berth-run')

/** R, S, Z, … of a process (proc_pid_stat(5)); undefined once it is reaped. */
function stateOf(pid: string): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.[0]
  } catch (error) {
    return ignore(error, 'ENOENT', 'ESRCH')
  }
}

const node = (script: string, ...args: string[]): [string, ...string[]] => [process.execPath, '-e', script, ...args]

describe.each(['by this process', 'by berth-run'])('run %s', (by) => {
  let dir = ''
  let through: AsyncDisposable | undefined
  beforeAll(async () => {
    if (by === 'by berth-run') through = await spawnThrough(berthRun)
    dir = await mkdtemp(join(tmpdir(), 'berth-run-'))
  })
  afterAll(async () => {
    await through?.[Symbol.asyncDispose]()
    await rm(dir, { recursive: true, force: true })
  })

  test('keeps the streams apart and tells the exit code as a result', async () => {
    const result = await run(node('process.stdout.write("out"); process.stderr.write("err"); process.exitCode = 7'))
    expect(result).toMatchObject({ exitCode: 7, signal: undefined, stdout: 'out', stderr: 'err', truncated: false })
    expect(result.wallMs).toBeGreaterThan(0)
  })

  test('a signal leaves no exit code', async () => {
    const result = await run(node('process.kill(process.pid, "SIGTERM"); setInterval(() => 0, 1000)'))
    expect(result).toMatchObject({ exitCode: undefined, signal: 'SIGTERM', timedOut: false, canceled: false })
  })

  test('arguments reach the program as they are: no shell sees them', async () => {
    const nasty = ['$(touch pwned)', '; id', '`id`', "a'b", '*', 'two words', '\n']
    const result = await run(node('console.log(JSON.stringify(process.argv.slice(1)))', '--', ...nasty), { cwd: dir })
    expect(JSON.parse(result.stdout)).toEqual(nasty)
    expect(existsSync(join(dir, 'pwned'))).toBe(false)
  })

  test('the environment of the caller is not inherited', async () => {
    process.env.BERTH_TEST_SECRET = 'hidden'
    const bare = await run(['env'])
    const given = await run(['/usr/bin/env'], { env: { ONLY: 'this' } })
    delete process.env.BERTH_TEST_SECRET
    expect(bare.stdout).not.toContain('hidden')
    expect(given.stdout).toBe('ONLY=this\n')
  })

  test('stdin is delivered whole, and a program that does not read it does no harm', async () => {
    const big = 'x'.repeat(1_000_000)
    expect((await run(['wc', '-c'], { stdin: big })).stdout.trim()).toBe('1000000')
    expect((await run(['true'], { stdin: big })).exitCode).toBe(0)
    expect((await run(['cat'])).stdout).toBe('')
  })

  test('output beyond the limit is dropped and flagged, and the program is not blocked by it', async () => {
    const result = await run(['head', '-c', '3000000', '/dev/zero'], { maxOutputBytes: 1000 })
    expect(result).toMatchObject({ exitCode: 0, truncated: true })
    expect(result.stdout).toHaveLength(1000)
    expect(await run(['head', '-c', '1000', '/dev/zero'], { maxOutputBytes: 1000 })).toMatchObject({ truncated: false })
  })

  test('the timeout kills the whole process group', async () => {
    const marker = join(dir, 'child.pid')
    // Long enough for a shell to write its marker on a machine that is busy with other tests.
    const result = await run(['sh', '-c', 'sleep 1000 & echo $! > "$0"; wait', marker], { timeoutMs: 5_000 })
    expect(result).toMatchObject({ exitCode: undefined, signal: 'SIGKILL', timedOut: true, canceled: false })
    const child = readFileSync(marker, 'utf8').trim()
    // kill(2) does not wait for the death.
    await until('the child is dead', () => [undefined, 'Z', 'X'].includes(stateOf(child)))
  })

  test('an abort kills it, before and after the start', async () => {
    const controller = new AbortController()
    const running = run(['sleep', '1000'], { signal: controller.signal })
    controller.abort()
    expect(await running).toMatchObject({ canceled: true, timedOut: false, signal: 'SIGKILL' })
    expect(await run(['sleep', '1000'], { signal: AbortSignal.abort() })).toMatchObject({ canceled: true })
  })

  test('a daemon that keeps the pipes open does not hold up the result', async () => {
    const result = await run(['sh', '-c', 'sleep 60 & echo $!'])
    process.kill(Number(result.stdout), 'SIGKILL')
    expect(result.exitCode).toBe(0)
    expect(result.wallMs).toBeLessThan(30_000)
  })

  test('what cannot be started is a fault that names it', async () => {
    await expect(run(['/nonexistent/program'])).rejects.toThrow('start /nonexistent/program')
    await expect(run(['echo', 'a\0b'])).rejects.toThrow('start echo')
  })

  test('two hundred at once, each with its own', async () => {
    const results = await Promise.all(Array.from({ length: 200 }, (_, i) => run(['sh', '-c', `echo ${i}; exit ${i}`])))
    results.forEach((result, i) => {
      expect(result).toMatchObject({ exitCode: i, stdout: `${i}\n` })
    })
  })

  test('the place where it runs is the one that was asked for', async () => {
    expect((await run(['pwd'], { cwd: '/usr' })).stdout).toBe('/usr\n')
    expect((await run(['pwd'])).stdout).toBe(`${process.cwd()}\n`)
    await expect(run(['pwd'], { cwd: '/nowhere' })).rejects.toThrow('start pwd')
  })

  test('expectSuccess tells command, reason and what was said', async () => {
    const failed = await run(['sh', '-c', 'echo because >&2; exit 3'])
    expect(() => expectSuccess(failed)).toThrow(CommandFailed)
    expect(() => expectSuccess(failed)).toThrow('sh -c "echo because >&2; exit 3": exit code 3: because')
    const ok = await run(['true'])
    expect(expectSuccess(ok)).toBe(ok)
  })

  test('printable quotes only what needs it', () => {
    expect(printable(['crun', '--root=/run/x', 'a b', ''])).toBe('crun --root=/run/x "a b" ""')
  })
})

describe('berth-run', () => {
  test('is not in the way once it has ended: what ran is told, what follows is started from here', async () => {
    const through = await spawnThrough(berthRun)
    const parent = Number((await run(['sh', '-c', 'echo $PPID'])).stdout)
    const running = run(['sleep', '1000'])
    await expect(Promise.all([running, run(['kill', '-KILL', String(parent)])])).rejects.toThrow('berth-run ended')
    await expect(running).rejects.toThrow('start sleep')
    const parentNow = async () => Number((await run(['sh', '-c', 'echo $PPID'])).stdout)
    expect(await parentNow()).toBe(process.pid)
    while ((await parentNow()) === process.pid) await delay(50) // and is started again
    await through[Symbol.asyncDispose]()
  })

  test('a program that is not there is a fault', async () => {
    await expect(spawnThrough('/nonexistent/berth-run')).rejects.toThrow('start /nonexistent/berth-run')
    expect((await run(['true'])).exitCode).toBe(0)
  })
})
