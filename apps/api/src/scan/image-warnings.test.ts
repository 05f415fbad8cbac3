import type { ImagePolicy, TenantId } from '@berth/contracts'
import type { ImageWarning } from '@berth/persistence'
import { expect, test } from '@jest/globals'
import type { Changes } from '../scheduling/changes.js'
import type { Database, Logger } from '../tokens.js'
import type { ImageVerdicts, Verdict } from './image-verdicts.js'
import { ImageWarnings } from './image-warnings.js'

const policy: ImagePolicy = { mode: 'warn', severity: 'high', fixableOnly: false, exempt: [] }
const verdict = (...against: string[]): Verdict => ({ mode: 'warn', allowed: true, against, complete: true })
const [one, other] = ['ten_1', 'ten_2'] as TenantId[] as [TenantId, TenantId]

/** Warnings where `found` says what is known of the image; what was told of it. */
function warnings(found: () => Promise<Verdict>, isNew: () => Promise<boolean> = async () => true) {
  const events: [TenantId, string, ImageWarning][] = []
  const [logged, woken] = [[] as unknown[], [] as TenantId[]]
  const warned = async (...event: [TenantId, string, ImageWarning]) => {
    events.push(event)
    return isNew()
  }
  const log = (fields: object, name: string) => logged.push({ ...fields, name })
  let now = 0
  const made = new ImageWarnings(
    { events: { warned } } as unknown as Database,
    { now: () => new Date(now) },
    { warn: log, error: log } as unknown as Logger,
    { of: found } as unknown as ImageVerdicts,
    { told: (tenantId: TenantId) => woken.push(tenantId) } as unknown as Changes,
  )
  const use = (tenantId = one, digest = 'sha256:1') => made.begin(tenantId, policy, 'app', digest)()
  const pass = (ms: number) => {
    now += ms
  }
  return { use, events, logged, woken, pass }
}
const settled = () => new Promise((done) => setImmediate(done))

test('each answer tells it; an event and the log once a day to each tenant', async () => {
  const { use, events, logged, woken, pass } = warnings(async () => verdict('CVE-1', 'CVE-2'))
  const text = 'image app: of high severity or worse it has CVE-1, CVE-2'
  for (const _ of [1, 2, 3]) expect(await use()).toBe(text)
  expect(await use(other)).toBe(text)
  await settled()
  const warning = { image: 'app', severity: 'high', vulnerabilities: ['CVE-1', 'CVE-2'], complete: true }
  expect(events).toEqual([
    [one, 'sha256:1', warning],
    [other, 'sha256:1', warning],
  ])
  expect(logged).toMatchObject([one, other].map((tenant) => ({ tenant, digest: 'sha256:1', name: 'image.vulnerable' })))
  expect(woken).toEqual([one, other])
  pass(24 * 3_600_000)
  await use()
  await settled()
  expect(events).toHaveLength(3)
})

test('what another process has told is not told again', async () => {
  const { use, logged, woken } = warnings(
    async () => verdict('CVE-1'),
    async () => false,
  )
  expect(await use()).toMatch(/CVE-1/)
  await settled()
  expect([logged, woken]).toEqual([[], []])
})

test('of many images at once a tenant is told one after the other, which holds up nobody else', async () => {
  const telling: (() => void)[] = []
  const { use, events } = warnings(
    async () => verdict('CVE-1'),
    () => new Promise((done) => telling.push(() => done(true))),
  )
  const digests = ['sha256:1', 'sha256:2', 'sha256:3']
  await Promise.all([...digests.map((digest) => use(one, digest)), use(other)])
  const told = () => events.map(([tenantId, digest]) => [tenantId, digest])
  const [first, second, third] = digests.map((digest) => [one, digest])
  expect(told()).toEqual([first, [other, 'sha256:1']])
  telling[0]?.()
  await settled()
  expect(told().slice(2)).toEqual([second])
  telling[2]?.()
  await settled()
  expect(told().slice(3)).toEqual([third])
})

test('many vulnerabilities are named by the worst; an image that is not known whole is told too, and a clean one not', async () => {
  const many = warnings(async () => verdict(...Array.from({ length: 12 }, (_, i) => `CVE-${i}`)))
  expect(await many.use()).toMatch(/CVE-9 and 2 more$/)
  await settled()
  expect(many.events[0]?.[2].vulnerabilities).toHaveLength(10)
  const cut = warnings(async () => ({ ...verdict(), complete: false }))
  expect(await cut.use()).toBe('image app: it could not be looked at whole')
  await settled()
  expect(cut.events[0]?.[2]).toMatchObject({ vulnerabilities: [], complete: false })
  const clean = warnings(async () => verdict())
  expect(await clean.use()).toBeUndefined()
  await settled()
  expect(clean.events).toEqual([])
})

test('an image that is still being read holds up one answer for a moment, and is told as an event', async () => {
  const reading = () => {
    let found: (verdict: Verdict) => void = () => undefined
    const finding = new Promise<Verdict>((done) => {
      found = done
    })
    return { ...warnings(() => finding), found: () => found(verdict('CVE-1')) }
  }
  const soon = reading()
  const first = soon.use()
  expect(await soon.use()).toBeUndefined()
  soon.found()
  expect(await first).toMatch(/CVE-1/)
  const late = reading()
  expect(await late.use()).toBeUndefined()
  late.found()
  await settled()
  expect(late.events).toMatchObject([[one, 'sha256:1', { vulnerabilities: ['CVE-1'] }]])
})

test('what fails is logged, lets pass, and is tried with the next use', async () => {
  let isBroken = true
  const broken = async (): Promise<never> => {
    throw new Error('broken')
  }
  const unread = warnings(broken)
  expect(await unread.use()).toBeUndefined()
  expect(unread.logged).toMatchObject([{ name: 'image.not_scanned', digest: 'sha256:1' }])
  const untold = warnings(
    async () => verdict('CVE-1'),
    async () => (isBroken ? broken() : true),
  )
  await untold.use()
  await settled()
  isBroken = false
  await untold.use()
  await settled()
  expect(untold.logged).toMatchObject([{ name: 'image.warning.failed' }, { name: 'image.vulnerable' }])
})
