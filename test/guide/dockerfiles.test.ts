// The Dockerfiles of the guide, built as docs/guide-dockerfiles.md says, and what comes out of them at work.
import { execFileSync } from 'node:child_process'
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { gunzipSync } from 'node:zlib'
import type { Job } from '@berth/contracts'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { run, stdout, type TestTenant, tenant } from '../support/berth.js'
import { ensureGuideImages } from './base-images.js'

const here = import.meta.dirname
const directory = mkdtempSync(join(tmpdir(), 'berth-guide-'))
afterAll(() => rmSync(directory, { recursive: true }))

let mine: TestTenant
beforeAll(async () => {
  mine = await tenant()
  await ensureGuideImages(mine)
}, 600_000)

const original = (number: string): string => readFileSync(join(here, 'dockerfiles', `${number}.Dockerfile`), 'utf8')

interface Replacement {
  readonly file: string
  /** 0: in front. */
  readonly line: number
  readonly there: string
  readonly instead: string
}

/** The table of the documentation, whose code has no bars. */
const replacements: readonly Replacement[] = readFileSync(join(here, '../../docs/guide-dockerfiles.md'), 'utf8')
  .split('\n')
  .filter((row) => /^\| \d\d/.test(row))
  .map((row) => {
    const [file = '', line = '', there = '', instead = ''] = row
      .split('|')
      .slice(1)
      .map((cell) => cell.trim().replace(/^`(.*)`$/, '$1'))
    return { file, line: Number(line), there, instead }
  })

/** @param file as the table has it: `08 on Alpine` is 08 with the replacements of that name */
function replaced(file: string): string {
  const lines = original(file.slice(0, 2)).split('\n')
  const front: string[] = []
  for (const { line, there, instead } of replacements.filter((one) => one.file === file)) {
    if (line === 0) front.push(instead)
    else if (lines[line - 1] === there) lines[line - 1] = instead
    else throw new Error(`line ${line} of ${file} is not ${there}`)
  }
  return [...front, ...lines].join('\n')
}

const contexts: Readonly<Record<string, string>> = {
  ...{ '01': 'node', '02': 'node', '03': 'go', '04': 'python', '07': 'python', '10': 'secret', '13': 'logs' },
}

/** Builds a Dockerfile with the context that it is for. */
async function build(dockerfile: string, number: string, query: string, headers: Record<string, string> = {}) {
  const context = mkdtempSync(join(directory, `${number}-`))
  cpSync(join(here, 'contexts', contexts[number] ?? 'python'), context, { recursive: true })
  writeFileSync(join(context, 'Dockerfile'), dockerfile)
  const body = execFileSync('tar', ['-C', context, '-c', '.'])
  const response = await mine.raw('POST', `/v1/builds?wait=done&${query}`, { body, headers })
  return { status: response.status, body: Object(await response.json()) }
}

/** @returns the image as the API describes it, of the name `tag` */
async function built(file: string, options: { tag?: string; query?: string; headers?: Record<string, string> } = {}) {
  const tag = options.tag ?? `guide-${file.toLowerCase().replaceAll(' ', '-')}`
  const answer = await build(replaced(file), file.slice(0, 2), `tag=${tag}&${options.query ?? ''}`, options.headers)
  if (answer.status !== 201) throw new Error(`build: ${JSON.stringify(answer.body)}`)
  const image = (await mine.get(`/v1/images/${tag}`)).body
  return { tag, image, settings: image.settings, log: (await mine.get(`/v1/builds/${answer.body.build.id}/log`)).body }
}

/** Starts what the image starts by itself, as the user that it has, and then runs a script beside it. */
function beside(tag: string, command: readonly string[], script: string): Promise<Job> {
  return run(mine, { image: tag, command: ['sh', '-c', `"$@" >&2 & ${script}`, 'sh', ...command], timeoutMs: '60s' })
}
const fetched = (port: number): string =>
  `until python -c "import urllib.request as u; print(u.urlopen('http://127.0.0.1:${port}').read().decode())"; do sleep 0.2; done`
const inImage = async (image: string, script: string, as: { user?: string; workingDir?: string } = {}) =>
  stdout(await run(mine, { image, command: ['sh', '-c', script], ...as }))

describe('multi-stage builds', () => {
  test('01, 02: a Node.js application runs as its user, from an image that is smaller than that of one stage', async () => {
    const single = await built('01')
    expect(await inImage(single.tag, 'ls -d dist src node_modules/ms')).toBe('dist\nnode_modules/ms\nsrc\n')
    const { tag, image, settings } = await built('02')
    expect(settings).toMatchObject({ command: ['node', 'dist/index.js'], user: 'appuser', workingDir: '/app' })
    const job = await beside(
      tag,
      settings.command,
      'until wget -qO- http://127.0.0.1:3000; do sleep 0.2; done; id -un; id -gn; ls',
    )
    expect(stdout(job)).toBe('a minute has 60000 ms\nappuser\nappgroup\ndist\nnode_modules\npackage.json\n')
    expect(image.sizeBytes).toBeLessThan(single.image.sizeBytes)
  })

  test('03: a program of Go alone, in a small image', async () => {
    const single = await built('03', { tag: 'guide-03-builder', query: 'target=builder' })
    const { tag, image, settings } = await built('03')
    expect(settings).toMatchObject({ command: ['./main'], user: 'appuser', workingDir: '/root' })
    expect(await inImage(tag, './main', { user: 'root' })).toMatch(/^hello from /)
    expect(await inImage(tag, 'id -un; ls /etc/ssl/certs', { workingDir: '/' })).toBe('appuser\nca-certificates.crt\n')
    // In Alpine /root is root's alone.
    const denied = await run(mine, { image: tag, command: settings.command })
    expect(denied).toMatchObject({ state: 'failed', reason: { code: 'working_dir_not_found' } })
    expect(image.sizeBytes).toBeLessThan(single.image.sizeBytes / 10)
  })

  test('04: a virtual environment is taken along, what it was made with is not', async () => {
    const single = await built('04', { tag: 'guide-04-builder', query: 'target=builder' })
    const { tag, image, settings } = await built('04')
    expect(settings).toMatchObject({ command: ['gunicorn', '--bind', '0.0.0.0:8000', 'app:app'], user: 'appuser' })
    const job = await beside(tag, settings.command, `${fetched(8000)}; id -u; command -v gcc; stat -c %U app.py`)
    expect(stdout(job)).toMatch(/^hello from gunicorn\/[\d.]+\n\n1000\nappuser\n$/)
    expect(image.sizeBytes).toBeLessThan(single.image.sizeBytes)
  })
})

describe('images and layers', () => {
  test('05: a base image as it is', async () => {
    expect(await inImage((await built('05')).tag, 'python3 -c "import ssl, sqlite3; print(6 * 7)"')).toBe('42\n')
  })

  test('06: what apt leaves behind is removed', async () => {
    const { tag } = await built('06')
    expect(await inImage(tag, 'git --version; curl --version; ls /var/lib/apt/lists')).toMatch(/^git .*\ncurl .*/)
    expect(await inImage(tag, 'ls /var/lib/apt/lists')).toBe('')
  })

  test('07: a change of the application leaves the layers of what it needs as they were', async () => {
    const { tag, image } = await built('07')
    expect(await inImage(tag, `gunicorn app:app & ${fetched(8000)}`)).toContain('hello from gunicorn')
    const changed = await build(`${replaced('07')}\nLABEL a=b\n`, '07', 'tag=guide-07b')
    const layers = (await mine.get('/v1/images/guide-07b')).body.layers
    expect(changed.status).toBe(201)
    expect(layers.slice(0, -1)).toEqual(image.layers.slice(0, -1))
  })

  test.each(['08 on Debian', '08 on Alpine'])('%s: another user, by name and by number', async (file) => {
    const { tag, settings } = await built(file)
    expect(settings.user).toBe('1000:1000')
    expect(await inImage(tag, 'id -u; stat -c %U:%G /app /app/app.py')).toBe(
      '1000\nappuser:appgroup\nappuser:appgroup\n',
    )
  })

  test('09: the last of several images, by its digest', async () => {
    const base = (await mine.get('/v1/images/python:3.11-slim')).body
    const { image } = await built('09', { query: `arg=DIGEST=${base.manifestDigest}` })
    expect(image.layers).toEqual(base.layers)
  })

  test('10: a secret is seen by its command, and is nowhere else', async () => {
    const secret = 'correct horse battery staple'
    const headers = { 'berth-build-secret': `api_key=${Buffer.from(secret).toString('base64')}` }
    const { tag, settings, log } = await built('10', { headers })
    expect(await inImage(tag, 'cat /configured; ls -A /run /run/secrets 2>&1')).toContain('a key of 28 characters\n')
    // What the guide warns of is there for all to see.
    expect(settings.env).toContain('API_KEY=secret123')
    expect(log).not.toContain('horse')
    const contents = [...(await saved(tag)).values()].map(String)
    expect(contents.some((text) => text.includes('a key of 28 characters'))).toBe(true)
    expect(contents.some((text) => text.includes('horse'))).toBe(false)
  })

  test('11: nothing but a base without a shell; and a stage that only its target needs', async () => {
    const { tag } = await built('11')
    expect(await run(mine, { image: tag, command: ['sh'] })).toMatchObject({ reason: { code: 'command_not_found' } })
    const Dockerfile = `FROM ${tag}\nCOPY --from=guide-03 /root/main /main\nCMD ["/main"]\n`
    expect((await build(Dockerfile, '11', 'tag=guide-11-main')).status).toBe(201)
    expect(stdout(await run(mine, { image: 'guide-11-main', command: ['/main'] }))).toMatch(/^hello from /)
    const first = await built('11', { tag: 'guide-11-first', query: 'target=0' })
    expect(await inImage(first.tag, 'command -v curl wget; true')).toBe('')
  })
})

/** What is in an image's archive: its blobs, of which layers are unpacked to tars, by their paths. */
async function saved(tag: string): Promise<ReadonlyMap<string, Buffer>> {
  const archive = Buffer.from(await (await mine.raw('GET', `/v1/images/${tag}/archive`)).arrayBuffer())
  const unpacked = mkdtempSync(join(directory, 'archive-'))
  execFileSync('tar', ['-x', '-C', unpacked], { input: archive })
  const files = readdirSync(unpacked, { recursive: true, withFileTypes: true }).filter((one) => one.isFile())
  const paths = files.map((one) => join(one.parentPath, one.name))
  return new Map(paths.map((path) => [relative(unpacked, path), plain(readFileSync(path))]))
}
const plain = (bytes: Buffer): Buffer => (bytes[0] === 0x1f && bytes[1] === 0x8b ? gunzipSync(bytes) : bytes)

describe('settings', () => {
  test.each([
    ['12', 'redis-cli ping || exit 1', 10, 3, 5, 3],
    ['15', 'curl -f http://localhost:8080/health || exit 1', 30, undefined, 60, undefined],
  ])('%s: the last health check', async (file, command, interval, timeout, start, retries) => {
    const { tag, image } = await built(file)
    const config = (await saved(tag)).get(`blobs/sha256/${image.digest.slice('sha256:'.length)}`)
    const second = 1e9
    expect(JSON.parse(String(config)).config).toMatchObject({
      Healthcheck: {
        ...{ Test: ['CMD-SHELL', command], Interval: interval * second, StartPeriod: start * second },
        ...(timeout !== undefined && { Timeout: timeout * second, Retries: retries }),
      },
    })
  })

  test('13: what is written to files that are links to the output is the output', async () => {
    const { tag, settings } = await built('13')
    const job = await run(mine, { image: tag, command: settings.command })
    expect(job).toMatchObject({ state: 'succeeded', output: { stderr: { data: 'an error\n' } } })
    expect(stdout(job)).toContain('an access\n')
    expect(stdout(job)).toContain('done\n')
    // With the comment it is for a shell, which does not find it.
    const shell = await build(replaced('13').replace('"app.py"]', '"app.py"]  # -u'), '13', 'tag=guide-13-shell')
    expect(shell.status).toBe(201)
    expect((await mine.get('/v1/images/guide-13-shell')).body.settings.command.slice(0, 2)).toEqual(['/bin/sh', '-c'])
  })

  test('14: nginx in the foreground', async () => {
    const { tag, settings } = await built('14')
    expect(settings.command).toEqual(['nginx', '-g', 'daemon off;'])
    const job = await beside(tag, settings.command, 'until bash -c ": <> /dev/tcp/127.0.0.1/80"; do sleep 0.2; done')
    expect(job).toMatchObject({ state: 'succeeded' })
  })
})

describe('as they are', () => {
  test.each([
    ...[
      ['05', 2],
      ['06', 2],
      ['08', 2],
      ['09', 8],
      ['10', 2],
      ['11', 2],
      ['12', 2],
      ['13', 5],
      ['14', 2],
      ['15', 2],
    ],
  ] as const)('%s is refused in line %i', async (number, line) => {
    const answer = await build(original(number), number, '')
    expect(answer).toMatchObject({ status: 422, body: { code: 'dockerfile_invalid', line } })
  })
})
