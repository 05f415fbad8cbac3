import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus, totalmem } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { openFloor } from './floor.js'
import { type Measured, measure } from './load.js'

// npm run bench: needs a running Berth (`./berth up`). Writes docs/benchmarks.md. Every number stands beside the bare
// runtime's own in the same run: on another machine the milliseconds differ, the ratios should not much.

const Answer = z.looseObject({
  state: z.string().optional(),
  output: z.object({ stdout: z.object({ data: z.string() }) }).optional(),
})

const dataDir = process.env.BERTH_DATA ?? '/var/lib/berth'
const { url, apiKey } = await credentials()
const commands = [
  { name: '`true`', image: 'debian', command: ['true'], output: '', count: 150 },
  {
    name: "`python3 -c 'print(1)'`",
    image: 'python',
    command: ['python3', '-c', 'print(1)'],
    output: '1\n',
    count: 100,
  },
] as const
const levels = [1, 2, 4, 8, 16] as const

async function credentials() {
  const { BERTH_URL, BERTH_API_KEY } = process.env
  if (!BERTH_URL || !BERTH_API_KEY) throw new Error('run `eval "$(./berth env)"` first')
  return { url: BERTH_URL, apiKey: BERTH_API_KEY }
}

/** One call: from submit to the output in hand. */
async function job(image: string, command: readonly string[], expected: string): Promise<void> {
  const response = await fetch(`${url}/v1/jobs?wait=finished&output=true&timeoutMs=60s`, {
    method: 'POST',
    headers: { authorization: `Bearer ${apiKey}`, 'content-type': 'application/json' },
    body: JSON.stringify({ image, command, limits: { cpus: 1 } }),
  })
  const body = Answer.parse(await response.json())
  if (body.state !== 'succeeded' || body.output?.stdout.data !== expected)
    throw new Error(`${response.status} ${JSON.stringify(body)}`)
}

const ms = (n: number) => n.toFixed(1)
const row = (name: string, n: number, m: Measured, floor: Measured, plain: Measured) =>
  `| ${name} | ${n} | ${ms(m.perSecond)} | ${ms(m.p50)} | ${ms(m.p95)} | ${ms(m.p99)} | ${ms(floor.p50)} | ` +
  `${ms(plain.p50)} | ${(m.p50 / floor.p50).toFixed(1)} | ${(m.p50 / plain.p50).toFixed(1)} |`

const rows: string[] = []
const layout = join(dataDir, 'images')
for (const { name, image, command, output, count } of commands) {
  const fast = await openFloor(layout, `${image}:latest`, readyMadeFilter())
  const plain = await openFloor(layout, `${image}:latest`, undefined)
  try {
    for (const inFlight of levels) {
      const ours = await measure(count, inFlight, () => job(image, command, output))
      const floor = await measure(Math.ceil(count / 2), inFlight, () => fast.run(command))
      const compiled = await measure(Math.ceil(count / 2), inFlight, () => plain.run(command))
      rows.push(row(name, inFlight, ours, floor, compiled))
      process.stderr.write(`${rows.at(-1)}\n`)
    }
  } finally {
    await fast.close()
    await plain.close()
  }
}

/** The filter that the agent had compiled, so that the floor is as fast as it can be. */
function readyMadeFilter(): string | undefined {
  const directory = join(dataDir, 'agent', 'seccomp')
  const name = readdirSync(directory).find((file) => /^default-.*\.bpf$/.test(file))
  return name === undefined ? undefined : readFileSync(join(directory, name)).toString('base64')
}

writeFileSync(
  'docs/benchmarks.md',
  `# Benchmarks

\`./berth up && eval "$(./berth env)" && npm run bench\` repeats this and writes this file. Measured on
${cpus().length} cores (${cpus()[0]?.model ?? 'unknown'}), ${Math.round(totalmem() / 1024 ** 3)} GiB, Node ${process.version}.

## Jobs: submit to output

One HTTP call that runs the command in a new sandbox and answers with its output (\`wait=finished&output=true\`), cold:
no sandbox is kept warm. Beside it the floor, in the same process and run: the bare OCI runtime's \`run\` of the same root
file system with the same \`config.json\`, once with the seccomp filter ready-made as Berth does it (floor), once compiled
by the runtime at every start as others do it (plain). All times in milliseconds.

| command | in flight | jobs/s | p50 | p95 | p99 | floor p50 | plain p50 | ÷ floor | ÷ plain |
|---|---|---|---|---|---|---|---|---|---|
${rows.join('\n')}
`,
)
