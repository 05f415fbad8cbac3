// severity.ts: how bad a vulnerability is, from what its record says: CVSS vectors, or words.
import { type Severity, severities } from '@berth/contracts'
import cvss from 'ae-cvss-calculator'

export interface Rating {
  readonly severity: Severity
  /** CVSS base score. */
  readonly score: number | null
}

export const unrated: Rating = { severity: 'unknown', score: null }

export const isAtLeast = (severity: Severity, least: Severity): boolean =>
  severities.indexOf(severity) >= severities.indexOf(least)

/** Worse first. */
export const compareRatings = (a: Rating, b: Rating): number =>
  severities.indexOf(b.severity) - severities.indexOf(a.severity) || (b.score ?? -1) - (a.score ?? -1)

/** CVSS v3.1, section 5, and v4.0, section 6. */
function ofScore(score: number): Severity {
  if (score >= 9) return 'critical'
  if (score >= 7) return 'high'
  if (score >= 4) return 'medium'
  return score > 0 ? 'low' : 'none'
}

/** Scores by vector: a score takes up to a third of a millisecond, and many records have the same few vectors. */
const known = new Map<string, number | undefined>()
const MAX_KNOWN = 10_000

/** The library prints what it does not know, and throws at names of its own. */
const isVector =
  /^\(?(?:CVSS:\d\.\d\/)?[A-Z][A-Za-z]{0,4}:[A-Z][A-Za-z]{0,10}(?:\/[A-Z][A-Za-z]{0,4}:[A-Z][A-Za-z]{0,10})*\/?\)?$/

/** @param vector of CVSS 2.0, 3.0, 3.1 or 4.0; undefined for what is none, or says not all that the base score needs */
export function scoreOf(vector: string): number | undefined {
  if (vector.length > 512 || !isVector.test(vector)) return undefined
  if (known.has(vector)) return known.get(vector)
  if (known.size >= MAX_KNOWN) known.clear()
  const score = computed(vector)
  known.set(vector, score)
  return score
}

function computed(vector: string): number | undefined {
  const parsed = cvss.fromVector(vector)
  if (!parsed?.isBaseFullyDefined()) return undefined
  const scores: { readonly base?: number | undefined; readonly baseMetricsOnly?: number | undefined } =
    parsed.calculateScores()
  // Of 4.0 `base` is what threat and environment have changed.
  const score = scores.baseMetricsOnly ?? scores.base
  return score !== undefined && score >= 0 && score <= 10 ? score : undefined
}

const words: Readonly<Record<string, Severity>> = {
  ...{ critical: 'critical', high: 'high', important: 'high', medium: 'medium', moderate: 'medium', low: 'low' },
  ...{ negligible: 'low', unimportant: 'none', none: 'none' },
}

export const severityOfWord = (word: string): Severity | undefined =>
  Object.hasOwn(words, word.toLowerCase()) ? words[word.toLowerCase()] : undefined

/**
 * Rates a vulnerability: by the newest version of CVSS that says something, else by the first word that is one.
 * @param vectors in any order
 */
export function rate(vectors: readonly string[], said: readonly string[]): Rating {
  const byVersion = [...vectors].sort((a, b) => versionOf(b) - versionOf(a))
  for (const vector of byVersion) {
    const score = scoreOf(vector)
    if (score !== undefined) return { severity: ofScore(score), score }
  }
  const severity = said.map(severityOfWord).find((one) => one !== undefined)
  return severity === undefined ? unrated : { severity, score: null }
}

/** CVSS 2.0 does not say which it is. */
const versionOf = (vector: string): number => Number(/^CVSS:(\d\.\d)\//.exec(vector)?.[1] ?? 2)
