// An agent is killed while fifty sandboxes run, and nothing in them notices.
import { readdirSync, readFileSync } from 'node:fs'
import { ignore } from '@berth/contracts'
import { takeInventory } from '@berth/host'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { type Answer, stack, type TestTenant, tenant, until } from '../support/berth.js'
import { crash, restart, restored } from '../support/crash.js'
import { Attached } from '../support/socket.js'

const COUNT = 50
/** In the command line of everything that runs in the sandboxes, */
const MARK = `many-${process.pid}`
/** and of what ends while there is no agent. */
const SHORT = `${MARK}-short`

let t: TestTenant
// For each try of its own: the last one may have failed in the middle.
beforeEach(async () => {
  await restored()
  t = await tenant({ sandboxes: COUNT, terminals: COUNT })
}, 120_000)
// Another try needs the room of this one.
afterEach(async () => {
  await restored()
  const ids: string[] = (await ok(t.get('/v1/sandboxes?limit=200'))).items.map(({ id }: { id: string }) => id)
  await together(ids.map((id) => ok(t.delete(`/v1/sandboxes/${id}?force=true`))))
  await until(
    'nothing is left',
    async () => {
      const left = await leftOf(ids)
      if (left.length > 0) throw new Error(left.join(' '))
      return true
    },
    60_000,
  )
}, 180_000)

/** Counts once a second; a signal that reached it would be in its output. */
const counts = (word: string) =>
  `: ${MARK}; trap "echo noticed" HUP INT QUIT PIPE TERM USR1 USR2; i=0; while :; do i=$((i+1)); echo "${word} $i"; sleep 1; done`

async function ok(answer: Promise<Answer>): Promise<Answer['body']> {
  const { status, body } = await answer
  if (status >= 300) throw new Error(`${status}: ${JSON.stringify(body)}`)
  return body
}

/** "main 1", "main 2" and so on, and nothing else. @returns how far it came */
function expectCounted(text: string, word: string, end = '\n'): number {
  const lines = text.split(end).slice(0, -1)
  expect(lines).toEqual(lines.map((_, i) => `${word} ${i + 1}`))
  return lines.length
}

/** A sandbox whose main process counts, with an exec that counts, one that will end, and a terminal that counts. */
class Busy {
  view: Attached | undefined

  private constructor(
    readonly index: number,
    readonly id: string,
    readonly long: string,
    readonly short: string,
    readonly terminal: string,
    readonly startedAt: string,
  ) {}

  static async start(index: number): Promise<Busy> {
    const { id, startedAt } = await ok(
      t.post('/v1/sandboxes?wait=running&timeoutMs=60s', {
        image: 'debian',
        command: ['sh', '-c', `echo $$ >/tmp/main; ${counts('main')}`],
        limits: { memoryBytes: '32m', diskBytes: '64m', cpus: 0.1, pids: 32 },
        restart: { policy: 'always' },
      }),
    )
    const exec = async (script: string) =>
      (await ok(t.post(`/v1/sandboxes/${id}/execs`, { command: ['sh', '-c', script] }))).id
    const long = await exec(counts('long'))
    const short = await exec(
      `: ${SHORT}; echo begun; until [ -e /tmp/go ]; do sleep 0.5; done; sleep 5; date +%s%3N; exit ${100 + index}`,
    )
    // What is typed is echoed by cat alone.
    const command = ['sh', '-c', `stty -echo; (${counts('term')}) & exec cat`]
    const terminal = (await ok(t.post(`/v1/sandboxes/${id}/terminals`, { command }))).id
    const busy = new Busy(index, id, long, short, terminal, startedAt)
    busy.view = await busy.look(0)
    return busy
  }

  path(rest = ''): string {
    return `/v1/sandboxes/${this.id}${rest}`
  }

  /** @param since bytes that it has already */
  look(since: number): Promise<Attached> {
    return Attached.open(t, this.path(`/terminals/${this.terminal}/socket?since=${since}`))
  }

  async run(script: string): Promise<string> {
    const spec = { command: ['sh', '-c', script] }
    const exec = await ok(t.post(this.path('/execs?wait=ended&output=true&timeoutMs=60s'), spec))
    expect(exec).toMatchObject({ state: 'exited', exitCode: 0 })
    return exec.output.stdout.data
  }

  /** When PID 1 and the main process were started, as the kernel says. */
  starts(then = ''): Promise<string> {
    return this.run(`for pid in 1 $(cat /tmp/main); do cut -d " " -f 1,22 /proc/$pid/stat; done; ${then}`)
  }

  text(path: string): Promise<string> {
    return t.raw('GET', this.path(path)).then((response) => response.text())
  }
}

/** How many processes of the machine have `mark` in their command line. */
const processesWith = (mark: string): number =>
  readdirSync('/proc').filter((pid) => /^\d+$/.test(pid) && commandLine(pid).includes(mark)).length

function commandLine(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8')
  } catch (error) {
    return ignore(error, 'ENOENT', 'ESRCH') ?? ''
  }
}

/** What of the sandboxes is on the node: their processes, groups and directories. */
async function leftOf(ids: readonly string[]): Promise<readonly string[]> {
  const { cgroupParent, dataDir } = stack()
  const { cgroups, trees } = await takeInventory({ cgroupParent, dataDir, trees: ['agent/pool', 'agent/sandboxes'] })
  const found = [...cgroups, ...trees].filter((entry) => ids.some((id) => entry.includes(id)))
  return processesWith(MARK) === 0 ? found : [...found, 'processes']
}

/** Of all at once; also where one fails, nothing is under way any more when the test ends. */
async function together<T>(acts: readonly Promise<T>[]): Promise<T[]> {
  await Promise.allSettled(acts)
  return Promise.all(acts)
}
const each = <T>(all: readonly Busy[], act: (busy: Busy) => Promise<T>): Promise<T[]> => together(all.map(act))

test('an agent killed while fifty sandboxes are busy: all are adopted, and nothing in them noticed', async () => {
  const all = await together(Array.from({ length: COUNT }, (_, i) => Busy.start(i)))
  await until('the short ones run', async () => (processesWith(SHORT) >= COUNT ? true : undefined))
  const startsBefore = await each(all, (busy) => busy.starts('touch /tmp/go'))

  await crash('agent')
  const diedAt = Date.now()
  await until('the short ones have ended', async () => (processesWith(SHORT) === 0 ? true : undefined), 30_000)
  const views = all.map(({ view }) => view?.text() ?? '')
  const restartedAt = Date.now()
  await restart('agent')
  await until('the node answers', async () =>
    (await t.get(all[0]?.path('/execs') ?? '')).status === 200 ? true : undefined,
  )

  await each(all, async (busy) => {
    const { index, short, startedAt } = busy
    const exec = await ok(t.get(busy.path(`/execs/${short}?wait=ended&output=true&timeoutMs=60s`)))
    expect(exec).toMatchObject({ state: 'exited', exitCode: 100 + index, signal: null })
    const [first, at] = exec.output.stdout.data.split('\n')
    expect(first).toBe('begun')
    expect(Number(at)).toBeGreaterThan(diedAt)
    expect(Number(at)).toBeLessThan(restartedAt)
    expect(await ok(t.get(busy.path()))).toMatchObject({ state: 'running', restarts: 0, startedAt })
  })
  expect(await each(all, (busy) => busy.starts())).toEqual(startsBefore)

  await each(all, async (busy) => {
    const seen = views[busy.index] ?? ''
    const again = await busy.look(seen.length)
    const whole = () => seen + again.text()
    again.input(`typed ${busy.index}\n`)
    await until('it takes input', async () => (whole().includes(`typed ${busy.index}\r\n`) ? true : undefined))
    await until('it counts on', async () => (/term \d+\r\n$/.test(whole()) ? true : undefined))
    const counted = expectCounted(whole().replace(`typed ${busy.index}\r\n`, ''), 'term', '\r\n')
    expect(counted).toBeGreaterThan(seen.split('term').length)
    expect([...(busy.view?.types() ?? []), ...again.types()]).not.toContain('screen')
    again.socket.terminate()
  })
  await each(all, async (busy) => {
    const main = expectCounted(await busy.text('/logs/raw'), 'main')
    const long = expectCounted(await busy.text(`/execs/${busy.long}/output/stdout`), 'long')
    // Of what was printed while there was no agent, and since.
    expect(Math.min(main, long)).toBeGreaterThan(8)
  })
}, 180_000)
