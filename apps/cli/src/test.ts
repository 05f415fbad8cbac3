// test.ts: `./berth test`. Everything that must hold, in one command: static checks, then each jest project, and a
// minute and a half of fuzzing for berth-init and berth-files beside them. One line at the end counts all.
import { spawn } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { sum, type Tally, tallyOf, tallyOfStep } from './test-results.js'

const root = resolve(import.meta.dirname, '../../..')

/** A step of everything that takes longer hangs; it is killed and counts as failed. What was selected may take its time. */
const STEP_LIMIT_MS = 30 * 60_000

const projects = ['unit', 'kernel', 'system'] as const
type Project = (typeof projects)[number]

/**
 * Files of tests at a time. Those of kernel and system wait more than they compute, and share nothing: the first have
 * directories, control groups and databases of their own, the others an installation for each worker.
 */
const workers: Readonly<Record<Project, number>> = { unit: availableParallelism(), kernel: 2, system: 2 }

/**
 * @param args for jest: with any, only the tests that they select, and nothing else
 * @returns exit code
 */
export async function runTests(args: readonly string[]): Promise<number> {
  const scratch = mkdtempSync(join(tmpdir(), 'berth-results-'))
  try {
    const { passed, failed, retried } = args.length > 0 ? await selected(scratch, args) : await everything(scratch)
    if (retried.length > 0) process.stdout.write(`\npassed only when tried again:\n  ${retried.join('\n  ')}\n`)
    process.stdout.write(`\n${passed} passed, ${failed} failed\n`)
    return failed > 0 ? 1 : 0
  } finally {
    rmSync(scratch, { recursive: true })
  }
}

async function selected(scratch: string, args: readonly string[]): Promise<Tally> {
  const tallies: Tally[] = []
  for (const project of projects)
    tallies.push(await jest(scratch, project, project === 'unit' ? workers.unit : 1, args))
  return sum(tallies)
}

async function everything(scratch: string): Promise<Tally> {
  // Fuzzing is bound by the processor and by nothing else: it takes what the others leave, and no time of its own.
  const fuzzed = fuzz(scratch)
  const tallies = [await step('check', ['npm', 'run', '--silent', 'check'])]
  for (const project of projects) tallies.push(await jest(scratch, project, workers[project]))
  return sum([...tallies, await fuzzed])
}

/** @param count of workers */
async function jest(scratch: string, project: Project, count: number, args: readonly string[] = []): Promise<Tally> {
  const output = join(scratch, `${project}.json`)
  const program = [process.execPath, join(root, 'node_modules/jest/bin/jest.js'), '--selectProjects', project]
  const options = ['--json', `--outputFile=${output}`, '--passWithNoTests']
  // A handle that a failed test left open must not keep the run from ending.
  const pace = count === 1 ? ['--runInBand', '--forceExit'] : [`--maxWorkers=${count}`]
  const limit = args.length > 0 ? null : STEP_LIMIT_MS
  const exitCode = await timed(project, () => call([...program, ...options, ...pace, ...args], undefined, limit))
  return tallyOf(readResults(output), exitCode)
}

const step = async (name: string, argv: readonly string[]): Promise<Tally> =>
  tallyOfStep(await timed(name, () => call(argv)))

/** Its output is long, and of interest only when something was found. */
async function fuzz(scratch: string): Promise<Tally> {
  const log = join(scratch, 'fuzz.log')
  const output = openSync(log, 'w')
  try {
    const exitCode = await timed('fuzz', () =>
      call(['nice', '-n', '19', 'make', '-C', 'libs/init', 'run-fuzz', 'run-fuzz-tar'], output),
    )
    if (exitCode !== 0) process.stderr.write(readFileSync(log, 'utf8').slice(-20_000))
    return tallyOfStep(exitCode)
  } finally {
    closeSync(output)
  }
}

async function timed(name: string, work: () => Promise<number>): Promise<number> {
  const started = performance.now()
  const exitCode = await work()
  const seconds = ((performance.now() - started) / 1000).toFixed(0)
  process.stderr.write(`berth: ${name}: ${exitCode === 0 ? 'ok' : 'FAILED'} after ${seconds} s\n`)
  return exitCode
}

const readResults = (path: string): unknown => {
  try {
    return JSON.parse(readFileSync(path, 'utf8'))
  } catch {
    return undefined // jest ended before it wrote them, which counts as a failure
  }
}

/**
 * @param output descriptor that takes both its streams; without one, stdout is dropped and stderr shown
 * @param limitMs after which it is killed; null: never
 */
function call(
  [program = '', ...args]: readonly string[],
  output?: number,
  limitMs: number | null = STEP_LIMIT_MS,
): Promise<number> {
  const env = { ...process.env, NODE_OPTIONS: '--experimental-vm-modules', NODE_NO_WARNINGS: '1' }
  const child = spawn(program, args, { cwd: root, env, stdio: ['ignore', output ?? 'ignore', output ?? 'inherit'] })
  const limit = limitMs === null ? undefined : setTimeout(() => child.kill('SIGKILL'), limitMs)
  return new Promise((done) => {
    child.once('error', (error) => {
      clearTimeout(limit)
      process.stderr.write(`berth: ${program}: ${error.message}\n`)
      done(1)
    })
    child.once('close', (code) => {
      clearTimeout(limit)
      done(code ?? 1)
    })
  })
}
