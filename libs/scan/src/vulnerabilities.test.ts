import type { Distribution, FoundPackage, ImagePolicy, ImageVulnerability } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { JsonValues } from './json-values.js'
import { keptOf, OsvRecord } from './osv.js'
import { verdictOf } from './policy.js'
import { rate, scoreOf } from './severity.js'
import { Vulnerabilities } from './vulnerabilities.js'

const debian13: Distribution = { id: 'debian', version: '13', name: 'Debian' }
const found = (type: FoundPackage['type'], name: string, version: string, source: FoundPackage['source'] = null) => ({
  ...{ type, name, version, source, architecture: null, license: null, path: 'p', layer: `sha256:${'1'.repeat(64)}` },
})

const critical = 'CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H'
const medium = 'CVSS:3.1/AV:N/AC:H/PR:N/UI:R/S:U/C:L/I:L/A:N'
const of = (ecosystem: string, name: string, events: Record<string, string>[], more: object = {}) => ({
  ...{ package: { ecosystem, name }, ranges: [{ type: 'ECOSYSTEM', events }], ...more },
})
const record = (id: string, affected: object[], more: object = {}) => ({ id, affected, ...more })

function known(...records: object[]): Vulnerabilities {
  const all = new Vulnerabilities()
  for (const one of records) all.add(keptOf(OsvRecord.parse(one)))
  return all
}
const match = (all: Vulnerabilities, one: FoundPackage, distribution: Distribution | null = debian13) =>
  all.match({ packages: [one], distribution }).found
const ids = (matched: readonly ImageVulnerability[]) => matched.map(({ id }) => id)

test('a text that is nearly a vector takes no longer than one', () => {
  // Were fields not told apart by a slash, each of these could end at four places: 4^80 ways to try.
  expect(scoreOf(`A:${'BBBBB:'.repeat(80)}!`)).toBeUndefined()
})

test.each(['constructor', '__proto__', 'CVSS:3.1/__proto__:x', ':::::', 'CVSS:3.1/', 'CVSS:9.9/AV:N', ''])(
  'what is no vector has no score: %j',
  (vector) => expect(scoreOf(vector)).toBeUndefined(),
)

describe('ranges', () => {
  const span = [{ introduced: '1.0.0' }, { fixed: '1.5.0' }, { introduced: '2.0.0' }, { last_affected: '2.3.0' }]
  test.each<[string, string | null | undefined]>([
    ['0.9.0', undefined],
    ['1.0.0', '1.5.0'],
    ['1.5.0-rc.1', '1.5.0'],
    ['1.5.0', undefined],
    ['2.3.0', null],
    ['2.3.1', undefined],
    ['nonsense', undefined],
  ])('%s', (version, fixed) => {
    const matched = match(known(record('X', [of('npm', 'p', span)])), found('npm', 'p', version))
    expect(matched[0]?.fixedVersion).toBe(fixed)
  })

  test('the order of events does not matter', () => {
    const at = (version: string, events: Record<string, string>[]) =>
      ids(match(known(record('X', [of('npm', 'p', events)])), found('npm', 'p', version)))
    fc.assert(
      fc.property(
        fc.shuffledSubarray(span, { minLength: span.length }),
        fc.nat(3),
        fc.nat(6),
        (events, major, minor) => {
          expect(at(`${major}.${minor}.0`, events)).toEqual(at(`${major}.${minor}.0`, span))
        },
      ),
    )
  })

  test.each<[string, object, string, boolean]>([
    ['from the beginning', of('npm', 'p', [{ introduced: '0' }]), '0.0.1', true],
    ['ends before a limit', of('npm', 'p', [{ introduced: '0' }, { limit: '2.0.0' }]), '2.0.0', false],
    [
      'by name of the version',
      { package: { ecosystem: 'npm', name: 'p' }, versions: ['1.0.0', '3.0.0'] },
      '3.0.0',
      true,
    ],
    ['by no part of one', { package: { ecosystem: 'npm', name: 'p' }, versions: ['13.0.0'] }, '3.0.0', false],
    [
      'never by commits',
      { package: { ecosystem: 'npm', name: 'p' }, ranges: [{ type: 'GIT', events: [{ introduced: '0' }] }] },
      '1.0.0',
      false,
    ],
  ])('%s', (_, affected, version, hit) => {
    expect(match(known(record('X', [affected])), found('npm', 'p', version))).toHaveLength(hit ? 1 : 0)
  })
})

describe('ecosystems', () => {
  const all = known(
    record('D12', [of('Debian:12', 'openssl', [{ introduced: '0' }])]),
    record('D13', [of('Debian:13', 'openssl', [{ introduced: '0' }, { fixed: '3.5.1-1+deb13u1' }])]),
    record('D', [of('Debian', 'openssl', [{ introduced: '0' }])]),
    record('A', [of('Alpine:v3.22', 'openssl', [{ introduced: '0' }])]),
    record('U', [of('Ubuntu:24.04:LTS', 'openssl', [{ introduced: '0' }])]),
    record('P', [of('PyPI', 'Foo.Bar', [{ introduced: '0' }])]),
    record('N', [of('npm', '@a/b', [{ introduced: '0' }])]),
    record('G', [of('Go', 'openssl', [{ introduced: '0' }])]),
  )
  const openssl = { name: 'openssl', version: '3.5.1-1' }
  const libssl = found('deb', 'libssl3t64', '3.5.1-1+b1', openssl)
  test.each<[FoundPackage, Distribution | null, string[]]>([
    [libssl, debian13, ['D', 'D13']],
    [libssl, { ...debian13, version: '12.9' }, ['D', 'D12']],
    [libssl, { ...debian13, version: null }, ['D']],
    [found('deb', 'libssl3t64', '3.5.1-1+deb13u1', { ...openssl, version: '3.5.1-1+deb13u1' }), debian13, ['D']],
    [libssl, { id: 'ubuntu', version: '24.04', name: '' }, ['U']],
    [
      found('apk', 'libssl3', '3.5.1-r0', { name: 'openssl', version: '3.5.1-r0' }),
      { id: 'alpine', version: '3.22.1', name: '' },
      ['A'],
    ],
    [found('deb', 'openssl', '1'), { id: 'npm', version: null, name: '' }, []],
    [found('deb', 'openssl', '1'), null, []],
    [found('pypi', 'foo_bar', '1.0'), null, ['P']],
    [found('npm', '@a/b', '1.0.0'), null, ['N']],
  ])('%j of %j', (one, distribution, expected) => {
    expect(ids(match(all, one, distribution)).sort()).toEqual(expected)
  })
  test('what is of none of them is not kept, nor what was withdrawn', () => {
    expect(all.records).toBe(7)
    const gone = record('W', [of('npm', 'p', [{ introduced: '0' }])], { withdrawn: '2025-01-01T00:00:00Z' })
    expect(known(gone).records).toBe(0)
  })
})

test.each<[FoundPackage[], Distribution | null, RegExp | undefined]>([
  [[found('deb', 'p', '1'), found('npm', 'p', '1.0.0')], debian13, undefined],
  [[found('npm', 'p', '1.0.0')], null, undefined],
  [
    [found('deb', 'p', '1')],
    { id: 'raspbian', version: '12', name: '' },
    /the distribution: the image is of raspbian 12/,
  ],
  // Nobody has told anything of this release, nor of what comes next.
  [[found('deb', 'p', '1')], { id: 'debian', version: '14', name: '' }, /the distribution: the image is of debian 14/],
  [[found('deb', 'p', '1')], { id: 'debian', version: null, name: '' }, /the distribution: the image is of debian$/],
  [[found('deb', 'p', '1')], null, /of no known distribution/],
  [
    [found('pypi', 'dnf', '1')],
    { id: 'fedora', version: '42', name: '' },
    /^no packages of the distribution were found/,
  ],
  [[], { id: 'fedora', version: '42', name: '' }, /nothing .* was found; the image is of fedora 42/],
])('what cannot be known is said: %j of %j', (packages, distribution, expected) => {
  const said = known(record('X', [of('Debian:13', 'other', [{ introduced: '0' }])])).unknowable({
    packages,
    distribution,
  })
  if (expected) expect(said).toMatch(expected)
  else expect(said).toBeUndefined()
})

test('a version that cannot be compared with those of records is told, not taken for one that is fine', () => {
  const all = known(record('X', [of('npm', 'p', [{ introduced: '1.0.0' }])]), record('Y', [of('npm', 'q', [])]))
  const matched = (...packages: FoundPackage[]) => all.match({ packages, distribution: null }).leftOut
  expect(matched(found('npm', 'p', 'mine'), found('npm', 'p', 'ours'), found('npm', 'p', '0.1.0'))).toEqual([
    'packages whose versions cannot be compared with those of records: 2',
  ])
  // Nothing that is known depends on these.
  expect(matched(found('npm', 'none', 'mine'), found('npm', 'q', 'mine'))).toEqual([])
})

test.each<[string, Record<string, string>[], string[]]>([
  ['before any', [{ introduced: '0' }, { limit: '1.0.0' }, { limit: '3.0.0' }], ['0.1.0', '1.0.0', '2.0.0']],
  ['without end', [{ introduced: '0' }, { limit: '1.0.0' }, { limit: '*' }], ['0.1.0', '1.0.0', '2.0.0', '3.0.0']],
  ['of one', [{ introduced: '0' }, { limit: '1.0.0' }], ['0.1.0']],
])('limits: a version counts that is %s of them', (_, events, expected) => {
  const all = known(record('X', [of('npm', 'p', events)]))
  const versions = ['0.1.0', '1.0.0', '2.0.0', '3.0.0']
  expect(versions.filter((version) => match(all, found('npm', 'p', version)).length > 0)).toEqual(expected)
})

describe('one vulnerability is told once', () => {
  const affects = [of('npm', 'p', [{ introduced: '0' }, { fixed: '2.0.0' }])]
  const later = [of('npm', 'p', [{ introduced: '0' }, { fixed: '2.1.0' }])]
  test('by aliases, whichever comes first; the worst rating, and the version that mends all', () => {
    const records = [
      record('GHSA-1', affects, {
        aliases: ['CVE-2025-1'],
        severity: [{ type: 'CVSS_V3', score: medium }],
        summary: 'said',
      }),
      record('X-1', later, { aliases: ['Y-1'], severity: [{ type: 'CVSS_V3', score: critical }] }),
      record('Z-1', affects, { aliases: ['Y-1', 'CVE-2025-1'] }),
    ]
    for (const order of [records, [...records].reverse()]) {
      expect(match(known(...order), found('npm', 'p', '1.0.0'))).toMatchObject([
        {
          ...{ id: 'CVE-2025-1', aliases: ['GHSA-1', 'X-1', 'Y-1', 'Z-1'], severity: 'critical', score: 9.8 },
          ...{ summary: 'said', fixedVersion: '2.1.0', package: { purl: 'pkg:npm/p@1.0.0' } },
        },
      ])
    }
  })
  test('an announcement of several goes where each is told by itself', () => {
    const debian = (fixed: string) => [of('Debian:13', 'p', [{ introduced: '0' }, { fixed }])]
    const one = record('DEBIAN-CVE-1', debian('2'), { upstream: ['CVE-1'] })
    const two = record('DEBIAN-CVE-2', debian('2'), { upstream: ['CVE-2'] })
    const both = record('DSA-1', debian('2'), { upstream: ['CVE-1', 'CVE-2'] })
    expect(ids(match(known(one, both, two), found('deb', 'p', '1')))).toEqual(['CVE-1', 'CVE-2'])
    expect(ids(match(known(one, both), found('deb', 'p', '1')))).toEqual(['CVE-1', 'DSA-1'])
  })
})

describe('severity', () => {
  // Scores as FIRST's own calculators and examples give them.
  test.each<[string, number | undefined]>([
    [critical, 9.8],
    ['CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:C/C:H/I:H/A:H', 10],
    ['CVSS:3.0/AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N', 6.1],
    ['CVSS:3.1/AV:L/AC:L/PR:H/UI:N/S:U/C:L/I:L/A:L', 4.2],
    ['CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H/E:U', 9.8],
    ['CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:N', 0],
    ['CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N', 9.3],
    ['CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N/E:U', 9.3],
    ['AV:N/AC:L/Au:N/C:P/I:P/A:P', 7.5],
    ['CVSS:3.1/AV:N', undefined],
    ['HIGH', undefined],
  ])('%s: %s', (vector, score) => expect(scoreOf(vector)).toBe(score))

  test('the newest CVSS decides, then words', () => {
    const two = 'AV:N/AC:L/Au:N/C:P/I:P/A:P'
    expect(rate([two, medium], ['CRITICAL'])).toEqual({ severity: 'medium', score: 4.2 })
    expect(rate(['broken'], ['strange', 'MODERATE'])).toEqual({ severity: 'medium', score: null })
    expect(rate([], [])).toEqual({ severity: 'unknown', score: null })
  })

  test.each<[string, object, string]>([
    [
      'of GitHub',
      record('X', [of('npm', 'p', [{ introduced: '0' }])], { database_specific: { severity: 'HIGH' } }),
      'high',
    ],
    ['of malware', record('MAL-1', [of('npm', 'p', [{ introduced: '0' }])]), 'critical'],
    [
      'of the package before that of the record',
      record('X', [of('npm', 'p', [{ introduced: '0' }], { severity: [{ type: 'CVSS_V3', score: medium }] })], {
        severity: [{ type: 'CVSS_V3', score: critical }],
      }),
      'medium',
    ],
    [
      'none of what Debian calls unimportant',
      record('X', [of('npm', 'p', [{ introduced: '0' }], { ecosystem_specific: { urgency: 'unimportant' } })], {
        severity: [{ type: 'CVSS_V3', score: critical }],
      }),
      'none',
    ],
  ])('%s', (_, one, severity) => expect(match(known(one), found('npm', 'p', '1.0.0'))[0]?.severity).toBe(severity))

  test('worst first', () => {
    const rated = (id: string, score: string) =>
      record(id, [of('npm', 'p', [{ introduced: '0' }])], { severity: [{ type: 'CVSS_V3', score }] })
    const all = known(
      rated('b', medium),
      record('u', [of('npm', 'p', [{ introduced: '0' }])]),
      rated('c', critical),
      rated('a', medium),
    )
    expect(ids(match(all, found('npm', 'p', '1.0.0')))).toEqual(['c', 'a', 'b', 'u'])
  })
})

test('a summary is one line, from the details where there is none', () => {
  const details = `a\n\u0007 b ${'c'.repeat(400)}`
  const [one] = match(
    known(record('X', [of('npm', 'p', [{ introduced: '0' }])], { details })),
    found('npm', 'p', '1.0.0'),
  )
  expect(one?.summary).toMatch(/^a b c+…$/)
  expect(one?.summary).toHaveLength(240)
})

describe('an image that is made for there to be too much', () => {
  const records = (count: number) =>
    known(...Array.from({ length: count }, (_, i) => record(`CVE-${i}`, [of('Debian:13', 'p', [{ introduced: '0' }])])))
  const packages = (count: number) =>
    Array.from({ length: count }, (_, i) => found('deb', `p${i}`, '1', { name: 'p', version: '2' }))
  test.each<[string, number, number, number]>([
    ['is told whole below the limits', 4, 5000, 20_000],
    ['has the worst told', 5, 5000, 20_000],
    ['is compared with so many records and no more', 20_000, 24_999, 20_000],
  ])('%s', (_, count, each, told) => {
    const { found, leftOut } = records(each).match({ packages: packages(count), distribution: debian13 })
    expect(found).toHaveLength(told)
    expect(leftOut.length > 0).toBe(count * each > told)
  })

  test('whose packages have many versions has not all of them compared', () => {
    const source = (version: string) => ({ name: 'p', version })
    const packages = Array.from({ length: 200 }, (_, i) => found('deb', `p${i}`, '1', source(String(i))))
    const old = [of('Debian:13', 'p', [{ introduced: '9999' }, { fixed: '99999' }])]
    const all = known(...Array.from({ length: 1000 }, (_, i) => record(`CVE-${i}`, old)))
    const { found: vulnerable, leftOut } = all.match({ packages, distribution: debian13 })
    expect(vulnerable).toEqual([])
    expect(leftOut).toEqual(['packages that would take more than 500000 comparisons in all are left out'])
  })
})

describe('policy', () => {
  const policy: ImagePolicy = { mode: 'refuse', severity: 'high', fixableOnly: false, exempt: [] }
  const all = known(
    record('CVE-1', [of('npm', 'p', [{ introduced: '0' }, { fixed: '2.0.0' }])], {
      database_specific: { severity: 'HIGH' },
    }),
    record('GHSA-2', [of('npm', 'p', [{ introduced: '0' }])], {
      aliases: ['CVE-2'],
      severity: [{ type: 'CVSS_V3', score: critical }],
    }),
    record('CVE-3', [of('npm', 'p', [{ introduced: '0' }])], { severity: [{ type: 'CVSS_V3', score: medium }] }),
    record('CVE-4', [of('npm', 'p', [{ introduced: '0' }])]),
  )
  const matched = match(all, found('npm', 'p', '1.0.0'))
  test.each<[Partial<ImagePolicy>, boolean, string[]]>([
    [{}, false, ['CVE-2', 'CVE-1']],
    [{ severity: 'critical' }, false, ['CVE-2']],
    [{ severity: 'low' }, false, ['CVE-2', 'CVE-1', 'CVE-3']],
    [{ fixableOnly: true }, false, ['CVE-1']],
    [{ exempt: ['ghsa-2'] }, false, ['CVE-1']],
    [{ exempt: ['CVE-2', 'CVE-1'] }, true, []],
    [{ mode: 'warn' }, true, ['CVE-2', 'CVE-1']],
    [{ mode: 'off' }, true, []],
  ])('%j: allowed %s', (more, allowed, against) => {
    const verdict = verdictOf({ ...policy, ...more }, matched, true)
    expect(verdict).toEqual({ mode: more.mode ?? 'refuse', allowed, against })
  })
})

test('an image that was not looked at whole is refused, where images are', () => {
  const policy = (mode: ImagePolicy['mode']): ImagePolicy => ({ mode, severity: 'low', fixableOnly: false, exempt: [] })
  const allowed = (['refuse', 'warn', 'off'] as const).map((mode) => verdictOf(policy(mode), [], false).allowed)
  expect(allowed).toEqual([false, true, true])
})

describe('JSON values', () => {
  const values = (most: number, ...pieces: string[]) => {
    const reader = new JsonValues(most)
    const found = pieces.flatMap((piece) => [...reader.push(piece)])
    const problems = found.flatMap(({ line, problem }) => (problem === undefined ? [] : [`${line}: ${problem}`]))
    return { texts: found.flatMap(({ text }) => text ?? []), problems, end: reader.end()?.problem }
  }
  const object = fc.dictionary(
    fc.string(),
    fc.oneof(fc.string(), fc.integer(), fc.array(fc.string()), fc.dictionary(fc.string(), fc.string())),
  )

  test('of an array, of lines or of one after the other, spread or not, cut anywhere', () => {
    fc.assert(
      fc.property(
        fc.array(object),
        fc.constantFrom('array', 'lines', 'none'),
        fc.constantFrom(undefined, 1),
        fc.nat(),
        (all, how, spread, cut) => {
          const texts = all.map((one) => JSON.stringify(one, null, spread))
          const text = how === 'array' ? `[${texts.join(', ')}]` : texts.join(how === 'lines' ? '\n' : '')
          const at = cut % (text.length + 1)
          expect(values(1e6, text.slice(0, at), text.slice(at))).toEqual({ texts, problems: [], end: undefined })
        },
      ),
    )
  })

  test.each<[string, string, string[], string[], string | undefined]>([
    [
      'is too large',
      `{"a":"${'x'.repeat(30)}"}{"b":1}`,
      ['{"b":1}'],
      ['1: it is longer than 20 characters'],
      undefined,
    ],
    ['has no end', '[{"a":1},\n{"b":', ['{"a":1}'], [], 'it has no end'],
    ['is in a list without one', '[{"a":1},', ['{"a":1}'], [], 'the list has no end'],
    ['is no JSON', 'PK ]} at all\n{"a":1}', ['{"a":1}'], ['1: it is no object'], undefined],
    ['lacks a quote', '{"a":1}\n{"b\n{"c":1}', ['{"a":1}', '{"c":1}'], ['2: a line end within a string'], undefined],
    ['lacks a brace', '{"a":{}\n{"b":1}', ['{"b":1}'], ['1: a brace where there can be none'], undefined],
    ['lacks one in a list', '[{"a":{},{"b":1}]', ['{"b":1}'], ['1: a brace where there can be none'], undefined],
    ['comes behind a byte order mark', '\ufeff{"a":[{}, [{}]]}', ['{"a":[{}, [{}]]}'], [], undefined],
  ])('one that %s costs no other', (_, text, texts, problems, end) => {
    for (const pieces of [[text], [...text]]) expect(values(20, ...pieces)).toEqual({ texts, problems, end })
  })
})
