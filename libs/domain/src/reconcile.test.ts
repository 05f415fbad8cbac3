import { AttemptId, mintId, TenantId } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { compare, MISSING_MS, otherLimits, overdue, RESEND_AFTER_MS, type WantedAttempt } from './reconcile.js'
import { now } from './sample.fixture.js'

const id = (n: number) => AttemptId.parse(mintId('attempt', n, new Uint8Array(10)))
const ago = (ms: number) => new Date(now.getTime() - ms)
const wanted = (n: number, change: Partial<WantedAttempt> = {}): WantedAttempt => ({
  id: id(n),
  generation: 1,
  acknowledgedGeneration: 0,
  commandedAt: now,
  missingSince: null,
  ...change,
})

test('a tenant that a node holds to something else than it may have is told, and one whose limits were refused', () => {
  const tenant = (n: number) => TenantId.parse(mintId('tenant', n, new Uint8Array(10)))
  const limits = { memoryBytes: 1, cpus: 2, pids: 3 }
  const wanted = new Map([1, 2, 3, 4, 5].map((n) => [tenant(n), limits]))
  const said = [
    { id: tenant(1), limits: { ...limits } },
    { id: tenant(2), limits: { ...limits, pids: 4 } },
    { id: tenant(3), limits: { ...limits, cpus: 1.5 } },
    { id: tenant(4), limits: null },
    { id: tenant(9), limits: null },
  ]
  expect(otherLimits(said, wanted)).toEqual([2, 3, 4].map((n) => ({ tenantId: tenant(n), limits })))
})

describe('comparing with a heartbeat', () => {
  test('a listed attempt has been acknowledged, up to the generation listed', () => {
    const { acknowledged } = compare(
      [wanted(1), wanted(2, { generation: 2 })],
      [
        { id: id(1), generation: 1 },
        { id: id(2), generation: 1 },
      ],
    )
    expect(acknowledged).toEqual([
      { id: id(1), generation: 1 },
      { id: id(2), generation: 1 },
    ])
  })
  test('a node cannot acknowledge what was never asked', () => {
    expect(compare([wanted(1)], [{ id: id(1), generation: 9 }]).acknowledged).toEqual([{ id: id(1), generation: 1 }])
  })
  test('an attempt not yet acknowledged is not missing: its command is on the way', () => {
    expect(compare([wanted(1)], []).missing).toEqual([])
  })
  test('an acknowledged attempt that is no longer listed is missing, once', () => {
    expect(compare([wanted(1, { acknowledgedGeneration: 1 })], []).missing).toEqual([id(1)])
    expect(compare([wanted(1, { acknowledgedGeneration: 1, missingSince: now })], []).missing).toEqual([])
  })
  test('what is listed again is found, what is listed and not wanted is strange', () => {
    const listed = [
      { id: id(1), generation: 1 },
      { id: id(7), generation: 1 },
    ]
    const found = compare([wanted(1, { acknowledgedGeneration: 1, missingSince: now })], listed)
    expect([found.found, found.strange, found.acknowledged]).toEqual([[id(1)], [id(7)], []])
  })
  test('law: repeating the heartbeat after applying its differences changes nothing more', () => {
    const one = fc.record({
      n: fc.nat({ max: 9 }),
      acknowledged: fc.nat({ max: 2 }),
      generation: fc.integer({ min: 1, max: 2 }),
      missing: fc.boolean(),
    })
    fc.assert(
      fc.property(
        fc.uniqueArray(one, { selector: ({ n }) => n }),
        fc.uniqueArray(fc.nat({ max: 9 })),
        (rows, listed) => {
          const before = rows.map(({ n, acknowledged, generation, missing }) =>
            wanted(n, {
              generation,
              acknowledgedGeneration: Math.min(acknowledged, generation),
              missingSince: missing ? now : null,
            }),
          )
          const said = listed.map((n) => ({ id: id(n), generation: 2 }))
          const first = compare(before, said)
          const after = before.map((row) => ({
            ...row,
            acknowledgedGeneration:
              first.acknowledged.find((seen) => seen.id === row.id)?.generation ?? row.acknowledgedGeneration,
            missingSince: first.missing.includes(row.id) ? now : first.found.includes(row.id) ? null : row.missingSince,
          }))
          const { acknowledged, missing, found } = compare(after, said)
          expect([acknowledged, missing, found]).toEqual([[], [], []])
        },
      ),
    )
  })
})

test.each<[string, Partial<WantedAttempt>, ReturnType<typeof overdue>]>([
  ['a fresh command waits', { commandedAt: ago(RESEND_AFTER_MS - 1) }, undefined],
  ['an old one is sent again', { commandedAt: ago(RESEND_AFTER_MS) }, 'resend'],
  ['an acknowledged one is not', { commandedAt: ago(60_000), acknowledgedGeneration: 1 }, undefined],
  [
    'a cancel that only the run command preceded is',
    { commandedAt: ago(60_000), acknowledgedGeneration: 1, generation: 2 },
    'resend',
  ],
  ['one that just went missing waits', { acknowledgedGeneration: 1, missingSince: ago(MISSING_MS - 1) }, undefined],
  ['one that stays missing is lost', { acknowledgedGeneration: 1, missingSince: ago(MISSING_MS) }, 'lost'],
])('%s', (_, change, due) => {
  expect(overdue(wanted(1, change), now)).toBe(due)
})
