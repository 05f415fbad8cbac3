import { beforeAll, expect, test } from '@jest/globals'
import { finished, python, run, sh, stdout, submit, type TestTenant, tenant, until } from '../support/berth.js'

let t: TestTenant
beforeAll(async () => {
  t = await tenant()
})

test('one call runs a command and answers with its output, usage and timeline', async () => {
  const made = await t.post('/v1/jobs?wait=finished&output=true', { command: ['sh', '-c', 'echo out; echo err >&2'] })
  expect(made.status).toBe(201)
  expect(made.body).toMatchObject({
    state: 'succeeded',
    exitCode: 0,
    signal: null,
    oomKilled: false,
    reason: { code: 'completed' },
    output: {
      stdout: { data: 'out\n', encoding: 'utf8', bytes: 4, truncated: false },
      stderr: { data: 'err\n', encoding: 'utf8', bytes: 4, truncated: false },
    },
    usage: { stdout: { bytes: 4, keptBytes: 4, truncated: false } },
  })
  const [attempt] = made.body.attempts
  for (const phase of ['queueMs', 'placeMs', 'rootfsMs', 'startMs', 'runMs', 'finishMs'])
    expect(attempt.phases[phase]).toBeGreaterThanOrEqual(0)
  expect(made.body.usage.wallMs).toBeGreaterThan(0)
  expect(made.body.usage.cpuMs).toBeGreaterThan(0)
  expect(made.body.usage.peakMemoryBytes).toBeGreaterThan(0)
})

test.each([0, 1, 2, 42, 125, 255])('exit code %i is told as it is', async (code) => {
  const job = await run(t, sh(`exit ${code}`))
  expect(job).toMatchObject({
    state: code === 0 ? 'succeeded' : 'failed',
    exitCode: code,
    reason: { code: code === 0 ? 'completed' : 'exit_nonzero' },
  })
})

test('a program that does not exist is 127, one that may not be executed 126', async () => {
  expect(await run(t, { command: ['/no/such/program'] })).toMatchObject({
    state: 'failed',
    exitCode: 127,
    reason: { code: 'command_not_found' },
  })
  expect(await run(t, { command: ['no-such-program'] })).toMatchObject({ exitCode: 127 })
  expect(await run(t, { command: ['/etc/passwd'] })).toMatchObject({
    state: 'failed',
    exitCode: 126,
    reason: { code: 'command_not_executable' },
  })
  expect(await run(t, { command: ['/etc'] })).toMatchObject({ exitCode: 126 })
})

test('an end by signal is a signal, not an exit code', async () => {
  expect(await run(t, sh('kill -SEGV $$'))).toMatchObject({
    state: 'failed',
    exitCode: null,
    signal: 'SIGSEGV',
    oomKilled: false,
    reason: { code: 'signaled' },
  })
  expect(await run(t, sh('kill -KILL $$'))).toMatchObject({ signal: 'SIGKILL', oomKilled: false })
})

test('environment, working directory, user, host name and input arrive', async () => {
  const job = await run(t, {
    command: ['sh', '-c', 'echo "$GREETING|$(pwd)|$(id -u):$(id -g)|$(hostname)|$HOME"; cat'],
    env: { GREETING: 'good day\nand line two' },
    workingDir: '/tmp',
    user: '1000:1000',
    hostname: 'box-1',
    stdin: Buffer.from('from stdin').toString('base64'),
  })
  expect(stdout(job)).toBe('good day\nand line two|/tmp|1000:1000|box-1|/\nfrom stdin')
  expect(job.spec).toMatchObject({ stdinBytes: 10 })
  expect(stdout(await run(t, { command: ['id', '-un'], user: 'nobody' }))).toBe('nobody\n')
})

test('a user or a directory that is not there has a reason of its own', async () => {
  expect(await run(t, { command: ['true'], user: 'no-such-user' })).toMatchObject({
    state: 'failed',
    reason: { code: 'user_not_found' },
  })
  expect(await run(t, { command: ['true'], workingDir: '/no/such/dir' })).toMatchObject({
    state: 'failed',
    reason: { code: 'working_dir_not_found' },
  })
})

test('python and node are there', async () => {
  expect(stdout(await run(t, python('print(6 * 7)')))).toBe('42\n')
  expect(stdout(await run(t, { image: 'node', command: ['node', '-e', 'console.log(6 * 7)'] }))).toBe('42\n')
})

test('standard input without any is at its end at once, and closing it harms nothing', async () => {
  expect(await run(t, { command: ['cat'] })).toMatchObject({ state: 'succeeded' })
  const input = Buffer.alloc(1024 * 1024, 120).toString('base64')
  expect(await run(t, { ...sh('exec 0<&-; echo closed'), stdin: input })).toMatchObject({ state: 'succeeded' })
  expect(stdout(await run(t, { command: ['wc', '-c'], stdin: input })).trim()).toBe('1048576')
})

test('output that is not UTF-8 comes back as it was', async () => {
  const job = await run(t, python('import sys; sys.stdout.buffer.write(bytes(range(256)))'))
  expect(job.output?.stdout.encoding).toBe('base64')
  expect(Buffer.from(job.output?.stdout.data ?? '', 'base64')).toEqual(
    Buffer.from(Array.from({ length: 256 }, (_, i) => i)),
  )
  const raw = await t.raw('GET', `/v1/jobs/${job.id}/output/stdout?since=250`)
  expect([...new Uint8Array(await raw.arrayBuffer())]).toEqual([250, 251, 252, 253, 254, 255])
})

test('output larger than what travels with the job is streamed from the node, every byte once', async () => {
  const job = await run(t, python('import sys\nfor i in range(200000): sys.stdout.write("%06d\\n" % i)'))
  expect(job.usage?.stdout).toEqual({ bytes: 1_400_000, keptBytes: 1_400_000, truncated: false })
  expect(job.output?.stdout).toMatchObject({ bytes: 1_400_000, truncated: true })
  const text = await (await t.raw('GET', `/v1/jobs/${job.id}/output/stdout`)).text()
  expect(text.length).toBe(1_400_000)
  expect(text.endsWith('199999\n')).toBe(true)
  const tail = await (await t.raw('GET', `/v1/jobs/${job.id}/output/stdout?since=1399993`)).text()
  expect(tail).toBe('199999\n')
})

test('a follower sees output while the job runs, and its end', async () => {
  const id = await submit(t, sh('echo first; sleep 0.3; echo second; sleep 0.3; echo last'))
  const response = await t.raw('GET', `/v1/jobs/${id}/output/stdout?follow=true`)
  expect(await response.text()).toBe('first\nsecond\nlast\n')
})

test('output over its limit is counted and dropped, and the job is not held up', async () => {
  const job = await run(t, { ...sh('head -c 300000 /dev/zero; echo done >&2'), limits: { outputBytes: 100_000 } })
  expect(job).toMatchObject({
    state: 'succeeded',
    usage: { stdout: { bytes: 300_000, keptBytes: 100_000, truncated: true } },
  })
  const raw = await t.raw('GET', `/v1/jobs/${job.id}/output/stdout`)
  expect((await raw.arrayBuffer()).byteLength).toBe(100_000)
})

test('a timeout is told apart from an exit and from a kill', async () => {
  const job = await run(t, { ...sh('trap "" TERM; while :; do sleep 1; done'), timeoutMs: 300, graceMs: 100 })
  expect(job).toMatchObject({ state: 'timed_out', oomKilled: false, signal: 'SIGKILL', reason: { code: 'timeout' } })
  const polite = await run(t, { ...sh('trap "exit 3" TERM; sleep 60 & wait'), timeoutMs: '300ms', graceMs: '5s' })
  expect(polite).toMatchObject({ state: 'timed_out', exitCode: 3, reason: { code: 'timeout' } })
})

test('a running job is canceled, gently first', async () => {
  const id = await submit(t, sh('trap "echo bye; exit 9" TERM; echo up; sleep 60 & wait'))
  await until('the job runs', async () => ((await t.get(`/v1/jobs/${id}/output`)).body.stdout?.data ? true : undefined))
  const answer = await t.post(`/v1/jobs/${id}/cancel`)
  expect(answer.status).toBe(202)
  const job = await finished(t, id)
  expect(job).toMatchObject({ state: 'canceled', reason: { code: 'canceled' } })
  expect(stdout(job)).toContain('bye')
  expect((await t.post(`/v1/jobs/${id}/cancel`)).body).toMatchObject({ state: 'canceled' })
})

test('a deadline ends a running job, and one that never got to run', async () => {
  const soon = () => new Date(Date.now() + 1500).toISOString()
  const running = submit(t, { ...sh('sleep 60'), deadline: soon() })
  const narrow = await tenant({ concurrentJobs: 1 })
  const blocker = await submit(narrow, sh('sleep 60'))
  const queued = await submit(narrow, { ...sh('true'), deadline: soon() })
  expect(await finished(t, await running)).toMatchObject({ state: 'timed_out', reason: { code: 'deadline_exceeded' } })
  const job = await finished(narrow, queued)
  expect(job).toMatchObject({ state: 'timed_out', reason: { code: 'deadline_exceeded' }, attempts: [] })
  await narrow.post(`/v1/jobs/${blocker}/cancel`)
  await finished(narrow, blocker)
})

test('a failing job is tried again after a back-off, and each attempt is kept', async () => {
  const job = await run(t, { ...sh('exit 7'), retry: { maxAttempts: 3, backoffMs: '50ms', factor: 2 } })
  expect(job).toMatchObject({ state: 'failed', exitCode: 7 })
  expect(job.attempts.map((a) => [a.number, a.state, a.exitCode])).toEqual([
    [1, 'failed', 7],
    [2, 'failed', 7],
    [3, 'failed', 7],
  ])
  const [first, second] = job.attempts
  expect(Date.parse(second?.placedAt ?? '') - Date.parse(first?.finishedAt ?? '')).toBeGreaterThanOrEqual(40)
  const picky = await run(t, { ...sh('exit 7'), retry: { maxAttempts: 3, backoffMs: 0, on: ['timeout'] } })
  expect(picky.attempts).toHaveLength(1)
})

test('a batch is one call, and its summary counts states', async () => {
  const jobs = Array.from({ length: 20 }, (_, i) => sh(`echo ${i}; exit ${i % 2}`))
  const made = await t.post('/v1/batches', { name: 'twenty', jobs })
  expect(made.status).toBe(201)
  expect(made.body.jobIds).toHaveLength(20)
  const ended = await until('the batch ends', async () => {
    const batch = await t.get(`/v1/batches/${made.body.id}?wait=finished&timeoutMs=30s`)
    return batch.body.finishedAt ? batch.body : undefined
  })
  expect(ended).toMatchObject({ name: 'twenty', total: 20, counts: { succeeded: 10, failed: 10 } })
  const outputs = await Promise.all(made.body.jobIds.map((id: string) => finished(t, id)))
  expect(outputs.map((job) => stdout(job).trim())).toEqual(jobs.map((_, i) => String(i)))
})

test('canceling a batch ends what runs and what waits', async () => {
  const narrow = await tenant({ concurrentJobs: 2 })
  const made = await narrow.post('/v1/batches', { jobs: Array.from({ length: 6 }, () => sh('sleep 60')) })
  expect((await narrow.post(`/v1/batches/${made.body.id}/cancel`)).status).toBe(202)
  const ended = await until('the batch ends', async () => {
    const batch = await narrow.get(`/v1/batches/${made.body.id}?wait=finished&timeoutMs=10s`)
    return batch.body.finishedAt ? batch.body : undefined
  })
  expect(ended.counts).toMatchObject({ canceled: 6 })
  expect((await narrow.get('/v1/usage')).body.now).toMatchObject({ unfinishedJobs: 0, runningJobs: 0, cpus: 0 })
})

test('higher priority goes first within a tenant', async () => {
  const narrow = await tenant({ concurrentJobs: 1 })
  const blocker = await submit(narrow, sh('sleep 1'))
  const low = await submit(narrow, { ...sh('true'), priority: 1 })
  const high = await submit(narrow, { ...sh('true'), priority: 9 })
  const [a, b] = [await finished(narrow, low), await finished(narrow, high)]
  expect(Date.parse(b.startedAt ?? '')).toBeLessThanOrEqual(Date.parse(a.startedAt ?? ''))
  await finished(narrow, blocker)
})

test('lists are newest first, page by cursor, and filter by state, label and batch', async () => {
  const own = await tenant()
  const ids: string[] = []
  for (let i = 0; i < 5; i++)
    ids.push(await submit(own, { ...sh(`exit ${i === 4 ? 1 : 0}`), labels: { n: String(i), set: 'a' } }))
  for (const id of ids) await finished(own, id)
  const first = (await own.get('/v1/jobs?limit=2')).body
  const second = (await own.get(`/v1/jobs?limit=2&cursor=${first.nextCursor}`)).body
  const third = (await own.get(`/v1/jobs?limit=2&cursor=${second.nextCursor}`)).body
  const listed = [...first.items, ...second.items, ...third.items].map((job) => job.id)
  expect(listed).toEqual([...ids].reverse())
  expect(third.nextCursor).toBeNull()
  expect((await own.get('/v1/jobs?state=failed')).body.items.map((job: { id: string }) => job.id)).toEqual([ids[4]])
  expect((await own.get('/v1/jobs?label=set=a&label=n=2')).body.items.map((job: { id: string }) => job.id)).toEqual([
    ids[2],
  ])
})

test('an ended job can be deleted, a running one not', async () => {
  const job = await run(t, sh('echo gone soon'))
  expect((await t.delete(`/v1/jobs/${job.id}`)).status).toBe(204)
  expect((await t.get(`/v1/jobs/${job.id}`)).body).toMatchObject({ code: 'job_not_found' })
  const id = await submit(t, sh('sleep 30'))
  expect((await t.delete(`/v1/jobs/${id}`)).body).toMatchObject({ status: 409, code: 'wrong_state' })
  await t.post(`/v1/jobs/${id}/cancel`)
  await finished(t, id)
})

test('an ended job is gone after its retention time', async () => {
  const job = await run(t, { ...sh('head -c 100000 /dev/zero'), retentionMs: '1s' })
  expect(Date.parse(job.expiresAt ?? '') - Date.parse(job.finishedAt ?? '')).toBeGreaterThanOrEqual(1000)
  await until(
    'the job is gone',
    async () => ((await t.get(`/v1/jobs/${job.id}`)).status === 404 ? true : undefined),
    90_000,
  )
}, 100_000)
