// Files of real sandboxes over HTTP, as any client would: fetch, curl and the system's tar.
import { execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals'
import { type Answer, stack, type TestTenant, tenant, until } from '../support/berth.js'
import { memoryOf } from '../support/crash.js'

const MiB = 1024 ** 2
const GiB = 1024 ** 3
/** On a busy machine a GiB each way takes its time. */
const LONG_MS = 600_000

let t: TestTenant
let sandbox: string
let scratch: string

beforeAll(async () => {
  t = await tenant({ sandboxes: 20, cpus: 100, memoryBytes: 2 ** 44, diskBytes: 2 ** 44, requestsPerMinute: 100_000 })
  sandbox = await make({ limits: { memoryBytes: '512m', diskBytes: '3g', cpus: 2 } })
  scratch = mkdtempSync(join(tmpdir(), 'berth-files-'))
}, 120_000)
afterAll(async () => {
  rmSync(scratch, { recursive: true, force: true })
  for (const { id } of (await t.get('/v1/sandboxes')).body.items) await t.delete(`/v1/sandboxes/${id}?force=true`)
})

async function make(fields: object, of = t): Promise<string> {
  const made = await of.post('/v1/sandboxes?wait=running&timeoutMs=60s', { image: 'debian', ...fields })
  if (made.status !== 201) throw new Error(`sandbox: ${JSON.stringify(made.body)}`)
  return made.body.id
}

let counter = 0
const fresh = async (of = sandbox) => {
  const path = `/srv/t${counter++}`
  expect((await post('directory', { path }, of)).status).toBe(201)
  return path
}
const at = (words = '', query: Record<string, string> = {}, of = sandbox) => {
  const text = new URLSearchParams(query).toString()
  return `/v1/sandboxes/${of}/files${words === '' ? '' : `/${words}`}${text === '' ? '' : `?${text}`}`
}
const get = (words: string, query: Record<string, string>, of = sandbox) => t.get(at(words, query, of))
const post = (words: string, body: object, of = sandbox) => t.post(at(words, {}, of), body)
const put = async (query: Record<string, string>, body: RequestInit['body'], words = '', of = sandbox) => {
  const init = body instanceof ReadableStream ? { body, duplex: 'half' as const } : { body: body ?? '' }
  const response = await t.raw('PUT', at(words, query, of), init)
  return { status: response.status, body: JSON.parse(await response.text()) }
}
const download = (path: string, headers: Record<string, string> = {}, of = sandbox) =>
  t.raw('GET', at('', { path }, of), { headers })
const textOf = async (path: string, of = sandbox) => (await download(path, {}, of)).text()
const remove = (path: string, query: Record<string, string> = {}, of = sandbox) =>
  t.delete(at('', { path, ...query }, of))
const refusal = ({ status, body }: Pick<Answer, 'status' | 'body'>) => `${status} ${body.code}`
/** Runs a shell script in the sandbox. @returns its output */
async function sh(script: string, of = sandbox): Promise<string> {
  const { status, body } = await t.post(`/v1/sandboxes/${of}/execs?wait=ended&output=true&timeoutMs=60s`, {
    command: ['sh', '-c', script],
  })
  if (status !== 201) throw new Error(`exec: ${JSON.stringify(body)}`)
  return body.output.stdout.data
}
const lines = async (response: Response) =>
  (await response.text()).split('\n').flatMap((line) => (line === '' ? [] : [JSON.parse(line)]))

describe('operations', () => {
  test('a file from its making to its removal', async () => {
    const dir = await fresh()
    const made = await put({ path: `${dir}/a b/é`, parents: 'true', mode: '640' }, 'hello')
    expect(made).toMatchObject({ status: 200, body: { name: 'é', sizeBytes: 5, mode: '0640', kind: 'file', uid: 0 } })
    expect((await get('stat', { path: `${dir}/a b/é` })).body).toEqual(made.body)
    const response = await download(`${dir}/a b/é`)
    expect(await response.text()).toBe('hello')
    expect(Object.fromEntries(response.headers)).toMatchObject({
      'content-type': 'application/octet-stream',
      'content-length': '5',
      'accept-ranges': 'bytes',
      'content-disposition': 'attachment; filename="_"; filename*=UTF-8\'\'%C3%A9',
      'x-content-type-options': 'nosniff',
    })
    expect(await sh(`cat '${dir}/a b/é'`)).toBe('hello')
    const renamed = await post('rename', { from: `${dir}/a b/é`, to: `${dir}/b` })
    expect(renamed.body).toMatchObject({ path: `${dir}/b`, sizeBytes: 5 })
    const entries = await lines(await t.raw('GET', at('list', { path: dir })))
    expect(entries.map(({ name, kind }) => `${kind} ${name}`).sort()).toEqual(['directory a b', 'file b'])
    expect((await remove(`${dir}/b`)).status).toBe(204)
    expect(refusal(await remove(`${dir}/b`))).toBe('404 path_not_found')
    expect((await remove(dir, { recursive: 'true' })).status).toBe(204)
  })

  test.each<[string | undefined, number, string, string | null]>([
    [undefined, 200, '0123456789', null],
    ['bytes=2-4', 206, '234', 'bytes 2-4/10'],
    ['bytes=8-', 206, '89', 'bytes 8-9/10'],
    ['bytes=-3', 206, '789', 'bytes 7-9/10'],
    ['bytes=1-2,4-5', 200, '0123456789', null],
    ['nonsense', 200, '0123456789', null],
  ])('Range: %s', async (range, status, text, contentRange) => {
    const dir = await fresh()
    await put({ path: `${dir}/f` }, '0123456789')
    const response = await download(`${dir}/f`, range === undefined ? {} : { range })
    expect([response.status, response.headers.get('content-range'), await response.text()]).toEqual([
      status,
      contentRange,
      text,
    ])
  })

  test('a range beyond the end is 416, with the size', async () => {
    const dir = await fresh()
    await put({ path: `${dir}/f` }, '0123456789')
    const response = await download(`${dir}/f`, { range: 'bytes=10-' })
    expect([response.status, response.headers.get('content-range')]).toEqual([416, 'bytes */10'])
    expect(await response.json()).toMatchObject({ code: 'range_not_satisfiable', sizeBytes: 10 })
  })

  test('a user has the rights it has in the sandbox', async () => {
    const dir = await fresh()
    await put({ path: `${dir}/secret`, mode: '600' }, 'root’s')
    const asked = await get('stat', { path: `${dir}/secret`, user: 'nobody' })
    expect(asked.status).toBe(200)
    const read = await t.get(at('', { path: `${dir}/secret`, user: 'nobody' }))
    expect(refusal(read)).toBe('403 path_denied')
    expect(refusal(await put({ path: `${dir}/new`, user: 'nobody' }, 'x'))).toBe('403 path_denied')
    expect((await put({ path: '/tmp/theirs', user: 'nobody' }, 'x')).body).toMatchObject({ uid: 65534 })
    expect(refusal(await put({ path: '/tmp/x', user: 'no-such-user' }, 'x'))).toBe('400 invalid_request')
  })

  test('nothing leads out: links and dots end in the sandbox', async () => {
    const dir = await fresh()
    await sh(`cd ${dir} && ln -s /etc/hostname link && ln -s / root`)
    const own = await sh('cat /etc/hostname')
    for (const path of [`${dir}/link`, `${dir}/root/etc/hostname`, `${dir}/../../../../../../../../etc/hostname`])
      expect(await textOf(path)).toBe(own)
    expect(refusal(await t.get(at('', { path: '/proc/1/root/etc/hostname' })))).toBe('403 path_denied')
  })
})

describe('bad input', () => {
  const reading = (path: string) => t.get(at('', { path }))
  test.each<[string, () => Promise<Pick<Answer, 'status' | 'body'>>, string]>([
    ['a path with NUL', () => reading('/a\0b'), '400 invalid_request'],
    ['a path of 5,000 characters', () => reading(`/${'x/'.repeat(2500)}`), '400 invalid_request'],
    ['a name of 256 bytes', () => reading(`/${'x'.repeat(256)}`), '400 invalid_request'],
    ['a relative path', () => reading('etc/passwd'), '400 invalid_request'],
    ['no path', () => t.get(at('stat')), '400 invalid_request'],
    ['a mode that is none', () => put({ path: '/tmp/x', mode: '999' }, 'x'), '400 invalid_request'],
    ['an option that is none', () => t.get(at('stat', { path: '/', deep: 'true' })), '400 invalid_request'],
    ['a directory read as a file', () => reading('/etc'), '409 path_is_directory'],
    ['a directory written as a file', () => put({ path: '/etc' }, 'x'), '409 path_is_directory'],
    ['a file listed as a directory', () => get('list', { path: '/etc/passwd' }), '409 path_not_directory'],
    ['a device', () => reading('/dev/zero'), '409 path_not_file'],
    ['a loop of links', () => sh('ln -sf loop /tmp/loop').then(() => reading('/tmp/loop')), '409 path_loop'],
    ['a watch on what was removed', () => get('watch', { path: '/srv/gone' }), '404 path_not_found'],
    ['an unknown sandbox', () => get('stat', { path: '/' }, 'sbx_00000000000000000000000000'), '404 sandbox_not_found'],
    ['an archive that is none', () => put({ path: '/srv' }, 'no tar', 'archive'), '422 archive_invalid'],
    ['the root of everything', () => remove('/', { recursive: 'true' }), '403 path_denied'],
  ])('%s', async (_, ask, expected) => {
    expect(refusal(await ask())).toBe(expected)
  })
})

/** Reproducible bytes, a MiB at a time, and their digest so far. */
function source(total: number) {
  const hash = createHash('sha256')
  const block = randomBytes(MiB)
  const bytes = (function* () {
    for (let i = 0; i * MiB < total; i++) {
      block.writeUInt32LE(i, 0)
      const part = Buffer.from(block.subarray(0, Math.min(MiB, total - i * MiB)))
      hash.update(part)
      yield part
    }
  })()
  return { stream: Readable.toWeb(Readable.from(bytes)) as ReadableStream, digest: () => hash.digest('hex') }
}

/** Most resident memory of API and agent while `work` goes on, above what it was before, in MiB. */
async function growth(work: () => Promise<void>): Promise<{ api: number; agent: number }> {
  const before = await memoryOf()
  const most = { ...before }
  let over = false
  const watching = (async () => {
    while (!over) {
      const now = await memoryOf()
      most.api = Math.max(most.api, now.api)
      most.agent = Math.max(most.agent, now.agent)
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  })()
  try {
    await work()
  } finally {
    over = true
    await watching
  }
  return { api: most.api - before.api, agent: most.agent - before.agent }
}

describe('sizes', () => {
  test('0 bytes', async () => {
    const dir = await fresh()
    expect((await put({ path: `${dir}/f` }, '')).body).toMatchObject({ sizeBytes: 0 })
    const response = await download(`${dir}/f`)
    expect([response.headers.get('content-length'), await response.text()]).toEqual(['0', ''])
  })

  test(
    '1 GiB up and down: the same bytes, and flat memory',
    async () => {
      const dir = await fresh()
      const sent = source(GiB)
      const received = createHash('sha256')
      let length = 0
      const grown = await growth(async () => {
        expect((await put({ path: `${dir}/f` }, sent.stream)).body).toMatchObject({ sizeBytes: GiB })
        for await (const chunk of (await download(`${dir}/f`)).body ?? []) {
          received.update(chunk)
          length += chunk.length
        }
      })
      expect([length, received.digest('hex')]).toEqual([GiB, sent.digest()])
      expect(grown.api).toBeLessThan(150)
      expect(grown.agent).toBeLessThan(150)
      await remove(`${dir}/f`)
    },
    LONG_MS,
  )

  test(
    '5 GiB that the disk does not hold: all of it, and its end',
    async () => {
      const dir = await fresh()
      await sh(`truncate -s 5G ${dir}/f && printf end >> ${dir}/f`)
      expect((await get('stat', { path: `${dir}/f` })).body.sizeBytes).toBe(5 * GiB + 3)
      const end = await download(`${dir}/f`, { range: `bytes=${5 * GiB}-` })
      expect(await end.text()).toBe('end')
      let length = 0
      const grown = await growth(async () => {
        for await (const chunk of (await download(`${dir}/f`)).body ?? []) length += chunk.length
      })
      expect(length).toBe(5 * GiB + 3)
      expect(grown.api).toBeLessThan(150)
      expect(grown.agent).toBeLessThan(150)
    },
    LONG_MS,
  )

  test(
    'more than the disk holds: 507, and what was there is there',
    async () => {
      const small = await make({ limits: { memoryBytes: '256m', diskBytes: '64m' } })
      await put({ path: '/srv/f' }, 'old', '', small)
      expect(refusal(await put({ path: '/srv/f' }, source(200 * MiB).stream, '', small))).toBe('507 disk_full')
      expect(await textOf('/srv/f', small)).toBe('old')
      expect(await sh('ls -A /srv', small)).toBe('f\n')
      await t.delete(`/v1/sandboxes/${small}?force=true`)
    },
    LONG_MS,
  )
})

describe('trees', () => {
  /** What tar(1) keeps of a tree, a line an entry. */
  const inventory = (dir: string) =>
    execFileSync('find', ['.', '-mindepth', '1', '-printf', '%y %m %U:%G %Ts %s %p %l\\n'], {
      cwd: dir,
      encoding: 'utf8',
    })
      .split('\n')
      .sort()

  test.each(['', 'z'])('up with tar c%s, and down again with tar x, is the same tree', async (compression) => {
    const from = join(scratch, `from${compression}`)
    const to = join(scratch, `to${compression}`)
    mkdirSync(join(from, 'd/e'), { recursive: true })
    mkdirSync(to)
    writeFileSync(join(from, 'd/f'), randomBytes(3 * MiB))
    writeFileSync(join(from, 'd/e', 'n'.repeat(200)), 'long')
    writeFileSync(join(from, 'empty'), '')
    symlinkSync('../nowhere', join(from, 'd/l'))
    execFileSync('chmod', ['6755', join(from, 'empty')])
    execFileSync('find', [from, '-depth', '-exec', 'touch', '-h', '-d', '2021-02-03 04:05:06', '{}', '+'])
    const archive = execFileSync('tar', [`c${compression}f`, '-', '-C', from, '.'], { maxBuffer: 64 * MiB })
    const dir = await fresh()
    const up = await put({ path: dir, owner: 'archive' }, archive, 'archive')
    expect(up).toEqual({ status: 200, body: { entries: 7, bytes: 3 * MiB + 4 } })
    const down = await t.raw('GET', at('archive', { path: dir }))
    expect(down.headers.get('content-type')).toBe('application/x-tar')
    expect(down.headers.get('content-disposition')).toMatch(/^attachment; filename="t\d+\.tar"$/)
    execFileSync('tar', ['xpf', '-', '-C', to, '--same-owner'], { input: Buffer.from(await down.arrayBuffer()) })
    expect(inventory(to)).toEqual(inventory(from))
    expect(execFileSync('diff', ['-r', '--no-dereference', from, to], { encoding: 'utf8' })).toBe('')
  })

  test('an archive that would lead out of its directory is refused', async () => {
    const dir = await fresh()
    const evil = join(scratch, 'evil')
    mkdirSync(evil)
    writeFileSync(join(evil, 'f'), 'x')
    const archive = execFileSync('tar', ['cPf', '-', '-C', evil, '--transform', 's,^f,../f,', 'f'])
    expect(refusal(await put({ path: dir }, archive, 'archive'))).toBe('422 archive_invalid')
    expect(refusal(await get('stat', { path: `${dir}/../f` }))).toBe('404 path_not_found')
  })
})

describe('watch', () => {
  const callers: AbortController[] = []
  afterEach(() => {
    for (const caller of callers.splice(0)) caller.abort()
  })

  async function watching(path: string, query: Record<string, string> = {}) {
    const caller = new AbortController()
    callers.push(caller)
    const response = await t.raw('GET', at('watch', { path, ...query }), { signal: caller.signal })
    const events: { type: string; path: string }[] = []
    const done = (async () => {
      const text = new TextDecoder()
      let rest = ''
      for await (const chunk of response.body ?? []) {
        const all = (rest + text.decode(chunk, { stream: true })).split('\n')
        rest = all.pop() ?? ''
        events.push(...all.map((line) => JSON.parse(line)))
      }
    })().catch((error: unknown) => {
      if (!caller.signal.aborted) throw error
    })
    const seen = (type: string, where: string) =>
      until(`${type} ${where}`, async () => events.find((event) => event.type === type && event.path === where))
    return { seen, done, leave: () => caller.abort() }
  }

  test('tells what happens in a tree until it is gone', async () => {
    const dir = await fresh()
    const { seen, done } = await watching(dir, { recursive: 'true' })
    await seen('ready', dir)
    await sh(`mkdir -p ${dir}/a/b && echo x > ${dir}/a/b/f`)
    await seen('created', `${dir}/a/b/f`)
    await sh(`mv ${dir}/a/b/f ${dir}/g`)
    await seen('renamed', `${dir}/g`)
    await remove(dir, { recursive: 'true' })
    await seen('gone', dir)
    await done
  })

  test('nothing is left of one whose client leaves', async () => {
    const dir = await fresh()
    const { seen, leave } = await watching(dir)
    await seen('ready', dir)
    leave()
    await until('its process has ended', async () =>
      (await sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")).includes('files watch') ? undefined : true,
    )
  })
})

describe('a client that vanishes', () => {
  /** Begins to upload and leaves. @param length as announced; undefined: chunked */
  const vanish = (path: string, length: number | undefined, sent: number) =>
    new Promise<void>((resolve) => {
      const upload = request(stack().url + at('', { path }), {
        method: 'PUT',
        headers: {
          authorization: `Bearer ${t.key}`,
          ...(length === undefined ? {} : { 'content-length': length }),
        },
      })
      upload.on('error', () => resolve())
      upload.write(Buffer.alloc(sent), () => setTimeout(() => upload.destroy(), 50))
    })

  test.each<[string, number | undefined]>([
    ['told how much it would send', 100 * MiB],
    ['did not', undefined],
  ])('in the middle of an upload, and %s, leaves nothing', async (_, length) => {
    const dir = await fresh()
    await put({ path: `${dir}/f` }, 'old')
    await vanish(`${dir}/f`, length, 8 * MiB)
    await until('its process has ended', async () =>
      (await sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")).includes('files write') ? undefined : true,
    )
    expect(await sh(`ls -A ${dir}; cat ${dir}/f`)).toBe('f\nold')
  })

  test('in the middle of a download ends what sent it', async () => {
    const dir = await fresh()
    await sh(`truncate -s 5G ${dir}/f`)
    const caller = new AbortController()
    const response = await t.raw('GET', at('', { path: `${dir}/f` }), { signal: caller.signal })
    await response.body?.getReader().read()
    caller.abort()
    await until('its process has ended', async () =>
      (await sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")).includes('files read') ? undefined : true,
    )
  })
})

describe('states', () => {
  const action = (id: string, what: string, to: string) =>
    t.post(`/v1/sandboxes/${id}/${what}?wait=${to}&timeoutMs=60s`, {})

  test('a stopped sandbox: everything works, and it stays stopped', async () => {
    const id = await make({ limits: { memoryBytes: '256m', diskBytes: '256m' } })
    await put({ path: '/srv/before' }, 'kept', '', id)
    expect((await action(id, 'stop', 'stopped')).body.state).toBe('stopped')
    expect(await textOf('/srv/before', id)).toBe('kept')
    expect((await put({ path: '/srv/after' }, 'made', '', id)).status).toBe(200)
    const names = await lines(await t.raw('GET', at('list', { path: '/srv' }, id)))
    expect(names.map(({ name }) => name).sort()).toEqual(['after', 'before'])
    expect((await t.get(`/v1/sandboxes/${id}`)).body.state).toBe('stopped')
    expect((await action(id, 'start', 'running')).body.state).toBe('running')
    expect(await sh('cat /srv/before /srv/after', id)).toBe('keptmade')
    await t.delete(`/v1/sandboxes/${id}?force=true`)
  })

  test('a paused one answers that it is', async () => {
    const id = await make({ limits: { memoryBytes: '128m', diskBytes: '64m' } })
    expect((await action(id, 'pause', 'paused')).body.state).toBe('paused')
    expect(refusal(await get('stat', { path: '/' }, id))).toBe('409 wrong_state')
    expect((await action(id, 'resume', 'running')).body.state).toBe('running')
    expect((await get('stat', { path: '/' }, id)).status).toBe(200)
    await t.delete(`/v1/sandboxes/${id}?force=true`)
  })

  test('a deleted one is not found', async () => {
    const id = await make({ limits: { memoryBytes: '128m', diskBytes: '64m' } })
    await t.delete(`/v1/sandboxes/${id}?force=true`)
    expect(refusal(await get('stat', { path: '/' }, id))).toBe('404 sandbox_not_found')
  })
})

test('of two tenants neither reaches the other’s files, nor shares an id with it on the node', async () => {
  const other = await tenant()
  const theirs = await make({ limits: { memoryBytes: '128m', diskBytes: '64m' } }, other)
  await put({ path: '/srv/mine' }, 'mine')
  await other.raw('PUT', at('', { path: '/srv/theirs' }, theirs), { body: 'theirs' })
  expect(refusal(await other.get(at('', { path: '/srv/mine' })))).toBe('404 sandbox_not_found')
  expect(refusal(await t.get(at('', { path: '/srv/theirs' }, theirs)))).toBe('404 sandbox_not_found')
  const pool = join(stack().dataDir, 'agent/pool')
  const owner = (id: string, name: string) => {
    const path = join(pool, id, 'upper/srv', name)
    expect(existsSync(path) ? '' : readdirSync(pool)).toBe('')
    return lstatSync(path).uid
  }
  const [a, b] = [owner(sandbox, 'mine'), owner(theirs, 'theirs')]
  expect(Math.abs(a - b)).toBeGreaterThanOrEqual(65_536)
  expect(Math.min(a, b)).toBeGreaterThanOrEqual(1_000_000)
  await other.delete(`/v1/sandboxes/${theirs}?force=true`)
})
