// batch.ts: a thousand jobs of three tenants through one node: throughput, fairness, and what they leave in memory.
import { createBatch, getBatch, getJob, JobId } from '@berth/contracts'
import { Client } from '@berth/sdk'
import { limits } from './floor.js'
import type { Installation, Memory } from './installation.js'
import { timed } from './load.js'
import { one, type Section, table } from './section.js'

const shares = [334, 333, 333] as const

export const batch: Section = {
  name: 'batch',
  title: '1,000 jobs of three tenants',
  async measure(at) {
    const keys = await Promise.all(shares.map(() => at.tenant({ concurrentJobs: 8 })))
    const before = at.memory()
    let ended: Date[][] = []
    const ms = await timed(async () => {
      ended = await Promise.all(keys.map((apiKey, i) => runBatch(at, apiKey, shares[i] ?? 0)))
    })
    const after = at.memory()
    return `Three tenants hand in a batch each of \`sh -c 'echo N; exit N % 5'\`, all at once; each may run 8 jobs at a time.
Every exit code and output is checked. Fair: how many of the first 500 jobs that ended were whose.

${table(['seconds', 'jobs/s', 'shares of the first 500'], [[one(ms / 1000), one(1_000_000 / ms), firstHalf(ended)]])}

${memoryTable(before, after)}`
  },
}

async function runBatch(at: Installation, apiKey: string, count: number): Promise<Date[]> {
  await using client = new Client({ url: at.url, apiKey })
  const jobs = Array.from({ length: count }, (_, n) => ({
    image: 'debian',
    command: ['sh', '-c', `echo ${n}; exit ${n % 5}`],
    limits,
  }))
  const { id, jobIds } = await client.call(createBatch, { body: { jobs } })
  const params = { batchId: id }
  for (;;) {
    const state = await client.call(getBatch, { params, query: { wait: 'finished', timeoutMs: '50s' } })
    if (state.finishedAt !== null) break
  }
  return await Promise.all(jobIds.map((jobId, n) => checked(client, JobId.parse(jobId), n)))
}

async function checked(client: Client, jobId: JobId, n: number): Promise<Date> {
  const job = await client.call(getJob, { params: { jobId }, query: { output: 'true' } })
  if (job.exitCode !== n % 5 || job.output?.stdout.data !== `${n}\n` || job.finishedAt === null)
    throw new Error(`job ${n}: ${JSON.stringify(job)}`)
  return new Date(job.finishedAt)
}

function firstHalf(ended: readonly (readonly Date[])[]): string {
  const all = ended.flatMap((ends, tenant) => ends.map((at) => ({ at, tenant })))
  const half = all.sort((a, b) => a.at.getTime() - b.at.getTime()).slice(0, 500)
  return ended.map((_, tenant) => half.filter((end) => end.tenant === tenant).length).join(' : ')
}

const memoryTable = (before: Memory, after: Memory) =>
  table(
    ['resident memory, MiB', 'before', 'after'],
    [
      ['API', before.api, after.api],
      ['agent', before.agent, after.agent],
    ],
  )
