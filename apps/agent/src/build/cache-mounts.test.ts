import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { MiB, mintId, TenantId } from '@berth/contracts'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { CacheMounts, type MountPool, type WantedMount } from './cache-mounts.js'

const newTenant = () => TenantId.parse(mintId('tenant', Date.now(), randomBytes(10)))
const never = new AbortController().signal

let root: string
let limits: Map<string, number>
let used: Map<string, number>
let pool: MountPool
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'berth-mounts-'))
  limits = new Map()
  used = new Map()
  const path = (id: string) => join(root, 'pool', id)
  mkdirSync(path(''))
  pool = {
    path,
    async create(id, limit) {
      mkdirSync(path(id))
      limits.set(id, limit)
      return path(id)
    },
    async remove(id) {
      rmSync(path(id), { recursive: true, force: true })
      used.delete(id)
    },
    resize: async (id, limit) => void limits.set(id, limit),
    fill: async () => new Map([...used].map(([id, usedBytes]) => [id, { usedBytes, limitBytes: 0 }])),
    list: async () => readdirSync(path('')),
  }
})
afterEach(() => rmSync(root, { recursive: true, force: true }))

const open = (mostBytes = 1024 * MiB) => CacheMounts.open(join(root, 'cache'), pool, mostBytes)
const wanted = (more: Partial<WantedMount> = {}): WantedMount => ({
  ...{ tenantId: newTenant(), id: 'c', identity: 'c', sharing: 'shared', mode: 0o755, uid: process.getuid?.() ?? 0 },
  ...{ gid: process.getgid?.() ?? 0, cacheBytes: 1024 * MiB, signal: never, seed: async () => undefined },
  ...more,
})
const nameOf = ({ directory }: { readonly directory: string }) => directory.split('/').at(-2) ?? ''

test('is the same for its tenant and identity, another one for all others, and there after a restart', async () => {
  const mounts = await open()
  const one = wanted()
  const first = await mounts.lend(one)
  const [same, other, stranger] = [
    await mounts.lend(one),
    await mounts.lend({ ...one, identity: 'd' }),
    await mounts.lend({ ...one, tenantId: newTenant() }),
  ]
  expect(same.directory).toBe(first.directory)
  expect(new Set([first, other, stranger].map(nameOf)).size).toBe(3)
  const again = await open()
  expect(nameOf(await again.lend(one))).toBe(nameOf(first))
  expect(await CacheMounts.names(join(root, 'cache'))).toHaveLength(3)
})

test('a locked one is had by one at a time, a private one by nobody else', async () => {
  const mounts = await open()
  const locked = wanted({ sharing: 'locked' })
  const first = await mounts.lend(locked)
  const giveUp = new AbortController()
  const impatient = mounts.lend({ ...locked, signal: giveUp.signal })
  let had = false
  const second = mounts.lend(locked).then((lent) => {
    had = true
    return lent
  })
  giveUp.abort(new Error('too long'))
  await expect(impatient).rejects.toThrow('too long')
  expect(had).toBe(false)
  first.release()
  expect(nameOf(await second)).toBe(nameOf(first))
  const aside = wanted({ sharing: 'private' })
  const [one, two] = [await mounts.lend(aside), await mounts.lend(aside)]
  expect(nameOf(one)).not.toBe(nameOf(two))
  one.release()
  expect(nameOf(await mounts.lend(aside))).toBe(nameOf(one))
})

test('all together never come to more than they may; who has none just now makes room, oldest first', async () => {
  const mounts = await open(400 * MiB)
  const [old, recent] = [wanted(), wanted()]
  for (const one of [old, recent]) {
    const lent = await mounts.lend(one)
    used.set(nameOf(lent), 150 * MiB)
    lent.release()
  }
  const lent = [await mounts.lend(recent), await mounts.lend(wanted()), await mounts.lend(wanted())]
  expect((await mounts.list(old.tenantId)).length).toBe(0)
  const most = lent.reduce((sum, one) => sum + (limits.get(nameOf(one)) ?? 0), 0)
  expect(most).toBeLessThanOrEqual(400 * MiB)
  expect(limits.get(nameOf(lent[0] ?? { directory: '' }))).toBeGreaterThanOrEqual(150 * MiB)
  await expect(mounts.lend(wanted())).rejects.toMatchObject({ code: 'no_capacity' })
  expect(await mounts.remove(recent.tenantId, nameOf(lent[0] ?? { directory: '' }))).toBe(false)
})

test('a tenant has not more of them at once than it may; one that nobody has just now makes room', async () => {
  const mounts = await open(1024 * 1024 * MiB)
  const one = wanted()
  const lent = []
  for (let i = 0; i < 256; i++) lent.push(await mounts.lend({ ...one, identity: String(i) }))
  await expect(mounts.lend(one)).rejects.toMatchObject({ code: 'no_capacity' })
  expect(nameOf(await mounts.lend({ ...one, identity: '0' }))).toBe(lent.map(nameOf)[0])
  await mounts.lend(wanted())
  lent[1]?.release()
  await mounts.lend(one)
  expect((await mounts.list(one.tenantId)).map(({ key }) => key)).not.toContain(lent.map(nameOf)[1])
})

test('one that could not be filled is not there', async () => {
  const mounts = await open()
  const one = wanted({ seed: async () => Promise.reject(new Error('no seed')) })
  await expect(mounts.lend(one)).rejects.toThrow('no seed')
  expect(readdirSync(join(root, 'pool'))).toEqual([])
  const lent = await mounts.lend({ ...one, seed: async () => undefined })
  expect(existsSync(lent.directory)).toBe(true)
})
