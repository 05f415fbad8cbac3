// image-verdicts.ts: what a policy says of an image. A verdict depends on nothing but the image, the policy and what is
// known, so it is kept until one of them changes, or the node that told what is in the image is removed.
import { Failure, type ImagePolicy, type NodeId } from '@berth/contracts'
import { FairTurns, type ImageOwner, OneTurn } from '@berth/domain'
import { Inject, Injectable } from '@nestjs/common'
import { Recent } from '../recent.js'
import { CLOCK, type Clock, DATABASE, type Database } from '../tokens.js'
import { ImageScans } from './image-scans.js'
import { KnownVulnerabilities } from './known-vulnerabilities.js'
import type { Answers } from './questions.js'

const MAX_VERDICTS = 10_000
/** How long a request waits for an image to be read. */
const PATIENCE_MS = 60_000
/** How long it counts that a node was there, in milliseconds, and of how many. */
const THERE_MS = 2000
const MAX_NODES = 10_000

export type Verdict = Answers['verdict']

interface Judged {
  readonly verdict: Verdict
  /** Which node told what is in the image. */
  readonly by: NodeId
}

/** A verdict on its way. */
interface Judging {
  /** Whoever wants it. */
  readonly owners: Set<ImageOwner>
  /** Once it is known what is in the image. */
  line: OneTurn | undefined
}

@Injectable()
export class ImageVerdicts {
  /** Those on their way too: who asks for the same at once gets the same. */
  private readonly kept = new Map<string, Promise<Judged>>()
  /** By key. */
  private readonly judging = new Map<string, Judging>()
  /** One thread answers all: nobody's images hold up others' for longer than one answer. */
  private readonly turns = new FairTurns({ all: Number.POSITIVE_INFINITY, each: 1 })
  private readonly nodes: Recent<boolean>

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CLOCK) clock: Clock,
    private readonly scans: ImageScans,
    private readonly known: KnownVulnerabilities,
  ) {
    this.nodes = new Recent({ clock, forMs: THERE_MS, atMost: MAX_NODES })
  }

  /**
   * @param owner who asks
   * @throws scan_unavailable without a database, or when reading the image takes long; no_capacity, node_unreachable
   */
  async of(digest: string, policy: ImagePolicy, owner: ImageOwner): Promise<Verdict> {
    const { version } = await this.known.database()
    const key = JSON.stringify([digest, version, policy])
    const before = this.kept.get(key)
    this.join(key, digest, owner)
    const kept = before && (await patiently(before, digest))
    if (kept && (await this.isThere(kept.by))) return kept.verdict
    // Whoever else found the same may have asked anew meanwhile.
    if (this.kept.get(key) === before) this.kept.delete(key)
    const asked = this.kept.get(key)
    const { verdict } = await patiently(asked ?? this.keep(key, digest, policy, owner), digest)
    return verdict
  }

  /** It need not wait in the lines of whoever asked first. */
  private join(key: string, digest: string, owner: ImageOwner): void {
    const judging = this.judging.get(key)
    if (!judging) return
    judging.owners.add(owner)
    judging.line?.stand(owner)
    // What comes of it the verdict tells.
    if (!judging.line) this.scans.told(digest, owner).catch(() => undefined)
  }

  private isThere(node: NodeId): Promise<boolean> {
    return this.nodes.get(node, () => this.database.nodes.exists(node))
  }

  private async judge(digest: string, policy: ImagePolicy, owner: ImageOwner, judging: Judging): Promise<Judged> {
    for (;;) {
      const { version } = await this.known.database()
      const { packed, nodeId } = await this.scans.told(digest, owner)
      const give = await this.turnOf(judging)
      try {
        const { database, answer } = await this.known.ask('verdict', { digest, packed, policy })
        // What is known may have become more meanwhile; then this is no answer to keep.
        if (database.version === version) return { verdict: answer, by: nodeId }
      } finally {
        give()
      }
    }
  }

  private turnOf(judging: Judging): Promise<() => void> {
    const line = new OneTurn(this.turns, new AbortController().signal)
    judging.line = line
    for (const owner of judging.owners) line.stand(owner)
    return line.turn
  }

  private keep(key: string, digest: string, policy: ImagePolicy, owner: ImageOwner): Promise<Judged> {
    const judging: Judging = { owners: new Set([owner]), line: undefined }
    const judged = this.judge(digest, policy, owner, judging)
    const [oldest] = this.kept.size >= MAX_VERDICTS ? this.kept.keys() : []
    if (oldest !== undefined) this.kept.delete(oldest)
    this.kept.set(key, judged)
    this.judging.set(key, judging)
    judged
      .catch(() => this.kept.get(key) === judged && this.kept.delete(key))
      .finally(() => this.judging.get(key) === judging && this.judging.delete(key))
    return judged
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
