// Builds of real nodes, as tenants see them. What the API does of a build whatever its node does is in
// builds-of-nodes.test.ts.
import { execFile, execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { BuildProgress } from '@berth/contracts'
import { afterAll, describe, expect, test } from '@jest/globals'
import { type Api, run, stack, stdout, tenant, until } from '../support/berth.js'

const directories: string[] = []
afterAll(() => {
  for (const directory of directories) rmSync(directory, { recursive: true })
})

type Files = Readonly<Record<string, string>>

function directoryOf(files: Files): string {
  const directory = mkdtempSync(join(tmpdir(), 'berth-build-'))
  directories.push(directory)
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(join(directory, dirname(path)), { recursive: true })
    writeFileSync(join(directory, path), text)
  }
  return directory
}
const contextOf = (files: Files): Buffer => execFileSync('tar', ['-C', directoryOf(files), '-c', '.'])

async function build(api: Api, files: Files, query = '', headers: Record<string, string> = {}) {
  const response = await api.raw('POST', `/v1/builds?wait=done&${query}`, { body: contextOf(files), headers })
  return { status: response.status, body: Object(await response.json()) }
}
async function built(api: Api, files: Files, query = '', headers: Record<string, string> = {}) {
  const { status, body } = await build(api, files, query, headers)
  if (status !== 201) throw new Error(`build: ${JSON.stringify(body)}`)
  return { digest: body.image.digest, steps: (await api.get(`/v1/builds/${body.build.id}`)).body.steps, body }
}
const logOf = async (api: Api, id: string): Promise<string> => (await api.get(`/v1/builds/${id}/log`)).body
const used = async (api: Api) => (await api.get('/v1/usage')).body.now

/** An application as people containerise one: built in one stage, run by another user in a small one. */
const app: Files = {
  Dockerfile: `# syntax=docker/dockerfile:1.4
ARG BASE=python
FROM \${BASE} AS builder
WORKDIR /app
COPY requirements.txt .
RUN --mount=type=cache,target=/cache echo "$(date +%N)" >> /cache/times && cp requirements.txt installed.txt
COPY src src
RUN <<EOT
python3 -c 'print(open("installed.txt").read().strip(), open("src/main.py").read().strip())' > app.txt
EOT

FROM debian AS runtime
ARG VERSION=0
LABEL version=$VERSION
ENV GREETING="hello from $VERSION"
WORKDIR /srv
COPY --from=builder --chown=1000:1000 --chmod=640 /app/app.txt ./
USER 1000:1000
HEALTHCHECK --interval=5s CMD test -f app.txt
EXPOSE 8080
CMD ["sh", "-c", "id -u; stat -c %u:%a app.txt; cat app.txt; echo $GREETING"]

FROM runtime AS debug
RUN exit 9
`,
  'requirements.txt': 'flask\n',
  'src/main.py': 'main\n',
  'secret.env': 'TOKEN=1\n',
  '.dockerignore': '*.env\n',
}

describe('an image', () => {
  test('is built in stages, runs, and is built again from the cache to the same digest', async () => {
    const mine = await tenant()
    const first = await built(mine, app, 'tag=app&target=runtime&arg=VERSION=1')
    expect(first.body.image).toMatchObject({ references: ['app:latest'], labels: { version: '1' } })
    const job = await run(mine, { image: 'app', command: ['sh', '-c', 'id -u; stat -c %u:%a app.txt; cat app.txt'] })
    expect(stdout(job)).toBe('1000\n1000:640\nflask main\n')
    const again = await built(mine, app, 'tag=app:2&target=runtime&arg=VERSION=1')
    expect(again.digest).toBe(first.digest)
    const states = again.steps.map(({ state }: { state: string }) => state)
    expect(new Set(states)).toEqual(new Set(['cached']))
    expect((await mine.get('/v1/images/app')).body.references).toEqual(['app:2', 'app:latest'])
    // What is copied later has changed: what comes before is not run again.
    const changed = await built(mine, { ...app, 'src/main.py': 'other\n' }, 'target=runtime&arg=VERSION=1')
    expect(changed.digest).not.toBe(first.digest)
    const ran = changed.steps.filter(({ state }: { state: string }) => state !== 'cached')
    expect(ran.some(({ name }: { name: string }) => name.includes('mount=type=cache'))).toBe(false)
    expect(ran.length).toBeGreaterThan(0)
    const cache = (await mine.get('/v1/builds/cache')).body
    expect(cache.items[0].bytes).toBeGreaterThan(0)
    expect((await mine.post('/v1/builds/cache/prune', {})).body).toMatchObject({ unreachable: [] })
    expect((await mine.get('/v1/builds/cache')).body.items[0].entries).toEqual([])
  })

  test('is of the stage that is asked for, and of nothing that it does not need', async () => {
    const mine = await tenant()
    const { body } = await built(mine, app, 'tag=builder&target=builder')
    const job = await run(mine, { image: 'builder', command: ['sh', '-c', 'ls; pwd'] })
    expect(stdout(job)).toBe('app.txt\ninstalled.txt\nrequirements.txt\nsrc\n/app\n')
    expect(await logOf(mine, body.build.id)).not.toContain('exit 9')
  })

  test('may be built with a secret, which is in neither image nor log', async () => {
    const mine = await tenant()
    const secret = 'correct horse battery staple'
    const Dockerfile = 'FROM debian\nRUN --mount=type=secret,id=key cat /run/secrets/key && ls /run > /listed\n'
    const headers = { 'berth-build-secret': `key=${Buffer.from(secret).toString('base64')}` }
    const { body } = await built(mine, { Dockerfile }, 'tag=app', headers)
    const log = await logOf(mine, body.build.id)
    expect(log).toMatch(/#\d+ [\d.]+ \*+/)
    expect(log).not.toContain('horse')
    const look = 'cat /listed; ls /run/secrets 2>/dev/null; grep -rl horse /run /etc /tmp /root 2>/dev/null; true'
    expect(stdout(await run(mine, { image: 'app', command: ['sh', '-c', look] }))).not.toMatch(/key|run/)
    expect(JSON.stringify((await mine.get('/v1/images/app/history')).body)).not.toContain('horse')
  })
})

describe('what fails', () => {
  test('a command: where it is and what it wrote, and nothing is named', async () => {
    const mine = await tenant()
    const Dockerfile = 'FROM debian\n\nRUN echo before >&2; exit 3\n'
    const { status, body } = await build(mine, { Dockerfile }, 'tag=app')
    expect(status).toBe(422)
    expect(body).toMatchObject({ code: 'build_failed', line: 3, output: expect.stringContaining('before') })
    expect(body.detail).toContain('3')
    expect(await logOf(mine, body.build)).toMatch(/#\d+ [\d.]+ before\n/)
    expect((await mine.get('/v1/images?reference=app')).body.items).toEqual([])
    expect(await used(mine)).toMatchObject({ runningJobs: 0, cpus: 0, memoryBytes: 0, diskBytes: 0, imageBytes: 0 })
  })

  test.each([
    ['a Dockerfile', { Dockerfile: 'FROM debian\nRUNN x\n' }, { code: 'dockerfile_invalid', line: 2 }],
    ['a file to copy', { Dockerfile: 'FROM debian\nCOPY none /\n' }, { code: 'build_failed', line: 2 }],
    ['a Dockerfile that is not there', { a: '' }, { code: 'dockerfile_invalid' }],
  ])('%s', async (_, files, problem) => {
    const answer = await build(await tenant(), files)
    expect(answer).toMatchObject({ status: 422, body: problem })
  })

  test('a context that is none', async () => {
    const mine = await tenant()
    const answer = await mine.raw('POST', '/v1/builds?wait=done', { body: 'x'.repeat(2000) })
    expect([answer.status, Object(await answer.json()).code]).toEqual([422, 'context_invalid'])
  })
})

/** Whether a process with this word among its arguments runs on the machine. */
const runs = (word: string): boolean =>
  readdirSync('/proc').some((pid) => {
    if (!/^\d+$/.test(pid)) return false
    try {
      return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').includes(word)
    } catch {
      return false // It has just ended.
    }
  })

test('a build that is canceled ends with all that it runs, and the next one does not find half of it', async () => {
  const mine = await tenant()
  const word = `${4_000_000 + (process.pid % 1000)}`
  const files = { Dockerfile: `FROM debian\nRUN echo half > /half\nRUN sleep ${word}\n` }
  const response = await mine.raw('POST', '/v1/builds?tag=app', { body: contextOf(files) })
  await until('the command runs', async () => runs(word) || undefined)
  const [{ id }] = (await mine.get('/v1/builds?state=running')).body.items
  expect((await mine.post(`/v1/builds/${id}/cancel`)).body.state).toBe('canceled')
  expect(await used(mine)).toMatchObject({ runningJobs: 0, memoryBytes: 0 })
  await until('the command has ended', async () => !runs(word) || undefined)
  const lines = (await response.text()).trim().split('\n')
  expect(BuildProgress.parse(JSON.parse(lines.at(-1) ?? ''))).toMatchObject({ step: 'failed', code: 'build_canceled' })
  expect((await mine.get('/v1/images?reference=app')).body.items).toEqual([])
  const next = await built(mine, { Dockerfile: 'FROM debian\nRUN echo half > /half\n' }, 'tag=app')
  expect(next.steps.at(-1)).toMatchObject({ state: 'cached' })
})

test('berth build sends a directory without what is ignored, and says how it went', async () => {
  const mine = await tenant()
  const env = { ...process.env, BERTH_URL: stack().url, BERTH_API_KEY: mine.key, NODE_OPTIONS: '' }
  const berth = (...args: string[]) => promisify(execFile)(resolve('berth'), ['build', ...args], { env })
  const directory = directoryOf({
    ...{ Dockerfile: 'FROM debian\nARG A\nCOPY . /ctx\nRUN echo $A > /a\n', '.dockerignore': 'left-out', a: '' },
    'left-out/b': '',
  })
  const { stdout: digest, stderr } = await berth('-t', 'cli', '--build-arg', 'A=1', directory)
  expect(stderr).toContain('RUN echo $A > /a')
  expect((await mine.get('/v1/images/cli')).body.digest).toBe(digest.trim())
  expect(stdout(await run(mine, { image: 'cli', command: ['sh', '-c', 'ls /ctx; cat /a'] }))).toBe('Dockerfile\na\n1\n')
  writeFileSync(join(directory, 'Dockerfile'), 'FROM debian\nRUN exit 3\n')
  await expect(berth(directory)).rejects.toMatchObject({ code: 1, stderr: expect.stringContaining('Dockerfile:2') })
})
