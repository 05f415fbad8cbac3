// questions.ts: what threads are asked about an image, and what they answer. All that grows with what is in an image, which
// is up to whoever made it, happens there: the thread that answers requests sees bytes, and pages.
import type {
  Distribution,
  ImagePackage,
  ImagePolicy,
  ImageVulnerability,
  PolicyVerdict,
  Severity,
} from '@berth/contracts'

interface About {
  readonly digest: string
  /** ImageContents as gzipped JSON. */
  readonly packed: Uint8Array
}

/** A stretch of a list. */
export interface Stretch {
  readonly from: number
  readonly limit: number
}

export interface Questions {
  readonly packages: About & Stretch
  readonly sbom: About & {
    readonly format: 'spdx' | 'cyclonedx'
    readonly createdAt: string | null
    /** Of this program. */
    readonly version: string
  }
  readonly vulnerabilities: About &
    Stretch & { readonly policy: ImagePolicy; readonly severity: Severity; readonly fixable: boolean }
  readonly verdict: About & { readonly policy: ImagePolicy }
}

interface Part<T> {
  readonly items: readonly T[]
  /** How many come before the following stretch; null after the last one. */
  readonly next: number | null
}

interface Told {
  readonly complete: boolean
  readonly warnings: readonly string[]
}

export interface Answers {
  readonly packages: Part<ImagePackage> & Told & { readonly distribution: Distribution | null }
  /** JSON, UTF-8. */
  readonly sbom: Uint8Array
  readonly vulnerabilities: Part<ImageVulnerability> &
    Told & { readonly policy: PolicyVerdict; readonly summary: Readonly<Record<Severity, number>> }
  /** `complete`: whether all of the image was looked at. */
  readonly verdict: PolicyVerdict & { readonly complete: boolean }
}

export type Kind = keyof Questions
/** Those for which a database is needed. */
export type KnownKind = 'vulnerabilities' | 'verdict'

/** A question of any kind. */
export type Question = { readonly [K in Kind]: { readonly kind: K } & Questions[K] }[Kind]
