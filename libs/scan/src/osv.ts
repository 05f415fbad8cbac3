// osv.ts: records of vulnerabilities as OSV has them (ossf.github.io/osv-schema, 1.7), less what is of no use here: a whole
// database is kept in memory, so what is kept of a record is little.
import type { Distribution, PackageType } from '@berth/contracts'
import { z } from 'zod'
import { type Rating, rate } from './severity.js'
import { compareVersions } from './versions.js'

const text = z.string().max(1024)
const Severity = z.array(z.object({ type: text, score: text })).catch([])
const Event = z.object({
  introduced: text.optional(),
  fixed: text.optional(),
  last_affected: text.optional(),
  limit: text.optional(),
})
const Said = z.object({
  severity: z.string().optional().catch(undefined),
  urgency: z.string().optional().catch(undefined),
})
const Affected = z.object({
  package: z.object({ ecosystem: text, name: text }).optional(),
  severity: Severity.optional(),
  ranges: z
    .array(z.object({ type: text, events: z.array(Event).max(10_000) }))
    .max(1000)
    .default([]),
  versions: z.array(text).max(100_000).default([]),
  ecosystem_specific: Said.optional().catch(undefined),
  database_specific: Said.optional().catch(undefined),
})
const ids = z.array(z.string().max(128)).max(1000)

/** A record, as far as it is looked at. */
export const OsvRecord = z.object({
  id: z.string().min(1).max(128),
  withdrawn: z.string().nullish(),
  aliases: ids.nullish(),
  upstream: ids.nullish(),
  summary: z.string().nullish(),
  details: z.string().nullish(),
  severity: Severity.nullish(),
  affected: z.array(Affected).max(10_000).nullish(),
  database_specific: Said.nullish().catch(undefined),
})
export type OsvRecord = z.infer<typeof OsvRecord>

/** A record without what it affects. */
export interface Advisory {
  readonly id: string
  /** Other names of the same vulnerability. */
  readonly aliases: readonly string[]
  /** Vulnerabilities that it is about, where those are several. */
  readonly covers: readonly string[]
  readonly summary: string
}

interface Span {
  /** As they come; `0` is before every version, and `*` after it. */
  readonly events: readonly {
    readonly kind: 'introduced' | 'fixed' | 'lastAffected' | 'limit'
    readonly version: string
  }[]
}

/** What a record says of one package. */
export interface AffectedPackage {
  readonly advisory: Advisory
  readonly spans: readonly Span[]
  /** Versions, a line each, with line ends around them all; empty where there are none. */
  readonly versions: string
  /** Vectors and words, rated when they are asked for: most are never. */
  readonly vectors: readonly string[]
  readonly words: readonly string[]
}

export interface Keyed {
  readonly key: string
  readonly affected: AffectedPackage
}

/** What packages of a release of a distribution, or of a language, are kept under. */
export function keysOf(type: PackageType, name: string, releases: readonly string[]): readonly string[] {
  if (type === 'npm') return [`npm ${name}`]
  if (type === 'pypi') return [`pypi ${normalizedPython(name)}`]
  return releases.map((release) => `${release} ${name}`)
}

/** PEP 503. */
const normalizedPython = (name: string): string => name.toLowerCase().replace(/[-_.]+/g, '-')

const release = /^(Debian|Alpine|Ubuntu)(?::v?(\d[\d.]*))?(?::LTS)?$/

/** The key of a package of an ecosystem, with its type; undefined for one that nothing here is of. */
function ecosystemKey(ecosystem: string, name: string): string | undefined {
  if (ecosystem === 'npm') return `npm ${name}`
  if (ecosystem === 'PyPI') return `pypi ${normalizedPython(name)}`
  const [, distribution, version] = release.exec(ecosystem) ?? []
  if (distribution === undefined) return undefined
  return `${distribution.toLowerCase()}${version === undefined ? '' : `:${version}`} ${name}`
}

const distributionsOf = { deb: ['debian', 'ubuntu'], apk: ['alpine'] } as const

/**
 * Which releases packages of an image are of, as in keys; the last one is of records that do not say which release they
 * mean. None of distributions that nobody writes records of.
 */
export function releasesOf(type: PackageType, distribution: Distribution | null): readonly string[] {
  const known: readonly string[] = type === 'deb' || type === 'apk' ? distributionsOf[type] : []
  if (!distribution || !known.includes(distribution.id)) return []
  const { id, version } = distribution
  if (version === null) return [id]
  const [major = '', minor] = version.split('.')
  // Debian's releases are whole numbers, points of them are no releases; Alpine's and Ubuntu's have two.
  const which = id === 'debian' || minor === undefined ? major : `${major}.${minor}`
  return [`${id}:${which}`, id]
}

const SUMMARY = 240
/** A part of a long text keeps all of it in memory; a copy does not. */
const copied = (long: string): string => Buffer.from(long, 'utf8').toString('utf8')

function summaryOf({ summary, details }: OsvRecord): string {
  const line = (summary || details || '')
    .slice(0, 4 * SUMMARY)
    .replace(/[\p{Cc}\p{Cs}\s]+/gu, ' ')
    .trim()
  return copied(line.length > SUMMARY ? `${line.slice(0, SUMMARY - 1)}…` : line)
}

/** What is kept of a record. Nothing of one that was withdrawn, or is of ecosystems that nothing here is of. */
export function keptOf(record: OsvRecord): readonly Keyed[] {
  if (record.withdrawn) return []
  const upstream = record.upstream ?? []
  const aliases = [...(record.aliases ?? []), ...(upstream.length === 1 ? upstream : [])]
  const advisory: Advisory = {
    id: record.id,
    aliases: [...new Set(aliases)].filter((id) => id !== record.id),
    covers: upstream.length > 1 ? upstream : [],
    summary: summaryOf(record),
  }
  return (record.affected ?? []).flatMap((one) => {
    const key = one.package && ecosystemKey(one.package.ecosystem, one.package.name)
    if (key === undefined) return []
    const rated = one.severity?.length ? one.severity : (record.severity ?? [])
    const isVector = ({ type }: { readonly type: string }) => type.startsWith('CVSS_')
    // What the distribution says of its own package comes before what the record says of all.
    const [urgency, ...words] = [
      ...[one.ecosystem_specific?.urgency, one.ecosystem_specific?.severity, one.database_specific?.severity],
      ...rated.filter((entry) => !isVector(entry)).map(({ score }) => score),
      // A package that was made to do harm does.
      ...(record.id.startsWith('MAL-') ? ['critical'] : []),
      record.database_specific?.severity,
    ]
    const affected: AffectedPackage = {
      advisory,
      spans: one.ranges.filter(({ type }) => type !== 'GIT').map(({ events }) => spanOf(events)),
      versions: one.versions.length === 0 ? '' : copied(`\n${one.versions.join('\n')}\n`),
      vectors: urgency === 'unimportant' ? [] : rated.filter(isVector).map(({ score }) => score),
      words: [urgency, ...words].filter((word) => word !== undefined),
    }
    return [{ key, affected }]
  })
}

const spanOf = (events: readonly z.infer<typeof Event>[]): Span => ({
  events: events.flatMap(({ introduced, fixed, last_affected: lastAffected, limit }) => [
    ...(introduced === undefined ? [] : [{ kind: 'introduced' as const, version: introduced }]),
    ...(fixed === undefined ? [] : [{ kind: 'fixed' as const, version: fixed }]),
    ...(lastAffected === undefined ? [] : [{ kind: 'lastAffected' as const, version: lastAffected }]),
    ...(limit === undefined ? [] : [{ kind: 'limit' as const, version: limit }]),
  ]),
})

export const ratingOf = ({ vectors, words }: AffectedPackage): Rating => rate(vectors, words)

export interface Hit {
  /** The first version that is not affected any more, where the record says so. */
  readonly fixed: string | null
}

/** Whether a version is affected: it is named, or within a span. Undefined where it is not. */
export function hitOf(type: PackageType, affected: AffectedPackage, version: string): Hit | undefined {
  const within = affected.spans.map((span) => withinSpan(type, span, version)).find((hit) => hit !== undefined)
  if (within) return within
  return affected.versions.includes(`\n${version}\n`) ? { fixed: null } : undefined
}

/** Where a version is that is before or after all others. */
const boundOf = (version: string): -1 | 1 | undefined => (version === '0' ? -1 : version === '*' ? 1 : undefined)

/** What it costs to say whether a version is affected, in comparisons. */
export const costOf = ({ spans, versions }: AffectedPackage): number =>
  spans.reduce((sum, { events }) => sum + events.length, 1 + Math.ceil(versions.length / 1024))

/** Whether nothing but the version itself can say that it is not affected. */
export const needsOrder = ({ spans }: AffectedPackage): boolean => spans.some(({ events }) => events.length > 0)

/** The algorithm of the schema's section "Evaluation"; events that cannot be compared with the version say nothing. */
function withinSpan(type: PackageType, { events }: Span, version: string): Hit | undefined {
  const compared = events.flatMap((event) => {
    const order = boundOf(event.version) ?? compareVersions(type, event.version, version)
    return order === undefined ? [] : [{ ...event, order }]
  })
  const limits = compared.filter(({ kind }) => kind === 'limit')
  if (limits.length > 0 && limits.every(({ order }) => order <= 0)) return undefined
  const after = (a: string, b: string) => boundOf(a) ?? -(boundOf(b) ?? -(compareVersions(type, a, b) ?? 0))
  // Of two at one version what begins comes after what ends.
  const rank = (kind: string) => (kind === 'introduced' ? 1 : 0)
  const sorted = compared.sort((a, b) => after(a.version, b.version) || rank(a.kind) - rank(b.kind))
  let isAffected = false
  for (const { kind, order } of sorted) {
    if (kind === 'introduced' && order <= 0) isAffected = true
    if (kind === 'fixed' && order <= 0) isAffected = false
    if (kind === 'lastAffected' && order < 0) isAffected = false
  }
  if (!isAffected) return undefined
  return { fixed: sorted.find(({ kind, order }) => kind === 'fixed' && order > 0)?.version ?? null }
}
