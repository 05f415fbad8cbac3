import { mkdtempSync, rmSync } from 'node:fs'
import { open, readdir, readFile, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { errnoOf, GiB, MiB } from '@berth/contracts'
import { mountAt, readMounts } from '@berth/host'
import { afterAll, beforeAll, expect, test } from '@jest/globals'
import { Pool } from './pool.js'

/** Over quota, errno(3). Node has no name for it. */
const EDQUOT = 'Unknown system error -122'

const dataDir = mkdtempSync(join(tmpdir(), 'berth-pool-'))
const options = { dataDir, sizeBytes: 2 * GiB, ready: { count: 3, limitBytes: 64 * MiB } }
let pool: Pool

beforeAll(async () => {
  pool = await Pool.open(options)
})
afterAll(async () => {
  await pool.close()
  expect(readMounts().filter((m) => m.target.startsWith(dataDir))).toEqual([])
  rmSync(dataDir, { recursive: true })
})

/** Writes until the kernel refuses. @returns bytes written, and the error's name */
async function fill(path: string): Promise<{ bytes: number; errno: string | undefined }> {
  const file = await open(join(path, 'big'), 'w')
  let bytes = 0
  try {
    for (;;) bytes += (await file.write(Buffer.alloc(MiB, bytes))).bytesWritten
  } catch (error) {
    return { bytes, errno: errnoOf(error) }
  } finally {
    await file.close()
  }
}

test('a layer takes what it may and not more', async () => {
  const path = await pool.create('small', 16 * MiB)
  const { bytes, errno } = await fill(path)
  expect(errno).toBe(EDQUOT)
  expect(bytes).toBeLessThanOrEqual(16 * MiB)
  expect(bytes).toBeGreaterThan(8 * MiB)
  const other = await pool.create('other', 64 * MiB)
  await writeFile(join(other, 'x'), 'there is room for others')
  await pool.resize('small', 32 * MiB)
  await writeFile(join(path, 'more'), Buffer.alloc(4 * MiB))
  expect((await pool.usage('small')).referencedBytes).toBeGreaterThan(8 * MiB)
  await pool.remove('small')
  await pool.remove('other')
  expect(await pool.list()).toEqual([])
})

test('what is not there is removed without complaint, and a name is given once', async () => {
  await pool.remove('never')
  await pool.create('once', MiB * 8)
  await expect(pool.create('once', MiB * 8)).rejects.toThrow('exists')
  await pool.remove('once')
})

test('a full layer can be given more, and less than it holds; how full all are is told at once', async () => {
  const path = await pool.create('full', 8 * MiB)
  expect((await fill(path)).errno).toBe(EDQUOT)
  await pool.resize('full', 64 * MiB)
  await writeFile(join(path, 'more'), Buffer.alloc(4 * MiB))
  await pool.resize('full', 1 * MiB)
  const { usedBytes = 0, limitBytes } = (await pool.fill()).get('full') ?? {}
  expect(limitBytes).toBe(1 * MiB)
  expect(usedBytes).toBeGreaterThan(1 * MiB)
  await pool.remove('full')
})

test('a clone has the same content and its own limit', async () => {
  const from = await pool.create('origin', 64 * MiB)
  await writeFile(join(from, 'f'), 'same')
  const to = await pool.clone('origin', 'copy', 8 * MiB)
  expect((await fill(to)).errno).toBe(EDQUOT)
  await pool.remove('origin')
  await pool.remove('copy')
})

test('a clone that cannot be made leaves nothing', async () => {
  const from = await pool.create('origin', 64 * MiB)
  await writeFile(join(from, 'f'), 'same')
  await writeFile(join(await pool.create('taken', 64 * MiB), 'f'), 'other')
  await expect(pool.clone('origin', 'taken', 8 * MiB)).rejects.toMatchObject({ code: 'ENOTEMPTY' })
  await expect(pool.clone('nothing', 'copy', 8 * MiB)).rejects.toThrow('btrfs subvolume snapshot')
  expect((await readdir(join(dataDir, 'pool'))).filter((name) => name.includes('clone'))).toEqual([])
  expect(await readFile(join(pool.path('taken'), 'f'), 'utf8')).toBe('other')
  await pool.remove('origin')
  await pool.remove('taken')
})

test('many at once are made and removed', async () => {
  const ids = Array.from({ length: 40 }, (_, i) => `many_${i}`)
  await Promise.all(ids.map((id) => pool.create(id, 64 * MiB)))
  expect(await pool.list()).toEqual([...ids].sort())
  await Promise.all(ids.map((id) => pool.remove(id)))
  expect(await pool.list()).toEqual([])
})

test('a second open adopts the mount, keeps layers, and clears leftovers', async () => {
  await pool.create('kept', 8 * MiB)
  const again = await Pool.open(options)
  expect(readMounts().filter((m) => m.target === join(dataDir, 'pool'))).toHaveLength(1)
  expect(await again.list()).toEqual(['kept'])
  await again.remove('kept')
  expect(mountAt(join(dataDir, 'pool'))?.options).toContain('nodev')
  await again.close()
  pool = await Pool.open(options)
})

test.each(['../x', 'a/b', '', '.ready-1', 'A'])('%p is no id', (id) => {
  expect(() => pool.path(id)).toThrow('broken invariant')
})
