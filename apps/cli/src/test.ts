import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { z } from 'zod'
import { ensureBaseImages } from './up/base-images.js'
import { placesFrom } from './up/config.js'

const root = resolve(import.meta.dirname, '../../..')
const Summary = z.object({ numPassedTests: z.number(), numFailedTests: z.number(), numFailedTestSuites: z.number() })

/**
 * Runs check, then each jest project, and closes with one line that counts all.
 * @param args for jest: with any, only the tests that they select
 * @returns exit code
 */
export async function runTests(args: readonly string[]): Promise<number> {
  const places = placesFrom(process.env)
  const scratch = mkdtempSync(join(tmpdir(), 'berth-results-'))
  const images = join(scratch, 'images')
  await ensureBaseImages({
    imagesDir: images,
    cacheDir: places.imageCache,
    say: (what) => process.stderr.write(`berth: ${what}\n`),
  })
  let [passed, failed] = [0, 0]
  let code = args.length > 0 ? 0 : await call(['npm', 'run', '--silent', 'check'])
  // Without arguments: what must hold for every change. `-- --all` adds the kernel, recovery and scale tests.
  const all = args.includes('--all')
  const chosen = args.filter((arg) => arg !== '--all')
  const narrow = all || chosen.length > 0 ? [] : ['--testPathIgnorePatterns', 'test/recovery', 'test/scale', '/dist/']
  for (const project of all || chosen.length > 0 ? ['unit', 'kernel', 'system'] : ['unit', 'system']) {
    const results = join(scratch, `${project}.json`)
    const serial = project === 'unit' ? [] : ['--runInBand']
    const jest = ['npx', 'jest', '--selectProjects', project, '--json', `--outputFile=${results}`, '--passWithNoTests']
    const exit = await call([...jest, ...serial, ...chosen, ...(project === 'system' ? narrow : [])])
    const summary = Summary.safeParse(readResults(results))
    passed += summary.data?.numPassedTests ?? 0
    failed += Math.max(summary.data?.numFailedTests ?? 1, summary.data?.numFailedTestSuites ?? 1)
    code ||= exit
  }
  rmSync(scratch, { recursive: true })
  process.stdout.write(`\n${passed} passed, ${failed} failed\n`)
  return code
}

const readResults = (path: string): unknown => {
  try {
    return JSON.parse(readFileSync(path, 'utf8'))
  } catch {
    return undefined // jest ended before it wrote them; its exit code tells
  }
}

function call([program = '', ...args]: readonly string[]): Promise<number> {
  const env = { ...process.env, NODE_OPTIONS: '--experimental-vm-modules', NODE_NO_WARNINGS: '1' }
  const child = spawn(program, args, { cwd: root, env, stdio: ['ignore', 'ignore', 'inherit'] })
  return new Promise((done) => child.once('close', (code) => done(code ?? 1)))
}
