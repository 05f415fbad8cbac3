import { defaultQuota, GiB, MiB } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { type BuildNode, buildCost, placeBuild } from './build.js'
import { NODE_SILENT_MS } from './placement.js'
import { fits } from './quota.js'
import { node, nodeId, now, tenantId } from './sample.fixture.js'

const limits = { cpus: 1, memoryBytes: GiB, diskBytes: GiB, pids: 100 }
const wanted = { tenantId: tenantId(1), limits, platform: null, parallel: 2 }
const none = { unfinishedJobs: 0, runningJobs: 0, cpuMillis: 0, memoryBytes: 0, diskBytes: 0 }
const place = (nodes: readonly BuildNode[], change = {}, quota = {}, use = {}) =>
  placeBuild(nodes, { ...defaultQuota, ...quota }, { ...none, ...use }, { ...wanted, ...change }, now)
const builder = (n: number, change: Partial<BuildNode> = {}): BuildNode => ({
  ...{ ...node(n), last: false, builds: { taken: 0, own: 0 } },
  ...change,
})

const never = { shortage: null, forGood: true, keep: null }

test('a build holds its commands, and disk for the context besides', () => {
  expect(buildCost(limits, 2)).toEqual({ cpuMillis: 2000, memoryBytes: 2 * GiB, diskBytes: 3 * GiB })
})

test.each([
  ['concurrentJobs', { concurrentJobs: 2 }, { runningJobs: 2 }],
  ['unfinishedJobs', { unfinishedJobs: 2 }, { unfinishedJobs: 2 }],
  ['cpus', { cpus: 1 }, { cpuMillis: 1 }],
  ['memoryBytes', { memoryBytes: GiB }, { memoryBytes: 1 }],
  ['diskBytes', { diskBytes: 2 * GiB }, { diskBytes: 1 }],
] as const)('one that is over %s is kept by it, for good where it alone is', (name, quota, use) => {
  expect(place([builder(1)], {}, quota, use)).toMatchObject({ shortage: { quota: name }, forGood: false })
  expect(place([builder(1)], {}, { [name]: 0 })).toMatchObject({ shortage: { quota: name }, forGood: true })
})

test('one whose commands do not fit together has fewer at the same time', () => {
  expect(place([builder(1)], { parallel: 4 })).toMatchObject({ parallel: 4 })
  expect(place([builder(1)], { parallel: 4 }, { memoryBytes: 3 * GiB })).toMatchObject({ parallel: 3 })
  expect(place([builder(1)], { parallel: 4 }, { diskBytes: 2 * GiB })).toMatchObject({ parallel: 1 })
  const full = builder(1, { used: { cpuMillis: 0, memoryBytes: 0, diskBytes: 0, sandboxes: 7 } })
  expect(place([full])).toMatchObject({ parallel: 1 })
})

test('one that finds no room may find it later, unless no node is large enough', () => {
  const full = builder(1, { used: node(1).capacity })
  expect(place([full])).toEqual({ shortage: null, forGood: false, keep: nodeId(1) })
  expect(place([])).toEqual({ shortage: null, forGood: false, keep: null })
  expect(place([full], { limits: { ...limits, memoryBytes: 9 * GiB } })).toEqual(never)
})

test('one that finds no room goes nowhere else than where it is kept some, and others go around that', () => {
  const [half, full] = [
    builder(1, { used: { ...node(1).capacity, cpuMillis: 0 } }),
    builder(2, { used: node(2).capacity }),
  ]
  const kept = (nodes: readonly BuildNode[], ...ids: readonly number[]) =>
    placeBuild(nodes, defaultQuota, none, wanted, now, new Set(ids.map(nodeId)))
  expect(kept([full, half])).toMatchObject({ keep: nodeId(1) })
  expect(kept([full, half], 1)).toMatchObject({ keep: nodeId(2) })
  expect(kept([full, half], 1, 2)).toEqual({ shortage: null, forGood: false, keep: null })
  expect(kept([builder(1), builder(2)], 1)).toMatchObject({ nodeId: nodeId(2) })
  // What lacks is the tenant's own to free.
  expect(place([full], {}, { concurrentJobs: 2 }, { runningJobs: 2 })).toMatchObject({ forGood: false, keep: null })
})

test.each([
  ['none', 0, 0, true],
  ['half of all', 16, 16, false],
  ['as many as are free besides those of others', 24, 8, false],
  ['none, and others all', 32, 0, false],
  ['none, and others all but one', 31, 0, true],
])('a node takes another build of a tenant that has %s of its builds: %s', (_, taken, own, takes) => {
  const found = place([builder(1, { builds: { taken, own } })])
  expect(found).toMatchObject(takes ? { nodeId: nodeId(1) } : { shortage: null, forGood: false, keep: null })
})

test('one whose nodes are silent for the moment may find room when they are back', () => {
  const silent = builder(1, { lastSeenAt: new Date(now.getTime() - NODE_SILENT_MS - 1) })
  expect(place([silent])).toEqual({ shortage: null, forGood: false, keep: null })
  expect(place([silent], { limits: { ...limits, memoryBytes: 9 * GiB } })).toEqual(never)
})

test('it goes where its cache is, then where it is done sooner, then where its images are', () => {
  const narrow = { used: { cpuMillis: 7000, memoryBytes: 0, diskBytes: 0, sandboxes: 0 } }
  expect(place([builder(1), builder(2, { last: true, ...narrow })])).toMatchObject({ nodeId: nodeId(2), parallel: 1 })
  expect(place([builder(1, { ...narrow, images: new Set(['a', 'b']) }), builder(2)])).toMatchObject({ parallel: 2 })
  expect(place([builder(1), builder(2, { images: new Set(['a', 'b']) })])).toMatchObject({ nodeId: nodeId(2) })
  expect(place([builder(2), builder(1)])).toMatchObject({ nodeId: nodeId(1) })
})

test('it goes to a node of its platform', () => {
  const nodes = [builder(1, { platform: 'linux/amd64', last: true }), builder(2, { platform: 'linux/arm64' })]
  expect(place(nodes, { platform: 'linux/arm64' })).toMatchObject({ nodeId: nodeId(2) })
  expect(place(nodes)).toMatchObject({ nodeId: nodeId(1) })
  expect(place(nodes, { platform: 'linux/riscv64' })).toEqual(never)
})

test('whatever it is given, it overshoots neither quota nor node', () => {
  const amount = fc.integer({ min: 0, max: 16 })
  fc.assert(
    fc.property(amount, amount, amount, amount, fc.integer({ min: 1, max: 4 }), (a, b, c, d, parallel) => {
      const quota = { ...defaultQuota, cpus: a, memoryBytes: b * GiB, diskBytes: 16 * GiB }
      const use = { ...none, cpuMillis: c * 500, memoryBytes: c * 256 * MiB }
      const used = { cpuMillis: d * 500, memoryBytes: d * 512 * MiB, diskBytes: d * 256 * MiB, sandboxes: d }
      const found = placeBuild([builder(1, { used })], quota, use, { ...wanted, parallel }, now)
      if ('forGood' in found) return
      expect(fits(quota, use, found.cost)).toBeUndefined()
      const { capacity } = builder(1)
      expect(used.cpuMillis + found.cost.cpuMillis).toBeLessThanOrEqual(capacity.cpuMillis)
      expect(used.memoryBytes + found.cost.memoryBytes).toBeLessThanOrEqual(capacity.memoryBytes)
      expect(used.diskBytes + found.cost.diskBytes).toBeLessThanOrEqual(capacity.diskBytes)
      expect(used.sandboxes + found.parallel).toBeLessThanOrEqual(capacity.sandboxes)
    }),
  )
})
