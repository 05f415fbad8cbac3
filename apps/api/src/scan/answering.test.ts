import { gzipSync } from 'node:zlib'
import type { FoundPackage, ImageContents, ImagePolicy } from '@berth/contracts'
import { keptOf, OsvRecord, Vulnerabilities } from '@berth/scan'
import { expect, test } from '@jest/globals'
import { Answering } from './answering.js'

const found = (name: string): FoundPackage => ({
  ...{ type: 'npm', name, version: '1.0.0', architecture: null, source: null, license: null },
  ...{ path: 'p', layer: `sha256:${'1'.repeat(64)}` },
})
const contents: ImageContents = {
  ...{ distribution: null, complete: true, warnings: ['said'], packages: ['a', 'b', 'c'].map(found) },
}
const about = (more: Partial<ImageContents> = {}, digest = 'sha256:x') => ({
  ...{ digest, packed: gzipSync(JSON.stringify({ ...contents, ...more })) },
})
const policy: ImagePolicy = { mode: 'refuse', severity: 'high', fixableOnly: false, exempt: [] }

function known(): Vulnerabilities {
  const all = new Vulnerabilities()
  const record = (id: string, name: string, severity: string, ...fixed: { fixed: string }[]) => ({
    ...{ id, database_specific: { severity } },
    affected: [
      { package: { ecosystem: 'npm', name }, ranges: [{ type: 'SEMVER', events: [{ introduced: '0' }, ...fixed] }] },
    ],
  })
  for (const one of [
    record('A', 'a', 'LOW'),
    record('B', 'b', 'CRITICAL'),
    record('C', 'c', 'HIGH', { fixed: '2.0.0' }),
  ])
    all.add(keptOf(OsvRecord.parse(one)))
  return all
}

test('packages, a stretch after the other', () => {
  const answering = new Answering(undefined)
  const ask = (from: number, limit: number) => answering.answer({ kind: 'packages', ...about(), from, limit })
  expect(ask(0, 2)).toMatchObject({
    ...{
      items: [{ purl: 'pkg:npm/a@1.0.0' }, { purl: 'pkg:npm/b@1.0.0' }],
      next: 2,
      warnings: ['said'],
      complete: true,
    },
  })
  expect(ask(2, 2)).toMatchObject({ items: [{ name: 'c' }], next: null })
  expect(ask(9, 2)).toMatchObject({ items: [], next: null })
})

test('vulnerabilities: the summary is of all, the list of what was asked for', () => {
  const answering = new Answering(known())
  const question = { kind: 'vulnerabilities', ...about(), policy, from: 0, limit: 10 } as const
  expect(answering.answer({ ...question, severity: 'unknown', fixable: false })).toMatchObject({
    policy: { mode: 'refuse', allowed: false, against: ['B', 'C'] },
    summary: { unknown: 0, none: 0, low: 1, medium: 0, high: 1, critical: 1 },
    ...{ items: [{ id: 'B' }, { id: 'C' }, { id: 'A' }], next: null, warnings: ['said'] },
  })
  expect(answering.answer({ ...question, severity: 'high', fixable: false, limit: 1 })).toMatchObject({
    ...{ items: [{ id: 'B' }], next: 1 },
  })
  expect(answering.answer({ ...question, severity: 'low', fixable: true })).toMatchObject({ items: [{ id: 'C' }] })
})

test('what cannot be known is among the warnings', () => {
  const question = { kind: 'vulnerabilities', policy, severity: 'unknown', fixable: false, from: 0, limit: 1 } as const
  const answer = new Answering(known()).answer({ ...question, ...about({ packages: [] }) })
  expect(answer).toMatchObject({ warnings: ['said', expect.stringMatching(/^nothing that is known .* was found/)] })
})

test('a verdict is of the whole image', () => {
  const answering = new Answering(known())
  const ask = (more: Partial<ImageContents>, digest: string) =>
    answering.answer({ kind: 'verdict', ...about(more, digest), policy })
  expect(ask({}, 'sha256:a')).toEqual({ mode: 'refuse', allowed: false, against: ['B', 'C'], complete: true })
  expect(ask({ packages: [found('a')] }, 'sha256:b')).toEqual({
    ...{ mode: 'refuse', allowed: true, against: [], complete: true },
  })
  expect(ask({ packages: [], complete: false }, 'sha256:c')).toEqual({
    ...{ mode: 'refuse', allowed: false, against: [], complete: false },
  })
})

test('what is told of an image anew counts, and not what was told before', () => {
  const answering = new Answering(known())
  const verdict = (more: Partial<ImageContents>) => answering.answer({ kind: 'verdict', ...about(more), policy })
  expect(verdict({ packages: [] })).toMatchObject({ allowed: true })
  expect(verdict({})).toMatchObject({ allowed: false, against: ['B', 'C'] })
  const question = { kind: 'packages', ...about({ packages: [found('d')] }), from: 0, limit: 9 } as const
  expect(answering.answer(question)).toMatchObject({ items: [{ name: 'd' }] })
})

test('a verdict of an image of which not all is told is as of one that was not looked at whole', () => {
  const left = { found: [], leftOut: ['left out: much'] }
  const known = { match: () => left, unknowable: () => undefined } as unknown as Vulnerabilities
  const answering = new Answering(known)
  expect(answering.answer({ kind: 'verdict', ...about(), policy })).toMatchObject({ allowed: false })
  const question = { kind: 'vulnerabilities', ...about(), policy, severity: 'low', fixable: false } as const
  expect(answering.answer({ ...question, from: 0, limit: 1 })).toMatchObject({
    ...{ complete: false, warnings: ['said', 'left out: much'], policy: { allowed: false } },
  })
})

test.each([
  ['no JSON', gzipSync('{')],
  ['something else', gzipSync('{"packages": 7}')],
  ['more than is ever kept', gzipSync(Buffer.alloc(17 * 1024 * 1024, ' '))],
])('%s is no image’s contents', (_, packed) => {
  const ask = () => new Answering(undefined).answer({ kind: 'packages', digest: 'sha256:x', packed, from: 0, limit: 1 })
  expect(ask).toThrow()
})
