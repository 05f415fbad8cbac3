import type { ImageVulnerability } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { rowOf, summaryOf } from './scan.js'

test('a vulnerability is a line of fields between tabs', () => {
  const one: ImageVulnerability = {
    ...{ id: 'CVE-1', aliases: [], severity: 'high', score: null, summary: 'said', fixedVersion: '2' },
    package: {
      ...{ purl: 'pkg:npm/p@1', type: 'npm', name: 'p', version: '1', architecture: null, source: null },
      ...{ license: null, path: 'x', layer: `sha256:${'0'.repeat(64)}` },
    },
  }
  expect(rowOf(one)).toBe('high\t-\tCVE-1\tp\t1\t2\tsaid\n')
  expect(rowOf({ ...one, score: 7.5, fixedVersion: null })).toBe('high\t7.5\tCVE-1\tp\t1\t-\tsaid\n')
})

test('worst first, and nothing of what there is none of', () => {
  const none = { unknown: 0, none: 0, low: 0, medium: 0, high: 0, critical: 0 }
  expect(summaryOf({ ...none, low: 2, critical: 1 })).toBe('1 critical, 2 low')
  expect(summaryOf(none)).toBe('nothing is known to be wrong with it')
})
