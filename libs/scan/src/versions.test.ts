import type { PackageType } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { compareVersions } from './versions.js'

const signOf = (type: PackageType, a: string, b: string) => {
  const order = compareVersions(type, a, b)
  return order === undefined ? undefined : Math.sign(order)
}

// Each is older than the next.
test.each<[PackageType, string[]]>([
  [
    'deb',
    ['0', '1.0~~', '1.0~~a', '1.0~', '1.0', '1.0-1', '1.0-1+deb12u1', '1.0-1.1', '1.0-2', '1.0a', '1.0+b', '1.0.1'],
  ],
  ['deb', ['5.2.37-2', '5.2.37-2+b1', '1:2', '1:2.1', '1:2:3', '9:1', '10:0.1']],
  [
    'apk',
    ['1.0_alpha', '1.0_alpha2', '1.0_beta', '1.0_pre', '1.0_rc1', '1.0_rc1-r1', '1.0', '1.0-r1', '1.0_git1', '1.0_p1'],
  ],
  ['apk', ['1.0_alpha_pre2', '1.0_alpha', '1.0_p', '1.0_p0', '1.0_p9-r0', '1.0_p10-r0', '1.0a', '1.0.1']],
  // apk-tools, test/version.data: a revision of 0 is later than none; and letters with digits, of apk 2.
  ['apk', ['1.0', '1.0-r0', '1.0-r1', '1.0p', '1.0p1-r2', '1.0p1-r3', '1.0p2-r0', '1.0p10-r0']],
  ['apk', ['1.01', '1.1', '1.1a', '1.1b', '1.1.1', '1.10', '2', '10', '20240101']],
  ['npm', ['0.0.1', '1.0.0-alpha', '1.0.0-alpha.1', '1.0.0-rc.1', '1.0.0', '1.0.1', '1.10.0', '2.0.0']],
  ['pypi', ['1.0.dev1', '1.0a1', '1.0b1', '1.0rc1', '1.0', '1.0+local', '1.0.post1', '1.1', '1!0.1']],
])('%s: %j', (type, versions) => {
  for (const [i, a] of versions.entries())
    for (const [j, b] of versions.entries()) expect([a, b, signOf(type, a, b)]).toEqual([a, b, Math.sign(i - j)])
})

test.each<[PackageType, string, string]>([
  ['deb', '1.0', '1.0-0'],
  ['deb', '0:1.00', '1.0'],
  ['apk', '1.0-r00', '1.0-r0'],
  ['npm', '13.0', '13.0.0'],
  ['npm', 'v4', '4.0.0'],
  ['pypi', ' 1.0 ', 'v1.0'],
  ['npm', 'v1.0.0', '1.0.0+build'],
  ['pypi', '1.0', '1.0.0'],
])('%s: %s is %s', (type, a, b) => expect(compareVersions(type, a, b)).toBe(0))

test.each<[PackageType, string]>([
  ['deb', 'a b'],
  ['deb', 'x:1'],
  ['apk', 'latest'],
  ['npm', '1.x'],
  ['pypi', 'not-a-version'],
  ['npm', `1.0.${'1'.repeat(300)}`],
])('%s: %s is no version', (type, text) => expect(compareVersions(type, text, '1.0.0')).toBeUndefined())

test.each<[string, string]>([
  ['1.0.0-01', '1.0.0-1'],
  [`1.0.0a${'b'.repeat(250)}`, '1.0.0'],
])('npm: what only npm itself takes for a version is compared too: %s', (a, b) => {
  expect(compareVersions('npm', a, b)).toEqual(expect.any(Number))
})

describe('an order', () => {
  const text = (alphabet: string) => fc.string({ unit: fc.constantFrom(...alphabet), maxLength: 10 })
  const kinds: readonly [PackageType, fc.Arbitrary<string>][] = [
    ['deb', fc.tuple(text('01a.+~'), text('01z~')).map(([upstream, revision]) => `0${upstream}-${revision}`)],
    [
      'apk',
      fc
        .tuple(
          fc.array(fc.nat(20), { minLength: 1, maxLength: 3 }),
          fc.constantFrom('', 'a', '_rc1', '_p', '_git2'),
          fc.nat(2),
        )
        .map(([numbers, more, revision]) => `${numbers.join('.')}${more}-r${revision}`),
    ],
  ]
  test.each(kinds)('of %s is total: reversed and transitive', (type, version) => {
    fc.assert(
      fc.property(version, version, version, (a, b, c) => {
        const order = (x: string, y: string) => compareVersions(type, x, y) ?? Number.NaN
        expect(Math.sign(order(a, b)) + Math.sign(order(b, a))).toBe(0)
        if (order(a, b) <= 0 && order(b, c) <= 0) expect(order(a, c)).toBeLessThanOrEqual(0)
      }),
    )
  })
})
