import { GiB, MiB } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { Room, reserveOf } from './room.js'

test('a twentieth of a disk is left alone, 10 GiB at most', () => {
  expect([20 * GiB, 200 * GiB, 20_000 * GiB].map((bytes) => reserveOf(bytes) / GiB)).toEqual([1, 10, 10])
})

test('the disk is looked at before the first byte and then once in a while; what is left alone is never taken', async () => {
  let [free, looks, freeInodes] = [3 * GiB, 0, 250]
  const room = new Room(async () => {
    looks++
    return { bytes: 20 * GiB, free, inodes: 1000, freeInodes }
  })
  expect(await room.left()).toEqual({ bytes: 2 * GiB, inodes: 200 })
  for (let i = 0; i < 32; i++) await room.want(MiB)
  expect(looks).toBe(3)
  free = GiB
  await expect(room.left()).rejects.toMatchObject({ code: 'no_capacity' })
  await expect(room.want(16 * MiB)).rejects.toMatchObject({ code: 'no_capacity' })
  // It is asked again until there is room.
  await expect(room.want(1)).rejects.toMatchObject({ code: 'no_capacity' })
  ;[free, freeInodes] = [3 * GiB, 50]
  await expect(room.left()).rejects.toMatchObject({ code: 'no_capacity' })
})

test('what is missing is told: bytes up to the next step of writing, and whether inodes are short', async () => {
  let [free, freeInodes] = [3 * GiB, 250]
  const room = new Room(async () => ({ bytes: 20 * GiB, free, inodes: 1000, freeInodes }))
  expect(await room.missing()).toBeUndefined()
  free = GiB + 1
  expect(await room.missing()).toBeUndefined()
  free = GiB
  expect(await room.missing()).toEqual({ bytes: 16 * MiB, inodes: false })
  free = 0
  expect(await room.missing()).toEqual({ bytes: GiB + 16 * MiB, inodes: false })
  ;[free, freeInodes] = [3 * GiB, 50]
  expect(await room.missing()).toEqual({ bytes: 0, inodes: true })
})

test('a file system without a number of inodes has enough', async () => {
  const many = Number.POSITIVE_INFINITY
  const room = new Room(async () => ({ bytes: GiB, free: GiB, inodes: many, freeInodes: many }))
  expect((await room.left()).inodes).toBe(Number.MAX_SAFE_INTEGER)
})
