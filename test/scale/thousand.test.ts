import { expect, test } from '@jest/globals'
import { finished, sh, stdout, type TestTenant, tenant } from '../support/berth.js'
import { memoryOf } from '../support/crash.js'

test('1,000 jobs of three tenants: all results right, fair shares, flat memory', async () => {
  const tenants = await Promise.all([1, 2, 3].map(() => tenant({ concurrentJobs: 8, requestsPerMinute: 1_000_000 })))
  const share = [334, 333, 333]
  const before = await memoryOf()
  const batches = await Promise.all(
    tenants.map((t, i) =>
      t.post('/v1/batches', {
        jobs: Array.from({ length: share[i] ?? 0 }, (_, n) => ({
          ...sh(`echo ${i}-${n}; exit ${n % 5}`),
          limits: { memoryBytes: '64m', cpus: 0.5 },
        })),
      }),
    ),
  )
  const ended = await Promise.all(tenants.map(async (t, i) => collect(t, batches[i]?.body.jobIds, i)))
  for (const [i, finishes] of ended.entries()) expect(finishes).toHaveLength(share[i] ?? 0)

  // Fair: when the first tenant is half done, the others are too, give or take a tenth.
  const all = ended.flatMap((finishes, i) => finishes.map((at) => ({ at, i }))).sort((a, b) => a.at - b.at)
  const half = all.slice(0, 500)
  for (const i of [0, 1, 2]) expect(Math.abs(half.filter((f) => f.i === i).length - 167)).toBeLessThan(50)

  const after = await memoryOf()
  process.stderr.write(`1,000 jobs: RSS in MiB before ${JSON.stringify(before)}, after ${JSON.stringify(after)}\n`)
  for (const part of ['api', 'agent'] as const) expect(after[part] - before[part]).toBeLessThan(120)
}, 300_000)

async function collect(t: TestTenant, ids: readonly string[], tenantNumber: number): Promise<number[]> {
  const ends: number[] = []
  for (const [n, id] of ids.entries()) {
    const job = await finished(t, id)
    expect([job.exitCode, stdout(job)]).toEqual([n % 5, `${tenantNumber}-${n}\n`])
    ends.push(Date.parse(job.finishedAt ?? ''))
  }
  return ends
}
