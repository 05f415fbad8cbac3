import { GiB } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { choose, chooseForSandbox, feasible, feasibleWhenEmpty, NODE_SILENT_MS, withJob } from './placement.js'
import { cost, node, nodeId, now, tenantId } from './sample.fixture.js'

const job = { tenantId: tenantId(1), image: 'debian', cost: cost(1) }

describe('a node that cannot', () => {
  test.each([
    ['is draining', { state: 'draining' }],
    ['is pending', { state: 'pending' }],
    ['was lost', { state: 'lost' }],
    ['was never seen', { lastSeenAt: null }],
    ['is silent', { lastSeenAt: new Date(now.getTime() - NODE_SILENT_MS - 1) }],
    ['has no CPU left', { used: { cpuMillis: 7001, memoryBytes: 0, diskBytes: 0, sandboxes: 0 } }],
    ['has no memory left', { used: { cpuMillis: 0, memoryBytes: 8 * GiB, diskBytes: 0, sandboxes: 0 } }],
    ['has no disk left', { used: { cpuMillis: 0, memoryBytes: 0, diskBytes: 8 * GiB, sandboxes: 0 } }],
    ['holds its fill of sandboxes', { used: { cpuMillis: 0, memoryBytes: 0, diskBytes: 0, sandboxes: 8 } }],
  ] as const)('%s: is not chosen', (_, change) => {
    expect(choose([node(1, change)], job, now)).toBeUndefined()
    expect(choose([node(1, change), node(2)], job, now)?.id).toBe(nodeId(2))
  })
})

test('a job whose image cannot be brought goes only where it is', () => {
  const without = node(1, { images: new Set() })
  expect(choose([without], { ...job, pinned: true }, now)).toBeUndefined()
  expect(choose([without], job, now)?.id).toBe(nodeId(1))
})

test.each<[string | null, string | null, boolean]>([
  ['linux/amd64', 'linux/amd64', true],
  ['linux/arm64', 'linux/amd64', false],
  ['linux/arm/v7', 'linux/arm/v6', true], // which its node judges
  [null, 'linux/amd64', true],
  ['linux/amd64', null, true],
])('an image is brought to a node that runs it: a node of %s, an image for %s', (own, platform, can) => {
  const there = node(1, { images: new Set(), platform: own })
  expect(feasible(there, { ...job, platform }, now)).toBe(can)
  expect(feasible({ ...there, images: new Set([job.image]) }, { ...job, platform }, now)).toBe(true)
})

test('a full node could still hold the job when empty; a small one could not', () => {
  const full = node(1, { used: node(1).capacity })
  expect(feasible(full, job, now)).toBe(false)
  expect(feasibleWhenEmpty(full, job, now)).toBe(true)
  expect(feasibleWhenEmpty(full, { ...job, cost: cost(9) }, now)).toBe(false)
})

describe('among nodes that can, it prefers', () => {
  const busy = { cpuMillis: 4000, memoryBytes: 0, diskBytes: 0, sandboxes: 4 }
  test('the one with the image, though the tenant is already there', () => {
    const without = node(1, { images: new Set() })
    const withImage = node(2, { tenants: new Map([[job.tenantId, 3]]) })
    expect(choose([without, withImage], job, now)?.id).toBe(nodeId(2))
  })
  test('the one with fewest of the tenant, though it is emptier', () => {
    const with1 = node(1, { used: busy, tenants: new Map([[job.tenantId, 1]]) })
    expect(choose([with1, node(2)], job, now)?.id).toBe(nodeId(2))
  })
  test('the fullest', () => {
    expect(choose([node(1), node(2, { used: busy }), node(3)], job, now)?.id).toBe(nodeId(2))
  })
})

test('law: placing until nothing fits never exceeds a capacity, and no node that is left could take the job', () => {
  const room = fc.record({
    cpuMillis: fc.integer({ min: 0, max: 5000 }),
    memoryBytes: fc.integer({ min: 0, max: GiB }),
    diskBytes: fc.integer({ min: 0, max: GiB }),
    sandboxes: fc.integer({ min: 0, max: 6 }),
  })
  fc.assert(
    fc.property(fc.array(room, { maxLength: 4 }), fc.integer({ min: 1, max: 3 }), (rooms, cpus) => {
      const asked = { ...job, cost: cost(cpus) }
      let nodes = rooms.map((capacity, n) => node(n, { capacity }))
      for (let chosen = choose(nodes, asked, now); chosen; chosen = choose(nodes, asked, now)) {
        const id = chosen.id
        nodes = nodes.map((one) => (one.id === id ? withJob(one, asked) : one))
      }
      for (const { capacity, used } of nodes) {
        expect(used.cpuMillis).toBeLessThanOrEqual(capacity.cpuMillis)
        expect(used.memoryBytes).toBeLessThanOrEqual(capacity.memoryBytes)
        expect(used.diskBytes).toBeLessThanOrEqual(capacity.diskBytes)
        expect(used.sandboxes).toBeLessThanOrEqual(capacity.sandboxes)
      }
      expect(nodes.some((one) => feasible(one, asked, now))).toBe(false)
    }),
  )
})

describe('a sandbox', () => {
  const sandbox = { ...job, starts: true, pinned: true }
  const without = { images: new Set<string>() }
  const full = { cpuMillis: 8000, memoryBytes: 0, diskBytes: 0, sandboxes: 8 }

  test('whose image cannot be brought goes only where it is', () => {
    expect(chooseForSandbox([node(1, without)], sandbox, now)).toBeUndefined()
    expect(chooseForSandbox([node(1, without), node(2)], sandbox, now)?.node.id).toBe(nodeId(2))
  })

  test('goes to a node that lacks its image only where that can be brought, and none that has it has room', () => {
    const brought = { ...sandbox, pinned: false }
    const here = node(2, { tenants: new Map([[tenantId(1), 5]]) })
    expect(chooseForSandbox([node(1, without), here], brought, now)?.node.id).toBe(nodeId(2))
    expect(chooseForSandbox([node(1, without), node(2, { used: full })], brought, now)?.node.id).toBe(nodeId(1))
    expect(chooseForSandbox([node(1, without), node(2, { used: full })], sandbox, now)).toBeUndefined()
  })

  test('that starts finds no room on a full node; one that does not needs disk there, and a node that is large enough', () => {
    expect(chooseForSandbox([node(1, { used: full })], sandbox, now)).toBeUndefined()
    const stopped = { ...sandbox, starts: false }
    expect(chooseForSandbox([node(1, { used: full })], stopped, now)?.node).toEqual(node(1, { used: full }))
    expect(chooseForSandbox([node(1, { used: full }), node(2)], stopped, now)?.node.id).toBe(nodeId(2))
    expect(chooseForSandbox([node(1, { used: { ...full, diskBytes: 8 * GiB } })], stopped, now)).toBeUndefined()
    expect(chooseForSandbox([node(1)], { ...stopped, cost: cost(9) }, now)).toBeUndefined()
  })

  test.each<[string, readonly ReturnType<typeof node>[], string]>([
    ['alone', [node(1), node(2, without)], '1 of 2 ready nodes have image debian and room'],
    [
      'without the image',
      [node(1, without), node(2, { used: full })],
      '1 of 2 ready nodes have room, and none of these has image debian yet',
    ],
    [
      'by spread',
      [node(1), node(2, { tenants: new Map([[tenantId(1), 2]]) })],
      '2 of 2 ready nodes have image debian and room; this one has fewest of the tenant (0)',
    ],
    [
      'by fullness',
      [node(1), node(2, { used: { cpuMillis: 2000, memoryBytes: 0, diskBytes: 0, sandboxes: 2 } })],
      '2 of 2 ready nodes have image debian and room; this one has as few as any of the tenant (0), and is fullest (25 %)',
    ],
  ])('is told why its node was chosen: %s', (_, nodes, why) =>
    expect(chooseForSandbox(nodes, { ...sandbox, pinned: false }, now)?.because).toBe(why),
  )
})
