// vulnerabilities.ts: all records that are known, and what of them is in an image.
import type { FoundPackage, ImageContents, ImagePackage, ImageVulnerability, PackageType } from '@berth/contracts'
import { type AffectedPackage, costOf, hitOf, type Keyed, keysOf, needsOrder, ratingOf, releasesOf } from './osv.js'
import { withPurl } from './package-url.js'
import { compareRatings, type Rating, unrated } from './severity.js'
import { compareVersions } from './versions.js'

/** Most that is told of one image; the worst. */
export const MAX_FINDINGS = 20_000
/**
 * Most that is done for one image: comparisons of versions and vulnerabilities found, in all; some seconds. Kernels of a
 * distribution have the most, some ten thousand each; whoever writes hundreds of those down wants to hold up everybody else.
 */
const MAX_WORK = 500_000

/** What is known of an image. */
export interface Matched {
  /** Worst first. */
  readonly found: readonly ImageVulnerability[]
  /** What is left out, in words. */
  readonly leftOut: readonly string[]
}

/** What is known of one source package, in one version. */
interface Known {
  readonly findings: readonly Finding[]
  /** Whether there are records that its version cannot be compared with. */
  readonly isUnordered: boolean
}

/** A record that a package is affected by. */
interface Finding {
  readonly ids: readonly string[]
  readonly covers: readonly string[]
  readonly summary: string
  readonly rating: Rating
  readonly fixed: string | null
}

export class Vulnerabilities {
  readonly #byKey = new Map<string, AffectedPackage[]>()
  /** Of distributions, as in keys, that something is known of. */
  readonly #releases = new Set<string>()
  #count = 0

  add(kept: readonly Keyed[]): void {
    if (kept.length > 0) this.#count++
    for (const { key, affected } of kept) {
      const there = this.#byKey.get(key)
      if (there) there.push(affected)
      else this.#byKey.set(key, [affected])
      this.#releases.add(key.slice(0, key.indexOf(' ')))
    }
  }

  /** Records that something can be matched with. */
  get records(): number {
    return this.#count
  }

  /** What is known of the packages of an image. */
  match({ packages, distribution }: Pick<ImageContents, 'packages' | 'distribution'>): Matched {
    const known = new Map<string, Known>()
    const found: ImageVulnerability[] = []
    let [left, unordered] = [MAX_WORK, 0]
    for (const one of packages) {
      const { name, version } = sourceOf(one)
      const key = JSON.stringify([one.type, name, version])
      const candidates = known.has(key) ? [] : this.#of(one, releasesOf(one.type, distribution))
      left -= candidates.reduce((sum, affected) => sum + costOf(affected), 0)
      if (left < 0) break
      const its = known.get(key) ?? knownOf(one, candidates)
      known.set(key, its)
      left -= its.findings.length
      if (left < 0) break
      if (its.isUnordered) unordered++
      if (its.findings.length > 0)
        for (const told of toldOf(its.findings, withPurl(one, distribution))) found.push(told)
    }
    const text = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0)
    found.sort((a, b) => compareRatings(a, b) || text(a.id, b.id) || text(a.package.purl, b.package.purl))
    return { found: found.slice(0, MAX_FINDINGS), leftOut: leftOutOf(left < 0, unordered, found.length) }
  }

  /** What no record can tell of an image; undefined where records can tell of all that was found. */
  unknowable({ packages, distribution }: Pick<ImageContents, 'packages' | 'distribution'>): string | undefined {
    const name = distribution ? `${distribution.id} ${distribution.version ?? ''}`.trim() : 'no known distribution'
    if (packages.length === 0) return `nothing that is known to be installed was found; the image is of ${name}`
    const types = new Set(packages.map(({ type }) => type).filter((type) => type === 'deb' || type === 'apk'))
    const isKnown = (type: PackageType) => releasesOf(type, distribution).some((release) => this.#releases.has(release))
    if (![...types].every(isKnown)) return `nothing is known of packages of the distribution: the image is of ${name}`
    return distribution && types.size === 0
      ? `no packages of the distribution were found: the image is of ${name}`
      : undefined
  }

  #of(one: FoundPackage, releases: readonly string[]): readonly AffectedPackage[] {
    const { name } = sourceOf(one)
    return keysOf(one.type, name, releases).flatMap((key) => this.#byKey.get(key) ?? [])
  }
}

function leftOutOf(isTooMuch: boolean, unordered: number, count: number): readonly string[] {
  return [
    ...(isTooMuch ? [`packages that would take more than ${MAX_WORK} comparisons in all are left out`] : []),
    ...(unordered > 0 ? [`packages whose versions cannot be compared with those of records: ${unordered}`] : []),
    ...(count > MAX_FINDINGS ? [`vulnerabilities after the ${MAX_FINDINGS} worst are left out`] : []),
  ]
}

const toldOf = (findings: readonly Finding[], told: ImagePackage): readonly ImageVulnerability[] =>
  findings.map(({ ids, rating, summary, fixed }) => {
    const [id = '', ...aliases] = ids
    return { id, aliases, ...rating, summary, fixedVersion: fixed, package: told }
  })

/** Distributions know vulnerabilities by source package. */
const sourceOf = (one: FoundPackage): { readonly name: string; readonly version: string } => one.source ?? one

function knownOf(one: FoundPackage, candidates: readonly AffectedPackage[]): Known {
  const { version } = sourceOf(one)
  const isVersion = compareVersions(one.type, version, version) !== undefined
  return {
    findings: mergedOf(one, findingsOf(one, candidates)),
    isUnordered:
      !isVersion && candidates.some((affected) => needsOrder(affected) && !hitOf(one.type, affected, version)),
  }
}

function findingsOf(one: FoundPackage, candidates: readonly AffectedPackage[]): readonly Finding[] {
  const { version } = sourceOf(one)
  return candidates.flatMap((affected) => {
    const hit = hitOf(one.type, affected, version)
    if (!hit) return []
    const { id, aliases, covers, summary } = affected.advisory
    return [{ ids: [id, ...aliases], covers, summary, rating: ratingOf(affected), fixed: hit.fixed }]
  })
}

/** One finding for all records of the same vulnerability, its best name first. */
function mergedOf(one: FoundPackage, findings: readonly Finding[]): readonly Finding[] {
  const groups = new Map<string, Finding[]>()
  for (const finding of findings) {
    const same = new Set(finding.ids.flatMap((id) => (groups.has(id) ? [groups.get(id)] : [])))
    const group = [...same].flatMap((one) => one ?? [])
    group.push(finding)
    for (const { ids } of group) for (const id of ids) groups.set(id, group)
  }
  const merged = [...new Set(groups.values())].map((group) => mergedGroup(one, group))
  const names = new Set(merged.filter(({ covers }) => covers.length === 0).flatMap(({ ids }) => ids))
  // An announcement of several that are all told by themselves says nothing more.
  return merged.filter(({ covers }) => covers.length === 0 || !covers.every((id) => names.has(id)))
}

function mergedGroup(one: FoundPackage, group: readonly Finding[]): Finding {
  const ids = [...new Set(group.flatMap(({ ids: all }) => all))].sort(
    (a, b) => rankOf(a) - rankOf(b) || (a < b ? -1 : a > b ? 1 : 0),
  )
  const [worst] = group.map(({ rating }) => rating).sort(compareRatings)
  const score = group.map(({ rating }) => rating.score).sort((a, b) => (b ?? -1) - (a ?? -1))[0] ?? null
  // What is mended for all of them is mended.
  const fixed = group
    .flatMap((finding) => finding.fixed ?? [])
    .reduce<string | null>(
      (most, next) => (most === null || (compareVersions(one.type, most, next) ?? 0) < 0 ? next : most),
      null,
    )
  return {
    ids,
    covers: group.every(({ covers }) => covers.length > 0) ? group.flatMap(({ covers }) => covers) : [],
    summary: group.find(({ summary }) => summary !== '')?.summary ?? '',
    rating: { severity: (worst ?? unrated).severity, score },
    fixed,
  }
}

const rankOf = (id: string): number => {
  if (id.startsWith('CVE-')) return 0
  return id.startsWith('GHSA-') ? 1 : 2
}
