// jobs.ts: from submit to output, one HTTP call each.
import { Pool } from 'undici'
import { z } from 'zod'
import { limits, openFloor } from './floor.js'
import type { Installation } from './installation.js'
import { type Measured, measure, timed } from './load.js'
import { phasesTable, type Sample } from './phases.js'
import { one, type Section, say, table } from './section.js'

const commands = [
  { name: '`true`', image: 'debian', argv: ['true'], output: '', count: 150 },
  { name: "`python3 -c 'print(1)'`", image: 'python', argv: ['python3', '-c', 'print(1)'], output: '1\n', count: 100 },
] as const
type Command = (typeof commands)[number]

const levels = [1, 2, 4, 8, 16] as const

const Answer = z.object({
  state: z.string(),
  output: z.object({ stdout: z.object({ data: z.string() }) }),
  attempts: z.array(z.object({ phases: z.record(z.string(), z.number().nullable()) })),
})
type Answer = z.infer<typeof Answer>

export const jobs: Section = {
  name: 'jobs',
  title: 'Jobs: submit to output',
  async measure(at) {
    const apiKey = await at.tenant({ concurrentJobs: 64, cpus: 64, memoryBytes: 64 * 1024 ** 3 })
    const pool = new Pool(at.url, { connections: 32 })
    const submit = (command: Command) => submitTo(pool, apiKey, command)
    try {
      const rows: (string | number)[][] = []
      for (const command of commands) rows.push(...(await compare(at, command, () => timed(() => submit(command)))))
      return `${explained}\n\n${head(rows)}\n\n${await whereItGoes(() => submit(commands[0]))}`
    } finally {
      await pool.destroy()
    }
  },
}

const explained = `One HTTP call that runs the command in a new sandbox and answers with its output
(\`wait=finished&output=true\`), cold: no sandbox is kept warm. Beside it, in the same process and run, the bare OCI
runtime: \`crun run\` of the same root file system with the same \`config.json\`. "bare" compiles the seccomp filter at
every start, as everybody does; "bare, filter ready" is given the one that Berth keeps compiled. Milliseconds.`

const head = (rows: readonly (string | number)[][]) =>
  table(
    ['command', 'in flight', 'jobs/s', 'p50', 'p95', 'p99', 'bare p50', 'bare, filter ready p50', '÷ bare', '÷ ready'],
    rows,
  )

async function compare(at: Installation, command: Command, job: () => Promise<number>) {
  const bare = await openFloor(at.imagesDir, `${command.image}:latest`, undefined)
  const ready = await openFloor(at.imagesDir, `${command.image}:latest`, at.seccompBpf())
  const rows: (string | number)[][] = []
  try {
    for (const inFlight of levels) {
      const ours = await measure(command.count, inFlight, job)
      const peers: Measured[] = []
      for (const floor of [bare, ready])
        peers.push(await measure(command.count / 2, inFlight, () => floor.run(command.argv, command.output)))
      rows.push(rowOf(command, inFlight, ours, peers))
      say(rows.at(-1)?.join(' | ') ?? '')
    }
  } finally {
    await bare.close()
    await ready.close()
  }
  return rows
}

function rowOf({ name }: Command, inFlight: number, ours: Measured, peers: readonly Measured[]): (string | number)[] {
  const p50s = peers.map(({ p50 }) => p50)
  return [
    name,
    inFlight,
    ...[ours.perSecond, ours.p50, ours.p95, ours.p99, ...p50s].map(one),
    ...p50s.map((p50) => `${one(ours.p50 / p50)}x`),
  ]
}

async function whereItGoes(submit: () => Promise<Answer>): Promise<string> {
  const samples: Sample[] = []
  for (let i = 0; i < 100; i++) {
    const started = performance.now()
    const { attempts } = await submit()
    samples.push({ totalMs: performance.now() - started, phases: attempts[0]?.phases ?? {} })
  }
  return `Where the time of \`true\` goes, one in flight (medians of 100; the phases are those of \`attempts[].phases\`,
everything else is HTTP, database, queue and report):

${phasesTable(samples)}`
}

async function submitTo(pool: Pool, apiKey: string, { image, argv, output }: Command): Promise<Answer> {
  const { statusCode, body } = await pool.request({
    method: 'POST',
    path: '/v1/jobs?wait=finished&output=true&timeoutMs=60s',
    headers: { authorization: `Bearer ${apiKey}`, 'content-type': 'application/json' },
    body: JSON.stringify({ image, command: argv, limits }),
  })
  const text = await body.text()
  const answer = Answer.safeParse(statusCode === 201 ? JSON.parse(text) : undefined)
  if (!answer.success || answer.data.state !== 'succeeded' || answer.data.output.stdout.data !== output)
    throw new Error(`${statusCode} ${text.slice(0, 2000)}`)
  return answer.data
}
