// image-verdicts.ts: what a policy says of an image. A verdict depends on nothing but the image, the policy and what is
// known, so it is kept until one of them changes.
import type { ImagePolicy, PolicyVerdict } from '@berth/contracts'
import { Failure } from '@berth/contracts'
import { Injectable } from '@nestjs/common'
import { ImageScans } from './image-scans.js'
import { KnownVulnerabilities } from './known-vulnerabilities.js'

const MAX_VERDICTS = 10_000
/** How long a request waits for an image to be read. */
const PATIENCE_MS = 60_000

export interface Verdict extends PolicyVerdict {
  /** Whether this is the first answer of it. */
  readonly isNew: boolean
}

@Injectable()
export class ImageVerdicts {
  private readonly kept = new Map<string, PolicyVerdict>()

  constructor(
    private readonly scans: ImageScans,
    private readonly known: KnownVulnerabilities,
  ) {}

  /** @throws scan_unavailable without a database, or when reading the image takes long; no_capacity, node_unreachable */
  async of(digest: string, policy: ImagePolicy): Promise<Verdict> {
    const { version } = await this.known.database()
    const key = JSON.stringify([digest, version, policy])
    const before = this.kept.get(key)
    if (before) return { ...before, isNew: false }
    const contents = await patiently(this.scans.contents(digest), digest)
    const { database, vulnerabilities } = await this.known.match(contents)
    const { verdictOf } = await import('@berth/scan')
    const verdict = verdictOf(policy, vulnerabilities, contents.complete)
    // What was known may have become more meanwhile.
    if (database.version === version) this.keep(key, verdict)
    return { ...verdict, isNew: true }
  }

  private keep(key: string, verdict: PolicyVerdict): void {
    const [oldest] = this.kept.size >= MAX_VERDICTS ? this.kept.keys() : []
    if (oldest !== undefined) this.kept.delete(oldest)
    this.kept.set(key, verdict)
  }
}

async function patiently<T>(work: Promise<T>, digest: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, failed) => {
    const failure = new Failure('scan_unavailable', `image ${digest} is still being read; try again`)
    timer = setTimeout(() => failed(failure), PATIENCE_MS)
  })
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}
