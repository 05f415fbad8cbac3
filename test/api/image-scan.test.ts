// What is in an image, what is wrong with it, and the policy that refuses it. The installation's database of
// vulnerabilities (test/support/setup.ts) knows packages that nobody has but the images of this file.
import { execFileSync, spawnSync } from 'node:child_process'
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import pg from 'pg'
import {
  type Answer,
  type Api,
  operator,
  run,
  stack,
  stdout,
  type TestTenant,
  tenant,
  until,
} from '../support/berth.js'

const directory = mkdtempSync(join(tmpdir(), 'berth-scan-'))
let owner: TestTenant
beforeAll(async () => {
  owner = await tenant()
  await given(owner, 'vulnerable', '1.0')
  await given(owner, 'mended', '2.0')
})
afterAll(() => rmSync(directory, { recursive: true }))

/** An image with a shell, and what package managers would have written. */
async function given(api: Api, name: string, version: string): Promise<void> {
  const root = mkdtempSync(join(directory, name))
  const files = {
    'etc/os-release': 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian of the test"\n',
    'var/lib/dpkg/status': `Package: libtest1\nStatus: install ok installed\nVersion: ${version}\nArchitecture: all\nSource: berth-test\n`,
    'app/node_modules/@test/module/package.json': '{"name":"@test/module","version":"1.2.3","license":"MIT"}',
    'usr/local/lib/python3.13/site-packages/x-1.dist-info/METADATA': 'Name: Test_Thing\nVersion: 0.1\n',
  }
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), text)
  }
  mkdirSync(join(root, 'bin'))
  copyFileSync('/bin/busybox', join(root, 'bin/busybox'))
  symlinkSync('busybox', join(root, 'bin/true'))
  const tar = execFileSync('tar', ['-C', root, '--owner=0', '--group=0', '-c', '.'], { maxBuffer: 64 * 1024 * 1024 })
  const path = `/v1/images/import?wait=done&reference=${name}`
  const answer = await api.raw('POST', path, { body: new Uint8Array(tar) })
  if (answer.status !== 201) throw new Error(`import: ${await answer.text()}`)
}

const databaseUrl = () => `postgresql://berth@/berth?host=${encodeURIComponent(join(stack().dataDir, 'postgres'))}`

function berthAs({ key }: Api, ...argv: string[]) {
  const env = { ...process.env, BERTH_URL: stack().url, BERTH_API_KEY: key }
  return spawnSync(join(process.cwd(), 'berth'), argv, { encoding: 'utf8', env })
}

async function build(dockerfile: string, by: Api = owner): Promise<Pick<Answer, 'status' | 'body'>> {
  const context = join(directory, 'context')
  mkdirSync(context, { recursive: true })
  writeFileSync(join(context, 'Dockerfile'), dockerfile)
  const body = new Uint8Array(execFileSync('tar', ['-C', context, '-c', '.']))
  const answer = await by.raw('POST', '/v1/builds?wait=done', { body })
  return { status: answer.status, body: await answer.json() }
}

const job = (image: string) => ({ image, command: ['/bin/true'] })
const digestOf = async (image: string) => (await owner.get(`/v1/images/${image}`)).body.digest

test('packages are told with their purl, page by page', async () => {
  const first = await owner.get('/v1/images/vulnerable/packages?limit=2')
  expect(first).toMatchObject({
    status: 200,
    body: { distribution: { id: 'debian', version: '13', name: 'Debian of the test' }, complete: true, warnings: [] },
  })
  const second = await owner.get(`/v1/images/vulnerable/packages?limit=2&cursor=${first.body.nextCursor}`)
  const purls = [...first.body.items, ...second.body.items].map(({ purl }: { purl: string }) => purl)
  expect(purls).toEqual([
    'pkg:deb/debian/libtest1@1.0?arch=all&distro=debian-13&upstream=berth-test',
    'pkg:npm/%40test/module@1.2.3',
    'pkg:pypi/test-thing@0.1',
  ])
  expect(second.body.nextCursor).toBeNull()
})

test('of a base image they are what dpkg says in it', async () => {
  const { body } = await owner.get('/v1/images/debian/packages?limit=200')
  const found = body.items.flatMap(({ type, name, version }: Record<string, string>) =>
    type === 'deb' ? [`${name} ${version}`] : [],
  )
  // biome-ignore lint/suspicious/noTemplateCurlyInString: it is dpkg-query's
  const command = ['dpkg-query', '-W', '-f', '${Package} ${Version}\\n']
  const said = stdout(await run(owner, { image: 'debian', command }))
  expect(found.sort()).toEqual(said.trim().split('\n').sort())
})

test.each([
  ['spdx', { spdxVersion: 'SPDX-2.3' }],
  ['cyclonedx', { bomFormat: 'CycloneDX', specVersion: '1.6' }],
])('a bill of materials as %s is the same each time', async (format, expected) => {
  const read = async () => (await owner.raw('GET', `/v1/images/vulnerable/sbom?format=${format}`)).text()
  const document = await read()
  expect(JSON.parse(document)).toMatchObject(expected)
  expect(document).toContain('pkg:npm/%40test/module@1.2.3')
  expect(await read()).toBe(document)
})

test('vulnerabilities are told worst first, and summed up', async () => {
  const { status, body } = await owner.get('/v1/images/vulnerable/vulnerabilities')
  expect(status).toBe(200)
  expect(body.summary).toEqual({ unknown: 0, none: 0, low: 0, medium: 1, high: 0, critical: 1 })
  expect(body.items).toMatchObject([
    {
      ...{ id: 'CVE-2025-0001', aliases: ['DEBIAN-CVE-2025-0001'], severity: 'critical', score: 9.8 },
      ...{ fixedVersion: '2.0', package: { name: 'libtest1', version: '1.0' } },
    },
    { id: 'CVE-2025-0002', aliases: ['GHSA-test'], severity: 'medium', fixedVersion: null, package: { type: 'npm' } },
  ])
  expect(body.policy).toEqual({ mode: 'off', allowed: true, against: [] })
  const ids = async (query: string) => {
    const { items } = (await owner.get(`/v1/images/vulnerable/vulnerabilities?${query}`)).body
    return items.map(({ id }: { id: string }) => id)
  }
  expect(await ids('severity=high')).toEqual(['CVE-2025-0001'])
  expect(await ids('fixable=true')).toEqual(['CVE-2025-0001'])
  expect((await owner.get('/v1/images/debian/vulnerabilities')).body.items).toEqual([])
})

test('a change of the database holds without a restart, for images that were looked at before', async () => {
  const file = join(stack().dataDir, 'vulnerabilities.json')
  const before = readFileSync(file, 'utf8')
  const known = async () => (await owner.get('/v1/images/mended/vulnerabilities')).body
  const ids = (body: Answer['body']) => body.items.map(({ id }: { id: string }) => id)
  const { database, items } = await known()
  expect(ids({ items })).toEqual(['CVE-2025-0002'])
  const put = (text: string) => {
    writeFileSync(`${file}.new`, text)
    renameSync(`${file}.new`, file)
  }
  const added = {
    id: 'CVE-2025-0009',
    severity: [{ type: 'CVSS_V3', score: 'CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H' }],
    affected: [
      {
        package: { ecosystem: 'Debian:13', name: 'berth-test' },
        ranges: [{ type: 'ECOSYSTEM', events: [{ introduced: '0' }] }],
      },
    ],
  }
  try {
    put(`${before}\n${JSON.stringify(added)}\nno record\n`)
    const now = await until('it has changed', async () => {
      const body = await known()
      return body.database.version === database.version ? undefined : body
    })
    expect(ids(now)).toEqual(['CVE-2025-0009', 'CVE-2025-0002'])
  } finally {
    put(before)
  }
  await until('it is as it was', async () => {
    const body = await known()
    return body.database.version === database.version ? body : undefined
  })
  expect(ids(await known())).toEqual(['CVE-2025-0002'])
})

test('what is in an image is told to those who may see it, and hold the scope', async () => {
  const other = await tenant()
  const digest = await digestOf('vulnerable')
  for (const what of ['packages', 'sbom', 'vulnerabilities'])
    expect((await other.get(`/v1/images/${digest}/${what}`)).body.code).toBe('image_not_found')
  expect((await operator().get(`/v1/images/debian/packages?limit=1`)).body.items).toHaveLength(1)
  expect((await owner.get('/v1/images/vulnerable/packages?cursor=x')).body.code).toBe('invalid_request')
})

test('images that are built or committed are read soon after, before anybody asks', async () => {
  const database = new pg.Client({ connectionString: databaseUrl() })
  await database.connect()
  const read = (digest: string) =>
    until(`${digest} is read`, async () => {
      const { rows } = await database.query('SELECT 1 FROM image_contents WHERE digest = $1', [digest])
      return rows.length > 0 ? true : undefined
    })
  try {
    const built = await build('FROM mended\nLABEL read=soon')
    expect(built.body).toMatchObject({ warnings: [] })
    await read(built.body.image.digest)
    const sandbox = await owner.post('/v1/sandboxes?wait=running', { image: 'mended', command: ['/bin/sleep', '60'] })
    const committed = await owner.post(`/v1/sandboxes/${sandbox.body.id}/commit?wait=done`, { reference: 'committed' })
    expect(committed.status).toBe(201)
    await read(await digestOf('committed'))
    await owner.delete(`/v1/sandboxes/${sandbox.body.id}`)
  } finally {
    await database.end()
  }
})

describe('a tenant whose policy warns', () => {
  let warned: TestTenant
  const text = 'image vulnerable: of high severity or worse it has CVE-2025-0001'
  beforeAll(async () => {
    warned = await tenant()
    await given(warned, 'vulnerable', '1.0')
    await given(warned, 'mended', '2.0')
    await operator().patch(`/v1/tenants/${warned.id}`, { imagePolicy: { mode: 'warn', severity: 'high' } })
    // What is known of both is known then; a policy is in effect within two seconds.
    for (const image of ['vulnerable', 'mended'])
      await until('the policy is in effect', async () => {
        const { body } = await warned.get(`/v1/images/${image}/vulnerabilities`)
        return body.policy.mode === 'warn' ? true : undefined
      })
    // An answer gives a verdict a moment only, which on a busy machine may be too short for the first one.
    await until('it is judged', async () => {
      const { body } = await warned.post('/v1/jobs', job('vulnerable'))
      return body.warnings.length > 0 ? true : undefined
    })
  })
  /** Those with the same key are the same request. */
  const create = async (path: string, body: object, key?: string) =>
    (await warned.post(path, body, key === undefined ? {} : { 'idempotency-key': key })).body

  test('is told so in each answer that creates, and starts all the same', async () => {
    expect((await create('/v1/jobs', job('vulnerable'))).warnings).toEqual([text])
    const waited = await create('/v1/jobs?wait=finished&output=true', job('vulnerable'), 'again')
    expect(waited).toMatchObject({ state: 'succeeded', warnings: [text] })
    expect(await create('/v1/jobs', job('vulnerable'), 'again')).toMatchObject({ id: waited.id, warnings: [text] })
    expect((await create('/v1/jobs', job('mended'))).warnings).toEqual([])
    const batch = await create('/v1/batches', { jobs: ['vulnerable', 'mended', 'vulnerable'].map(job) })
    expect(batch).toMatchObject({ jobIds: { length: 3 }, warnings: [text] })
    const named = { name: 'warned', image: 'vulnerable', command: ['/bin/true'] }
    expect((await create('/v1/sandboxes', named)).warnings).toEqual([text])
    // It was there.
    expect((await create('/v1/sandboxes?ifExists=get', named)).warnings).toEqual([])
    expect((await warned.get('/v1/sandboxes/warned')).body.warnings).toBeUndefined()
    await warned.delete('/v1/sandboxes/warned')
    const built = await build('FROM mended\nCOPY --from=vulnerable /etc/os-release /', warned)
    expect(built).toMatchObject({ status: 201, body: { warnings: [text] } })
    const log = await (await warned.raw('GET', `/v1/builds/${built.body.build.id}/log`)).text()
    expect(log).toContain(`WARNING: ${text}\n`)
  })

  test('has one event of it, however often it is used', async () => {
    const digest = (await warned.get('/v1/images/vulnerable')).body.digest
    const events = async () => (await warned.get(`/v1/events?type=image.warned&subject=${digest}`)).body.items
    await until('the event is there', async () => ((await events()).length > 0 ? true : undefined))
    await create('/v1/jobs?wait=finished', job('vulnerable'))
    expect(await events()).toMatchObject([
      {
        ...{ type: 'image.warned', subject: digest, by: 'api' },
        data: { image: 'vulnerable', severity: 'high', vulnerabilities: ['CVE-2025-0001'], complete: true },
      },
    ])
    expect((await owner.get('/v1/events?type=image.warned')).body.items).toEqual([])
  })

  test('sees it on standard error of berth run and berth build', () => {
    const run = berthAs(warned, 'run', '--image', 'vulnerable', '--', '/bin/true')
    expect(run).toMatchObject({ status: 0, stdout: '', stderr: `berth: warning: ${text}\n` })
    const context = join(directory, 'told')
    mkdirSync(context)
    writeFileSync(join(context, 'Dockerfile'), 'FROM vulnerable\nLABEL told=yes')
    const built = berthAs(warned, 'build', '--progress', 'plain', context)
    expect(built.status).toBe(0)
    expect(built.stderr).toContain(`WARNING: ${text}\n`)
  })
})

describe('a tenant whose policy refuses', () => {
  const policy = (imagePolicy: object | null) => operator().patch(`/v1/tenants/${owner.id}`, { imagePolicy })
  const refused = { status: 403, body: { code: 'policy_forbidden', policy: 'vulnerabilities' } }
  /** It is in effect within two seconds. */
  const inEffect = (mode: string, against: readonly string[]) =>
    until(`${mode} is in effect`, async () => {
      const { body } = await owner.get('/v1/images/vulnerable/vulnerabilities')
      const said = body.policy
      return said.mode === mode && said.against.join() === against.join() ? true : undefined
    })
  let before: string
  beforeAll(async () => {
    const made = await owner.post('/v1/sandboxes?start=false&wait=stopped&timeoutMs=60s', { image: 'vulnerable' })
    before = made.body.id
  })
  afterAll(() => policy(null))

  test('starts nothing from an image with a vulnerability, by no name of it, and everything else', async () => {
    expect((await policy({ mode: 'refuse', severity: 'high' })).body.imagePolicy).toEqual({
      ...{ mode: 'refuse', severity: 'high', fixableOnly: false, exempt: [] },
    })
    await inEffect('refuse', ['CVE-2025-0001'])
    const digest = await digestOf('vulnerable')
    const answer = await owner.post('/v1/jobs', job('vulnerable'))
    expect(answer).toMatchObject(refused)
    expect(answer.body).toMatchObject({ image: digest, vulnerabilities: ['CVE-2025-0001'] })
    expect(answer.body.detail).toContain('CVE-2025-0001')
    expect(await owner.post('/v1/jobs', job(digest))).toMatchObject(refused)
    expect(await owner.post('/v1/batches', { jobs: [job('mended'), job('vulnerable')] })).toMatchObject(refused)
    expect(await owner.post('/v1/sandboxes', { image: 'vulnerable' })).toMatchObject(refused)
    // Nor one that begins with the files of one that was there before, which can be started itself.
    expect(await owner.post(`/v1/sandboxes/${before}/fork`, { start: false })).toMatchObject(refused)
    expect((await owner.post(`/v1/sandboxes/${before}/start`)).status).toBe(202)
    expect(await build('FROM mended\nCOPY --from=vulnerable /etc/os-release /')).toMatchObject(refused)
    expect((await build('FROM mended\nLABEL built=yes')).status).toBe(201)
    expect((await run(owner, job('mended'))).state).toBe('succeeded')
    expect((await run(owner, job('debian'))).state).toBe('succeeded')
    expect((await owner.post('/v1/jobs', job('nothing'))).body.code).toBe('image_not_found')
  })

  test('lets through what is exempt, and in no other way what it refused before', async () => {
    await policy({ mode: 'refuse', severity: 'low', exempt: ['CVE-2025-0001'] })
    await inEffect('refuse', ['CVE-2025-0002'])
    expect(await owner.post('/v1/jobs', job('mended'))).toMatchObject(refused)
    await policy({ mode: 'refuse', severity: 'low', exempt: ['CVE-2025-0001', 'ghsa-test'] })
    await inEffect('refuse', [])
    expect((await run(owner, job('vulnerable'))).state).toBe('succeeded')
    expect((await owner.post(`/v1/sandboxes/${before}/fork`, { start: false })).status).toBe(201)
  })

  test('is refused where it is none', async () => {
    for (const wrong of [{ mode: 'never' }, { mode: 'refuse', severity: 'unknown' }, { mode: 'warn', exempt: ['a b'] }])
      expect((await policy(wrong)).body.code).toBe('invalid_request')
  })
})
