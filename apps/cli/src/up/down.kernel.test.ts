import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { mount, mountAt, unmount } from '@berth/host'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { placesFrom } from './config.js'
import { ensureDaemon, forgetDaemon, readDaemon } from './daemon.js'
import { down } from './down.js'
import { isAlive } from './process.js'

const places = placesFrom({ BERTH_DATA: mkdtempSync(join(tmpdir(), 'berth-down-')) })
const daemons = { runDir: places.run, logDir: places.logs }
const pool = join(places.agent, 'pool')
const layer = join(pool, 'layer')

/** What an agent leaves: a mounted pool. Its own clean-up ends at once, for want of a configuration. */
beforeEach(async () => {
  mkdirSync(pool, { recursive: true })
  await mount({ source: 'berth-down', target: pool, type: 'tmpfs' })
  writeFileSync(layer, '')
  await ensureDaemon(daemons, {
    name: 'agent',
    argv: ['sleep', '1000'],
    env: {},
    dependsOn: [],
    stopSignal: 'SIGTERM',
    stopWithinMs: 10_000,
  })
})
afterEach(async () => {
  await unmount(pool)
  rmSync(places.data, { recursive: true, force: true })
})

test('until the clean-up after the agent has succeeded, every `down` tries it, and deletes nothing', async () => {
  const agent = await readDaemon(daemons, 'agent')
  for (let i = 0; i < 2; i++) await expect(down(places, true)).rejects.toThrow('--clean')
  expect(agent && isAlive(agent)).toBe(false)
  expect(await readDaemon(daemons, 'agent')).toEqual(agent)
  expect(existsSync(layer)).toBe(true)
})

test('a pool that is still mounted, and of whose agent nothing is known, goes with the data', async () => {
  const agent = await readDaemon(daemons, 'agent')
  if (agent) process.kill(agent.pid, 'SIGKILL')
  forgetDaemon(daemons, 'agent')
  await down(places, true)
  expect(mountAt(pool)).toBeUndefined()
  expect(existsSync(places.data)).toBe(false)
})

test('a disk that is mounted as the data directory is emptied, and stays mounted', async () => {
  const own = placesFrom({ BERTH_DATA: mkdtempSync(join(tmpdir(), 'berth-down-disk-')) })
  await mount({ source: 'berth-down', target: own.data, type: 'tmpfs' })
  try {
    mkdirSync(own.logs, { recursive: true })
    await down(own, true)
    expect(readdirSync(own.data)).toEqual([])
    expect(mountAt(own.data)).toBeDefined()
  } finally {
    await unmount(own.data)
  }
  await down(own, true)
  expect(existsSync(own.data)).toBe(false)
})

test('a link to the data directory stays, and nothing is left where it leads', async () => {
  const real = mkdtempSync(join(tmpdir(), 'berth-down-real-'))
  const own = placesFrom({ BERTH_DATA: `${real}-link` })
  symlinkSync(real, own.data)
  try {
    mkdirSync(own.logs, { recursive: true })
    await down(own, true)
    expect([readdirSync(own.data), readlinkSync(own.data)]).toEqual([[], real])
  } finally {
    rmSync(own.data)
    rmSync(real, { recursive: true })
  }
})
