// Copies of sandboxes' files on a real node: for images and for other sandboxes. What they cost is by what was changed, the
// sandbox stands still for the copy only, and a killed agent leaves neither a copy nor a sandbox that stands still.
import { randomBytes } from 'node:crypto'
import { chownSync, existsSync, mkdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { type ApplySandbox, GiB, MiB, mintId, type NodeCommit, type SandboxId, SnapshotId } from '@berth/contracts'
import { removeTree } from '@berth/host'
import { createLogger } from '@berth/telemetry'
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals'
import { Images, nodePlatform } from '../images/images.js'
import { addLayer } from '../images/ingest.js'
import { packUpper } from '../images/pack.js'
import { Copies } from './copies.js'
import { HeldSnapshots, type Holding } from './held-snapshots.js'
import {
  applySandbox,
  leftOf,
  newNodeDirectory,
  newTenant,
  nothing,
  type SandboxInput,
  TestNode,
} from './node.fixture.js'
import { loop, sh } from './residents.fixture.js'
import { SnapshotImages, type SnapshotParts } from './snapshot-images.js'

const place = newNodeDirectory()
const forever = new AbortController().signal
const log = createLogger({ name: 'agent', level: 'silent' })
const program = join(import.meta.dirname, '../../../../libs/init/build/berth-layer')
let node: TestNode
let images: Images
let base: Awaited<ReturnType<Images['assemble']>>

beforeAll(async () => {
  node = await TestNode.open(place)
  images = await Images.open(join(place.directory, 'images'), '/nowhere', program)
  const ids = { base: 0, count: 65_536 }
  const { tar } = packUpper({ program, upper: join(place.directory, 'image'), ids, signal: forever })
  const layer = await addLayer(images, tar, { signal: forever })
  const config = { Env: ['PATH=/bin'], Healthcheck: { Test: ['CMD', 'true'] } }
  const rootfs = { type: 'layers', diff_ids: [layer.diffId] }
  const architecture = nodePlatform.split('/')[1]
  base = await images.assemble(
    Buffer.from(JSON.stringify({ architecture, os: 'linux', config, rootfs })),
    [layer],
    forever,
  )
})
afterEach(async () => {
  for (const { id } of node.residents.standing()) node.residents.discard(id)
  await until(
    'all is gone',
    async () => node.residents.standing().length === 0 && (await node.shop.pool.list()).length === 0,
  )
})
afterAll(async () => {
  await node.destroy()
  expect(await leftOf(place)).toEqual(nothing)
})

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; i < 6000; i++) {
    if (await condition()) return
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  throw new Error(`never: ${what}`)
}

/** The agent ends, without having had the time for anything, and another one is there. */
async function restart(): Promise<void> {
  await Promise.all([node.supervisor.close(), node.residents.close()])
  node.shop.tenants.close()
  node = await TestNode.open(place)
}

/** Work goes on where nothing of it waits for anything outside of this process. */
const turnsOfLoop = async (count = 20) => {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve))
}

/** What work waits at until it is opened. */
function gateOf() {
  let open: () => void = () => undefined
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  return { opened, open: () => open() }
}

const newSnapshot = () => SnapshotId.parse(mintId('snapshot', Date.now(), randomBytes(10)))
const groupOf = (id: SandboxId) => node.residents.find(id).group
const isFrozen = (id: SandboxId) => node.shop.cgroups.frozen(groupOf(id))

describe('a sandbox that is held still', () => {
  test('stands still for as long as the work on its files takes, and goes on whatever becomes of that', async () => {
    const { sandboxId: id } = await node.up(sh(loop))
    expect(await node.residents.still(id, true, async () => isFrozen(id))).toBe(true)
    expect(isFrozen(id)).toBe(false)
    expect(await node.residents.still(id, false, async () => isFrozen(id))).toBe(false)
    const failed = node.residents.still(id, true, async () => Promise.reject(new Error('no')))
    await expect(failed).rejects.toThrow('no')
    expect(isFrozen(id)).toBe(false)
  })

  test('is paused when that is asked for meanwhile, and one that is paused stays so', async () => {
    const command = await node.up(sh(loop))
    const id = command.sandboxId
    let paused: Promise<ApplySandbox> | undefined
    await node.residents.still(id, true, async () => {
      paused = node.become(command, 'paused')
    })
    const frozen = await paused
    expect(isFrozen(id)).toBe(true)
    await node.residents.still(id, true, async () => undefined)
    expect(isFrozen(id)).toBe(true)
    await node.become(frozen ?? command, 'running')
    expect(isFrozen(id)).toBe(false)
  })

  test('goes on with the next agent, which removes the copy that was being made', async () => {
    const { sandboxId: id } = await node.up(sh(loop))
    // Where a kill -9 leaves it.
    await node.shop.cgroups.freeze(groupOf(id))
    await node.shop.pool.clone(id, 'copy_1_1', 1e8)
    await restart()
    expect(isFrozen(id)).toBe(false)
    expect(await node.shop.pool.list()).toEqual([id])
    expect((await node.inside(id, 'echo on')).out).toBe('on\n')
  })
})

/** A sandbox on the image of the store, which the test's node knows nothing of. */
const snapshots = (
  copies = node.copies,
  still: SnapshotParts['residents']['still'] = (...of) => node.residents.still(...of),
) =>
  new SnapshotImages({
    residents: {
      find: (id) => {
        const { image, ids, spec, tenantId, upper, state } = node.residents.find(id)
        const of = image && { ...image, digest: base.digest }
        return { ...Object.create(node.residents.find(id)), id, image: of, ids, spec, tenantId, upper, state }
      },
      still,
    },
    images,
    copies,
    shop: node.shop,
    log,
  })

describe('a commit', () => {
  const asked = (more: Partial<NodeCommit> = {}): NodeCommit => ({
    ...{ pause: true, comment: '', author: '', changes: {}, maxBytes: 1e9, ...more },
  })
  const commit = (id: SandboxId, more: Partial<NodeCommit> = {}) => snapshots().commit(id, asked(more), forever)

  test('is the image below and a layer of what was changed, without what the node puts there', async () => {
    const { sandboxId: id } = await node.up({ tmpfs: [{ path: '/scratch' }] })
    const unchanged = await commit(id)
    expect(unchanged.layers).toEqual(base.layers)
    await node.inside(id, 'echo one > /etc/one; echo more >> /etc/hosts; rm /bin/true; echo x > /scratch/x; mkdir /d')
    const image = await commit(id, { comment: 'why' })
    expect(image.layers.slice(0, -1)).toEqual(base.layers)
    expect(image.layers.at(-1)?.unpackedBytes).toBe('one\n'.length)
    expect(image.history.at(-1)).toMatchObject({ comment: 'why', emptyLayer: false })
    const top = images.layers.path(image.layers.at(-1)?.diffId ?? '')
    expect(existsSync(join(top, 'etc/one'))).toBe(true)
    for (const path of ['etc/hosts', 'etc/hostname', 'etc/resolv.conf', 'scratch', 'proc', 'dev'])
      expect(existsSync(join(top, path))).toBe(false)
    expect(await node.shop.pool.list()).toEqual([id])
    // A second one is on the same image, and of the same files it is the same layer.
    expect((await commit(id, { pause: false })).layers).toEqual(image.layers)
  })

  test('of a sandbox that never had files, or is larger than the quota, leaves nothing', async () => {
    const none = applySandbox({ image: 'nothing' })
    await node.residents.apply(none)
    await node.reported(none.sandboxId, ({ state }) => state === 'failed')
    await expect(commit(none.sandboxId)).rejects.toMatchObject({ code: 'wrong_state' })
    const { sandboxId: id } = await node.up()
    await node.inside(id, 'head -c 100000 /dev/zero > /big')
    await expect(commit(id, { maxBytes: 99_999 })).rejects.toMatchObject({ code: 'quota_exceeded' })
    expect(await node.shop.pool.list()).toEqual([id])
  })

  test('of one tenant leaves a turn to others, however many it has in line', async () => {
    const begun: SandboxId[] = []
    const commits = snapshots(node.copies, (id) => {
      begun.push(id)
      return new Promise(() => undefined)
    })
    const [mine, other] = [await node.up(), await node.up()]
    for (let i = 0; i < 4; i++) void commits.commit(mine.sandboxId, asked(), forever)
    await until('two have begun', () => begun.length >= 2)
    void commits.commit(other.sandboxId, asked(), forever)
    await until('another tenant’s has begun', () => begun.length >= 3)
    expect(begun).toEqual([mine.sandboxId, mine.sandboxId, other.sandboxId])
  })

  test('is an errand of its tenant: it ends before the sandboxes do when the memory of those is used up', async () => {
    const { sandboxId: id } = await node.up(sh(loop))
    const live = node.residents.find(id)
    // Names are what packing keeps; these are more than the memory that there is.
    const names = join(live.upper, 'names')
    mkdirSync(names)
    chownSync(names, live.ids.base, live.ids.base)
    for (let i = 0; i < 60_000; i++) writeFileSync(join(names, `${'n'.repeat(200)}${i}`), '')
    node.shop.tenants.limit(live.tenantId, { memoryBytes: 8 * MiB, cpus: 2, pids: 4096 })
    await expect(commit(id)).rejects.toMatchObject({ code: 'unavailable' })
    expect((await node.inside(id, 'echo on')).out).toBe('on\n')
    expect(node.shop.cgroups.children(node.shop.tenants.group(live.tenantId))).toEqual([id])
    expect(await node.shop.pool.list()).toEqual([id])
  })

  test('has no copy that the node has no room for', async () => {
    const { sandboxId: id } = await node.up({ limits: { diskBytes: GiB } })
    await node.inside(id, 'head -c 6000000 /dev/urandom > /noise')
    const small = new Copies(node.shop.pool, GiB + 8e6)
    const other = await small.take(id, 'copy_other', GiB, (work) => work())
    const refused = snapshots(small).commit(id, asked(), forever)
    await expect(refused).rejects.toMatchObject({
      code: 'no_capacity',
      data: { asked: { diskBytes: expect.any(Number) } },
    })
    expect(await node.shop.pool.list()).toEqual(['copy_other', id].sort())
    expect(existsSync(other)).toBe(true)
    await small.drop('copy_other')
    expect((await snapshots(small).commit(id, asked(), forever)).layers).toHaveLength(base.layers.length + 1)
  })
})

describe('an export', () => {
  const tenantGroup = (id: SandboxId) => node.shop.tenants.group(node.residents.find(id).tenantId)
  const groupsOf = (id: SandboxId) => node.shop.cgroups.children(tenantGroup(id)).filter((name) => name !== id)
  const packers = (id: SandboxId) =>
    groupsOf(id)
      .flatMap((name) => node.shop.cgroups.processes(`${tenantGroup(id)}/${name}`))
      .map((pid) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')[0])

  test('is made in the group of its tenant, and ends with its reader', async () => {
    const { sandboxId: id } = await node.up()
    await node.inside(id, 'head -c 8000000 /dev/urandom > /noise')
    const tar = snapshots().export(id, forever)
    await until('it is packed', async () => packers(id)[0] === program)
    // A tenant that gives its sandboxes all shares there are does not keep others waiting for what is done for it.
    const cpu = node.shop.cgroups.paths(`${tenantGroup(id)}/${groupsOf(id)[0]}`).get('cpu')
    const shares = ['cpu.shares', 'cpu.weight'].map((name) => `${cpu}/${name}`).filter((path) => existsSync(path))
    expect(['262144\n', '10000\n']).toContain(readFileSync(shares[0] ?? '', 'utf8'))
    tar.destroy()
    await until('nothing of it is left', async () => packers(id).length === 0)
    await until('its group is gone', async () => groupsOf(id).length === 0)
  })

  test('of a sandbox that is deleted meanwhile breaks off', async () => {
    const { sandboxId: id } = await node.up()
    await node.inside(id, 'head -c 8000000 /dev/urandom > /a; echo last > /z')
    const tar = snapshots().export(id, forever)
    await until('it is packed', async () => packers(id)[0] === program)
    node.residents.discard(id)
    await until('it is gone', async () => (await node.shop.pool.list()).length === 0)
    const read = async () => {
      for await (const _ of tar) void _
    }
    await expect(read()).rejects.toMatchObject({ code: 'sandbox_not_found' })
  })
})

describe('a fork', () => {
  const tenantId = newTenant()
  const still = (id: SandboxId) => (work: () => Promise<unknown>) => node.residents.still(id, true, work)
  const holding = (id: SandboxId, more: Partial<Holding> = {}, held = node.held) => {
    const live = node.residents.find(id)
    const { image } = live
    if (!image) throw new Error('it has no image')
    const asked = { id: newSnapshot(), pause: true, clones: 1, still: still(id), signal: forever, ...more }
    return held.hold(live, image, asked)
  }
  const hold = async (id: SandboxId, clones: number) => {
    const snapshot = newSnapshot()
    await holding(id, { id: snapshot, clones })
    return snapshot
  }
  const begin = (snapshot: SnapshotId, spec: SandboxInput = {}, more: Partial<ApplySandbox> = {}) =>
    node.up(spec, { tenantId, snapshot, ...more })
  afterEach(() => node.held.expire(Number.POSITIVE_INFINITY))

  test('begins with the files as they were, has a name of its own, and changes nobody else’s', async () => {
    const { sandboxId: id } = await node.up({}, { tenantId })
    await node.inside(id, 'echo one > /file; rm /bin/false')
    // More than can be read at one go: nobody needs to.
    truncateSync(join(node.residents.find(id).upper, 'etc/resolv.conf'), 3 * GiB)
    const snapshot = await hold(id, 2)
    await node.inside(id, 'echo two > /file')
    const [a, b] = await Promise.all([begin(snapshot, { hostname: 'a' }), begin(snapshot, { hostname: 'b' })])
    expect((await node.inside(a.sandboxId, 'echo a >> /file; cat /file /etc/hostname')).out).toBe('one\na\na\n')
    expect((await node.inside(b.sandboxId, 'cat /file /etc/hosts; test -e /bin/false || echo gone')).out).toMatch(
      /^one\n.*127\.0\.1\.1\tb\ngone\n$/s,
    )
    expect((await node.inside(id, 'cat /file')).out).toBe('two\n')
    // It goes once the last has begun, for whom it stays a little while.
    await node.held.expire(Date.now())
    expect(node.held.layers()).toEqual([snapshot])
    await node.held.expire(Date.now() + 16_000)
    expect(await node.shop.pool.list()).toEqual([id, a.sandboxId, b.sandboxId].sort())
  })

  test('follows no link out of the files', async () => {
    const { sandboxId: id } = await node.up({}, { tenantId })
    const outside = join(place.directory, 'outside')
    mkdirSync(outside)
    writeFileSync(join(outside, 'hostname'), `${node.residents.find(id).hostname}\n`)
    await node.inside(id, 'rm -r /etc')
    symlinkSync(outside, join(node.residents.find(id).upper, 'etc2'))
    await node.inside(id, 'mv /etc2 /etc')
    const { sandboxId: copy } = await begin(await hold(id, 1), { hostname: 'other' })
    expect(node.residents.find(copy).hostname).toBe('other')
    expect(readFileSync(join(outside, 'hostname'), 'utf8')).not.toContain('other')
    await rm(outside, { recursive: true })
  })

  test('can begin after a restart of the agent; not with what another tenant, or nobody, keeps', async () => {
    const { sandboxId: id } = await node.up({}, { tenantId })
    await node.inside(id, 'echo one > /file')
    const snapshot = await hold(id, 2)
    await restart()
    const { sandboxId: copy } = await begin(snapshot)
    expect((await node.inside(copy, 'cat /file')).out).toBe('one\n')
    for (const more of [{ snapshot }, { tenantId, snapshot: newSnapshot() }]) {
      const command = applySandbox({}, more)
      await node.residents.apply(command)
      const { reason } = await node.reported(command.sandboxId, ({ state }) => state === 'failed')
      expect(reason).toMatchObject({ code: 'start_failed', message: expect.stringMatching(/fork again/) })
    }
    await node.held.release(snapshot, id)
    expect(await node.shop.pool.list()).toEqual([id, copy].sort())
  })

  test('is bounded: a tenant has so many copies at a time, and none that could not be made', async () => {
    const { sandboxId: id } = await node.up({}, { tenantId })
    for (let i = 0; i < 4; i++) await hold(id, 1)
    await expect(hold(id, 1)).rejects.toMatchObject({ code: 'rate_limited' })
    await node.held.expire(Number.POSITIVE_INFINITY)
    const failing = holding(id, { still: async () => Promise.reject(new Error('no')) })
    await expect(failing).rejects.toThrow('no')
    expect([node.held.layers(), await node.shop.pool.list()]).toEqual([[], [id]])
  })
  test('that is asked for twice is there for both when it is there, and is made by the second where the first failed', async () => {
    const { sandboxId: id } = await node.up({}, { tenantId })
    const copying = async (outcome: 'made' | 'failed') => {
      const [snapshot, gate] = [newSnapshot(), gateOf()]
      const first = holding(id, {
        id: snapshot,
        still: async (work) => {
          await gate.opened
          return outcome === 'made' ? work() : Promise.reject(new Error('no'))
        },
      }).catch((error: unknown) => String(error))
      let answered = false
      const second = holding(id, { id: snapshot }).then(() => {
        answered = true
      })
      await turnsOfLoop()
      expect(answered).toBe(false)
      gate.open()
      await second
      expect(await node.shop.pool.list()).toContain(snapshot)
      return first
    }
    expect(await copying('made')).toBeUndefined()
    expect(await copying('failed')).toBe('Error: no')
    expect(node.held.layers()).toHaveLength(2)
  })

  test('is not kept for one who has gone, nor where it is released while it is being made', async () => {
    const { sandboxId: id } = await node.up({}, { tenantId })
    const caller = new AbortController()
    const left = holding(id, {
      signal: caller.signal,
      still: async (work) => {
        await work()
        caller.abort(new Error('gone'))
      },
    })
    await expect(left).rejects.toThrow('gone')
    expect([node.held.layers(), await node.shop.pool.list()]).toEqual([[], [id]])
    const [snapshot, gate] = [newSnapshot(), gateOf()]
    const made = holding(id, { id: snapshot, still: (work) => gate.opened.then(work) })
    const released = node.held.release(snapshot, id)
    gate.open()
    await Promise.all([made, released])
    expect([node.held.layers(), await node.shop.pool.list()]).toEqual([[], [id]])
  })

  test('counts as what it may come to hold, and makes room for sandboxes that come', async () => {
    const { sandboxId: id } = await node.up({ limits: { diskBytes: 64 * MiB } }, { tenantId })
    await node.inside(id, 'head -c 20000000 /dev/urandom > /noise')
    const directory = join(place.directory, 'elsewhere')
    const copies = new Copies(node.shop.pool, 64 * MiB + 48e6)
    const held = await HeldSnapshots.open(directory, node.shop.pool, copies)
    const [first, second] = [newSnapshot(), newSnapshot()]
    await holding(id, { id: first }, held)
    // The sandbox goes on to its limit, and what it had is in the copy.
    await node.inside(id, 'head -c 20000000 /dev/urandom > /noise; sync')
    const { exclusiveBytes } = await node.shop.pool.usage(first)
    expect(exclusiveBytes).toBeGreaterThan(19e6)
    expect(exclusiveBytes).toBeLessThanOrEqual(copies.bytes(first))
    await holding(id, { id: second }, held)
    await expect(holding(id, {}, held)).rejects.toMatchObject({ code: 'no_capacity' })
    expect(held.layers()).toEqual([first, second])
    const both = expect.arrayContaining([first, second])
    // Those of a former agent count as well.
    const next = new Copies(node.shop.pool, 64 * MiB + 48e6)
    const after = await HeldSnapshots.open(directory, node.shop.pool, next)
    expect(next.bytes(second)).toBe(copies.bytes(second))
    await after.expire(Date.now())
    expect(after.layers()).toEqual(both)
    await node.shop.pool.create('newcomer', 16 * MiB)
    await after.expire(Date.now())
    expect(after.layers()).toHaveLength(1)
    await after.expire(Number.POSITIVE_INFINITY)
    await node.shop.pool.remove('newcomer')
    expect(await node.shop.pool.list()).toEqual([id])
    await removeTree(directory)
  })

  test('is not kept for those that were deleted before they began', async () => {
    const { sandboxId: id } = await node.up({}, { tenantId })
    const snapshot = await hold(id, 2)
    const { sandboxId: copy } = await begin(snapshot)
    for (const owner of [newTenant(), tenantId]) {
      await node.held.expire(Date.now() + 16_000)
      expect(node.held.layers()).toEqual([snapshot])
      const deleted = applySandbox({}, { tenantId: owner, snapshot, desired: 'deleted' })
      await node.residents.apply(deleted)
      await node.reported(deleted.sandboxId, ({ state }) => state === 'deleted')
    }
    await node.held.expire(Date.now() + 16_000)
    expect(await node.shop.pool.list()).toEqual([id, copy].sort())
  })

  test('of a sandbox whose disk is full begins', async () => {
    const limits = { diskBytes: 16 * MiB }
    const { sandboxId: id } = await node.up({ limits, hostname: 'full' }, { tenantId })
    await node.inside(id, 'head -c 30000000 /dev/urandom > /noise; i=0; while echo x > /$i; do i=$((i + 1)); done')
    const { sandboxId: copy } = await begin(await hold(id, 1), { limits, hostname: 'copy' })
    expect((await node.inside(copy, 'cat /etc/hostname; rm /noise && echo y > /y && echo ok')).out).toBe('copy\nok\n')
  })
})
