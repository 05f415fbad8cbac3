import { afterAll, beforeAll, beforeEach, expect, test } from '@jest/globals'
import { finished, python, run, sh, stdout, submit, type TestTenant, tenant, until } from '../support/berth.js'
import { crash, inventory, redisCli, restart, restored } from '../support/crash.js'

let t: TestTenant
/** Of sandboxes that other tests have left running: they see their root for as long as they live. */
let mountsBefore: readonly string[] = []
beforeAll(async () => {
  mountsBefore = (await inventory()).mounts
  t = await tenant({ concurrentJobs: 40 })
})
// Also before each try of a test whose last one failed in the middle.
beforeEach(restored, 120_000)
afterAll(async () => {
  await restored()
}, 120_000)

const counted = 'import sys,time\nfor i in range(40):\n  print(i, flush=True); time.sleep(0.05)\nsys.exit(5)'
const lines = Array.from({ length: 40 }, (_, i) => `${i}\n`).join('')

const expectTrueResult = async (id: string) => {
  const job = await finished(t, id)
  expect(job).toMatchObject({ state: 'failed', exitCode: 5, reason: { code: 'exit_nonzero' } })
  expect(job.attempts).toHaveLength(1)
  expect(stdout(job)).toBe(lines)
}

test('an agent killed while jobs run finds them again: every byte, every exit code, one attempt', async () => {
  const ids = await Promise.all(Array.from({ length: 8 }, () => submit(t, python(counted))))
  await until('they run', async () => ((await t.get(`/v1/jobs/${ids[7]}`)).body.state === 'running' ? true : undefined))
  await crash('agent')
  await restart('agent')
  for (const id of ids) await expectTrueResult(id)
})

test('an exit that happens while the agent is dead is reported after its return', async () => {
  const id = await submit(t, python(counted))
  await until('it runs', async () => ((await t.get(`/v1/jobs/${id}`)).body.state === 'running' ? true : undefined))
  await crash('agent')
  await new Promise((wake) => setTimeout(wake, 4000))
  await restart('agent')
  await expectTrueResult(id)
})

test('a timeout holds while the agent is dead', async () => {
  const id = await submit(t, {
    ...sh('trap "" TERM; echo up; sleep 100; sleep 100'),
    timeoutMs: '1500ms',
    graceMs: '200ms',
  })
  await until('it runs', async () => ((await t.get(`/v1/jobs/${id}`)).body.state === 'running' ? true : undefined))
  await crash('agent')
  await new Promise((wake) => setTimeout(wake, 2500))
  await restart('agent')
  expect(await finished(t, id)).toMatchObject({ state: 'timed_out', reason: { code: 'timeout' } })
})

test.each(['agent', 'api', 'postgres', 'redis'] as const)(
  '%s killed at random moments: every job ends once, with its true result',
  async (part) => {
    const ids: string[] = []
    for (let round = 0; round < 6; round++) {
      for (let i = 0; i < 5; i++)
        ids.push(await submit(t, sh(`sleep 0.${i}; echo ${ids.length}; exit ${ids.length % 3}`)))
      await new Promise((wake) => setTimeout(wake, Math.random() * 150))
      await crash(part)
      await restart(part)
      await until('the API is back', async () => ((await t.get('/v1/tenant')).status === 200 ? true : undefined))
    }
    const jobs = await Promise.all(ids.map((id) => finished(t, id)))
    jobs.forEach((job, i) => {
      expect([job.exitCode, stdout(job)]).toEqual([i % 3, `${i}\n`])
      expect(job.attempts.filter((a) => ['placed', 'running'].includes(a.state))).toEqual([])
    })
    await until('all is released', async () => ((await inventory()).sandboxes.length === 0 ? true : undefined))
  },
  180_000,
)

test('Redis emptied in the middle of a run loses no job', async () => {
  const ids = await Promise.all(Array.from({ length: 60 }, (_, i) => submit(t, sh(`sleep 0.1; echo ${i}`))))
  for (let i = 0; i < 5; i++) {
    await redisCli('FLUSHALL')
    await new Promise((wake) => setTimeout(wake, 200))
  }
  const jobs = await Promise.all(ids.map((id) => finished(t, id)))
  expect(jobs.map((job) => [job.state, stdout(job)])).toEqual(ids.map((_, i) => ['succeeded', `${i}\n`]))
  expect(jobs.every((job) => job.attempts.length === 1)).toBe(true)
}, 120_000)

test('a sandbox that vanishes from outside is lost, and retried by its policy', async () => {
  const retried = { ...sh('sleep 3; echo done'), retry: { maxAttempts: 2, backoffMs: '10ms', on: ['lost'] } }
  const id = await submit(t, retried)
  await vanish(id)
  const job = await finished(t, id)
  expect(job.attempts.map((a) => a.state)).toEqual(['lost', 'succeeded'])
  expect(job).toMatchObject({ state: 'succeeded' })
  const alone = await submit(t, sh('sleep 300'))
  await vanish(alone)
  expect(await finished(t, alone)).toMatchObject({ state: 'failed', reason: { code: 'sandbox_lost' } })
})

/** Kills the init of the job's sandbox, once it runs. */
async function vanish(id: string): Promise<void> {
  const attempt = await until('it runs', async () => {
    const { state, attempts } = (await t.get(`/v1/jobs/${id}`)).body
    return state === 'running' ? attempts.at(-1).id : undefined
  })
  const inits = (await inventory()).sandboxes.filter(({ group }) => group.endsWith(attempt)).flatMap((s) => s.inits)
  expect(inits).toHaveLength(1)
  for (const pid of inits) process.kill(pid, 'SIGKILL')
}

test('after all of it the node holds nothing', async () => {
  expect((await run(t, sh('echo still well'))).state).toBe('succeeded')
  await until('all is released', async () => {
    const found = await inventory()
    const left = { ...found, mounts: found.mounts.filter((mount) => !mountsBefore.includes(mount)) }
    if (left.sandboxes.length + left.mounts.length + left.uppers.length > 0) throw new Error(JSON.stringify(left))
    return true
  })
})
