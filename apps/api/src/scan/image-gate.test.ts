import type { ImagePolicy, TenantId } from '@berth/contracts'
import type { ImageWanted } from '@berth/domain'
import { expect, test } from '@jest/globals'
import { readConfig } from '../config.js'
import type { ImageNames } from '../images/image-names.js'
import type { Database } from '../tokens.js'
import { ImageGate } from './image-gate.js'
import type { ImageVerdicts } from './image-verdicts.js'
import type { ImageWarnings } from './image-warnings.js'

const tenant = 'ten_01jabcdefghjkmnpqrstvwxyz0' as TenantId
const refuse: ImagePolicy = { mode: 'refuse', severity: 'high', fixableOnly: false, exempt: [] }
const wanted = (text: string, base: ImageWanted['base'] = null): ImageWanted => ({
  ...{ text, reference: `docker.io/library/${text}`, digest: null, base },
})
const bad = ['sha256:bad', 'sha256:base-bad']

/** A gate where the tenant has `app`, `bad` is refused, and `debian` is a base image. */
function gate(own: ImagePolicy | null, base: readonly string[] = ['sha256:base']) {
  const asked: string[] = []
  const held: Readonly<Record<string, string>> = { app: 'sha256:app', bad: 'sha256:bad' }
  const database = {
    tenants: { imagePolicy: async () => own },
    admission: {
      imageOf: async (_: TenantId, { text }: ImageWanted) => {
        asked.push(text)
        return held[text] ?? null
      },
    },
  }
  const names = {
    baseDigests: async (one: ImageWanted) => (one.base ? base : []),
    admitted: async <T>(
      _owner: string,
      texts: readonly string[],
      admit: (images: readonly ImageWanted[]) => Promise<T>,
    ) => admit(texts.map((text) => wanted(text, text === 'debian' ? { key: 'debian:latest', digest: null } : null))),
  }
  const verdicts = {
    of: async (digest: string) => {
      asked.push(digest)
      const isBad = bad.includes(digest)
      return { mode: 'refuse', allowed: !isBad, against: isBad ? ['CVE-1', 'CVE-2'] : [], complete: true }
    },
  }
  const warnings = {
    begin: (_: TenantId, __: ImagePolicy, text: string, digest: string) => {
      asked.push(digest)
      return async () => (bad.includes(digest) ? `warned of ${text}` : undefined)
    },
  }
  const config = readConfig({ DATABASE_URL: 'postgresql://h/d', REDIS_URL: 'redis://h', BERTH_IMAGE_POLICY: 'off' })
  const made = new ImageGate(
    database as unknown as Database,
    config,
    { now: () => new Date(0) },
    names as unknown as ImageNames,
    verdicts as unknown as ImageVerdicts,
    warnings as unknown as ImageWarnings,
  )
  const both = (...texts: string[]) => made.admitted(tenant, texts, async (images) => images)
  const admitted = async (...texts: string[]) => (await both(...texts)).made
  return { admitted, both, asked, pass: (text: string, digest: string) => made.pass(tenant, text, digest) }
}

test('what passed is what is admitted: by digest, and a base image as that alone', async () => {
  const { admitted } = gate(refuse)
  expect(await admitted('app', 'debian', 'none')).toEqual([
    { text: 'app', reference: null, digest: 'sha256:app', base: null },
    { text: 'debian', reference: null, digest: null, base: { key: 'debian:latest', digest: null } },
    { text: 'none', reference: null, digest: null, base: null },
  ])
})

test('one image of many that is refused refuses all, and is named with what is wrong with it', async () => {
  const { admitted } = gate(refuse)
  await expect(admitted('app', 'bad')).rejects.toMatchObject({
    ...{
      code: 'policy_forbidden',
      message: expect.stringMatching(/^image bad .* high severity or worse .* CVE-1, CVE-2$/),
    },
    data: { policy: 'vulnerabilities', image: 'sha256:bad', vulnerabilities: ['CVE-1', 'CVE-2'] },
  })
})

test('a base image is refused where one of the images that nodes have under its name is', async () => {
  const { admitted } = gate(refuse, ['sha256:base', 'sha256:base-bad'])
  await expect(admitted('debian')).rejects.toMatchObject({ data: { image: 'sha256:base-bad' } })
})

test('a base image that no node has now does not wait for a node that has it, whatever that is', async () => {
  await expect(gate(refuse, []).admitted('debian')).rejects.toMatchObject({ code: 'no_capacity' })
  expect(await gate({ ...refuse, mode: 'warn' }, []).admitted('debian')).toHaveLength(1)
})

test('where nothing holds nothing is asked, and a warning lets all in', async () => {
  const off = gate(null)
  expect(await off.admitted('bad')).toEqual([wanted('bad')])
  expect(off.asked).toEqual([])
  expect(await off.pass('bad', 'sha256:bad')).toEqual([])
  expect(off.asked).toEqual([])
  const warn = gate({ ...refuse, mode: 'warn' }, ['sha256:base', 'sha256:base-bad'])
  const { made, warnings } = await warn.both('bad', 'app', 'debian')
  expect(made).toHaveLength(3)
  expect(warnings).toEqual(['warned of bad', 'warned of debian'])
  expect(await warn.pass('bad', 'sha256:bad')).toEqual(['warned of bad'])
  const { warnings: none } = await gate(refuse).both('app')
  expect(none).toEqual([])
})
