// image-verdicts.ts: what a policy says of an image. A verdict depends on nothing but the image, the policy and what is
// known, so it is kept until one of them changes.
import { Failure, type ImagePolicy, type PolicyVerdict } from '@berth/contracts'
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
  /** Those on their way too: who asks for the same at once gets the same. */
  private readonly kept = new Map<string, Promise<PolicyVerdict>>()

  constructor(
    private readonly scans: ImageScans,
    private readonly known: KnownVulnerabilities,
  ) {}

  /** @throws scan_unavailable without a database, or when reading the image takes long; no_capacity, node_unreachable */
  async of(digest: string, policy: ImagePolicy): Promise<Verdict> {
    const { version } = await this.known.database()
    const key = JSON.stringify([digest, version, policy])
    const before = this.kept.get(key)
    const verdict = before ?? this.keep(key, this.judge(digest, version, policy))
    return { ...(await patiently(verdict, digest)), isNew: before === undefined }
  }

  private async judge(digest: string, version: string, policy: ImagePolicy): Promise<PolicyVerdict> {
    const packed = await this.scans.packed(digest)
    const { database, answer } = await this.known.ask('verdict', { digest, packed, policy })
    // What is known may have become more meanwhile; then this is no answer to keep.
    return database.version === version ? answer : this.of(digest, policy)
  }

  private keep(key: string, verdict: Promise<PolicyVerdict>): Promise<PolicyVerdict> {
    const [oldest] = this.kept.size >= MAX_VERDICTS ? this.kept.keys() : []
    if (oldest !== undefined) this.kept.delete(oldest)
    this.kept.set(key, verdict)
    verdict.catch(() => this.kept.get(key) === verdict && this.kept.delete(key))
    return verdict
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
