import { gunzipSync, gzipSync } from 'node:zlib'
import type { ImageContents, ImagePolicy } from '@berth/contracts'
import type { ToldContents } from '@berth/persistence'
import { expect, test } from '@jest/globals'
import { readConfig } from '../config.js'
import type { ImageNodes } from '../images/image-nodes.js'
import type { Database, Logger } from '../tokens.js'
import { ImageScans } from './image-scans.js'
import { ImageVerdicts, type Verdict } from './image-verdicts.js'
import type { KnownVulnerabilities } from './known-vulnerabilities.js'

const contents: ImageContents = { distribution: null, packages: [], complete: true, warnings: [] }
const env = { DATABASE_URL: 'postgresql://h/d', REDIS_URL: 'redis://h' }

/** Scans where one node holds every image but `sha256:lost`; `read` are the images that it was asked for. */
function scans(more: Partial<ImageContents> = {}, given: Record<string, string> = {}) {
  const [read, kept] = [[] as string[], new Map<string, ToldContents>()]
  const database = {
    images: {
      holder: async ([digest]: readonly string[]) => (digest === 'sha256:lost' ? undefined : 'nod_1'),
      contents: {
        get: async (digest: string) => kept.get(digest),
        put: async (digest: string, _: number, told: ToldContents) => void kept.set(digest, told),
      },
    },
  }
  const nodes = {
    contents: async (_: unknown, __: unknown, digest: string) => {
      read.push(digest)
      if (digest.startsWith('sha256:slow')) return new Promise<never>(() => undefined)
      return { ...contents, ...more }
    },
  }
  const log = { warn: () => undefined } as unknown as Logger
  const config = readConfig({ ...env, ...given })
  const made = new ImageScans(database as unknown as Database, config, nodes as unknown as ImageNodes, log)
  return { made, read, kept }
}
const unpacked = ({ packed }: ToldContents): ImageContents => JSON.parse(gunzipSync(packed).toString())

test('an image is read once, by all who ask at once and afterwards', async () => {
  const { made, read } = scans()
  const [one, other] = await Promise.all([made.told('sha256:a', 'ten_1'), made.told('sha256:a', 'ten_1')])
  expect(unpacked(one)).toEqual(contents)
  expect(await made.told('sha256:a', 'ten_1')).toEqual(other)
  expect(read).toEqual(['sha256:a'])
})

test('images of one tenant that take long hold up nobody else’s, nor what others want too', async () => {
  const { made, read } = scans()
  for (const slow of ['sha256:slow1', 'sha256:slow2', 'sha256:slow3']) void made.told(slow, 'ten_1')
  const common = made.told('sha256:common', 'ten_1')
  await made.told('sha256:a', 'ten_2')
  expect(read).toEqual(['sha256:slow1', 'sha256:a'])
  expect(await made.told('sha256:common', 'ten_2')).toEqual(await common)
  expect(read).toEqual(['sha256:slow1', 'sha256:a', 'sha256:common'])
})

test('one that no node has is said to be that, and looked for again', async () => {
  const { made } = scans()
  for (const _ of [1, 2]) await expect(made.told('sha256:lost', 'ten_1')).rejects.toMatchObject({ code: 'no_capacity' })
})

test('of one of which there is too much to tell nothing is told but that', async () => {
  // Hexadecimal digits by chance pack to half of themselves at best.
  const name = () => Array.from({ length: 64 }, () => Math.floor(Math.random() * 16).toString(16)).join('')
  const one = { type: 'npm', version: '1', architecture: null, source: null, license: null, path: 'p' } as const
  const packages = Array.from({ length: 20_000 }, () => ({ ...one, name: name(), layer: `sha256:${name()}` }))
  const { made, kept } = scans({ packages })
  const told = unpacked(await made.told('sha256:a', 'ten_1'))
  expect(told).toMatchObject({ packages: [], complete: false, warnings: [expect.stringMatching(/^left out: all/)] })
  expect(kept.size).toBe(1)
})

test('what came is read ahead only where there is something to judge it by', async () => {
  const idle = scans()
  idle.made.soon(['sha256:a'], 'ten_1')
  const busy = scans({}, { BERTH_VULNERABILITIES: '/srv/osv' })
  busy.made.soon(['sha256:a', 'sha256:lost', 'sha256:b'], 'ten_1')
  await busy.made.told('sha256:b', 'ten_1')
  await expect(busy.made.told('sha256:lost', 'ten_1')).rejects.toThrow()
  await new Promise(setImmediate)
  expect([idle.read, busy.read.sort()]).toEqual([[], ['sha256:a', 'sha256:b']])
})

test('a verdict that others wait for already is asked for by whoever else wants it', async () => {
  const { made, read } = scans()
  const answer: Verdict = { mode: 'refuse', allowed: true, against: [] } as unknown as Verdict
  const known = { database: async () => ({ version: '1' }), ask: async () => ({ database: { version: '1' }, answer }) }
  const verdicts = new ImageVerdicts(
    { nodes: { exists: async () => true } } as unknown as Database,
    { now: () => new Date(0) },
    made,
    known as unknown as KnownVulnerabilities,
  )
  const policy: ImagePolicy = { mode: 'refuse', severity: 'high', fixableOnly: false, exempt: [] }
  void made.told('sha256:slow1', 'ten_1')
  const first = verdicts.of('sha256:common', policy, 'ten_1')
  expect(await verdicts.of('sha256:common', policy, 'ten_2')).toEqual(await first)
  expect(read).toEqual(['sha256:slow1', 'sha256:common'])
})

test('verdicts of one tenant are asked for one after the other, and hold up nobody else’s, nor what others want too', async () => {
  const asked: string[] = []
  const answers = new Map<string, () => void>()
  const known = {
    database: async () => ({ version: '1' }),
    ask: async (_: string, { digest }: { digest: string }) => {
      asked.push(digest)
      await new Promise<void>((done) => answers.set(digest, done))
      return { database: { version: '1' }, answer: { mode: 'refuse', allowed: true, against: [], complete: true } }
    },
  }
  const verdicts = new ImageVerdicts(
    { nodes: { exists: async () => true } } as unknown as Database,
    { now: () => new Date(0) },
    { told: async () => ({ packed: gzipSync('{}'), nodeId: 'nod_1' }) } as unknown as ImageScans,
    known as unknown as KnownVulnerabilities,
  )
  const policy: ImagePolicy = { mode: 'refuse', severity: 'high', fixableOnly: false, exempt: [] }
  const [first, common, last] = ['a', 'common', 'b'].map((digest) => verdicts.of(digest, policy, 'ten_1'))
  const others = verdicts.of('x', policy, 'ten_2')
  const settled = () => new Promise((done) => setImmediate(done))
  await settled()
  expect(asked).toEqual(['a', 'x'])
  const joined = verdicts.of('common', policy, 'ten_2')
  answers.get('x')?.()
  await others
  await settled()
  expect(asked).toEqual(['a', 'x', 'common'])
  answers.get('common')?.()
  expect(await joined).toEqual(await common)
  answers.get('a')?.()
  await first
  await settled()
  expect(asked).toEqual(['a', 'x', 'common', 'b'])
  answers.get('b')?.()
  await last
})

test('a verdict is kept for image, policy and database while its node is one, and a failure is not', async () => {
  const asked: string[] = []
  let version = '1'
  let isBroken = false
  const known = {
    database: async () => ({ version }),
    ask: async (_: string, { digest }: { digest: string }) => {
      asked.push(`${digest} ${version}`)
      if (isBroken) throw new Error('broken')
      const answer: Verdict = { mode: 'refuse', allowed: true, against: [], complete: true }
      return { database: { version }, answer }
    },
  }
  let by = 'nod_1'
  const told = async () => ({ packed: gzipSync('{}'), nodeId: by })
  let now = new Date(0)
  const nodes = { exists: async (id: string) => id === by }
  const verdicts = new ImageVerdicts(
    { nodes } as unknown as Database,
    { now: () => now },
    { told } as unknown as ImageScans,
    known as unknown as KnownVulnerabilities,
  )
  const policy: ImagePolicy = { mode: 'refuse', severity: 'high', fixableOnly: false, exempt: [] }
  await Promise.all([verdicts.of('a', policy, 'ten_1'), verdicts.of('a', { ...policy }, 'ten_1')])
  expect(asked).toEqual(['a 1'])
  await verdicts.of('a', { ...policy, severity: 'low' }, 'ten_1')
  version = '2'
  await verdicts.of('a', policy, 'ten_1')
  expect(asked).toEqual(['a 1', 'a 1', 'a 2'])
  // The node is removed, and another one tells what is in the image; it is seen after two seconds.
  by = 'nod_2'
  now = new Date(2000)
  await Promise.all([verdicts.of('a', policy, 'ten_1'), verdicts.of('a', policy, 'ten_1')])
  await verdicts.of('a', policy, 'ten_1')
  expect(asked).toEqual(['a 1', 'a 1', 'a 2', 'a 2'])
  isBroken = true
  await expect(verdicts.of('b', policy, 'ten_1')).rejects.toThrow('broken')
  isBroken = false
  expect(await verdicts.of('b', policy, 'ten_1')).toMatchObject({ allowed: true })
})
