// image-scans.ts: what is in images, by digest. A node that has the image reads it, once; Postgres keeps it. Who may see
// it is for the caller to decide.
import { promisify } from 'node:util'
import { gzip } from 'node:zlib'
import { Failure, type ImageContents, KiB, type NodeId } from '@berth/contracts'
import { FairTurns, type ImageOwner, OneTurn } from '@berth/domain'
import type { ToldContents } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import type { Config } from '../config.js'
import { ImageNodes } from '../images/image-nodes.js'
import { CONFIG, DATABASE, type Database, LOG, type Logger } from '../tokens.js'

/** Grows when what nodes find in the same image does. */
const FORMAT = 2
/** Most that is kept of one image. What a real one has packs to a tenth of it; what does not is made not to. */
const MAX_PACKED = 512 * KiB
/** A node has its own, shorter, limit; and how long an image may wait to be read before that. */
const LONGEST_MS = 180_000
/** Images that one node is asked to read at once, from here. It reads one at a time: another tenant's is next, then. */
const READ_AT_ONCE = { all: 2, each: Number.POSITIVE_INFINITY }
/** Images that wait to be read because they came; what does not fit is read when it is asked for. */
const MAX_WAITING = 200

/** An image that is read, or waits for that. */
interface Reading {
  /** Whoever wants it. */
  readonly owners: Set<ImageOwner>
  /** Once it is known that it has to be read, and where. */
  line: OneTurn | undefined
}

@Injectable()
export class ImageScans {
  private readonly reading = new Map<string, Reading & { readonly told: Promise<ToldContents> }>()
  /** Of nodes that have been asked. */
  private readonly turns = new Map<NodeId, FairTurns>()
  private readonly waiting = new Map<string, ImageOwner>()
  private isWorking = false

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CONFIG) private readonly config: Config,
    private readonly nodes: ImageNodes,
    @Inject(LOG) private readonly log: Logger,
  ) {}

  /**
   * Who asks for the same image at once gets the same answer; it goes on when they go.
   * @returns ImageContents as gzipped JSON, and which node told it
   * @param owner who asks
   * @throws no_capacity where no node that is ready holds it; scan_unavailable, node_unreachable
   */
  told(digest: string, owner: ImageOwner): Promise<ToldContents> {
    const known = this.reading.get(digest)
    if (known) {
      // It need not wait in the line of whoever asked first.
      known.owners.add(owner)
      known.line?.stand(owner)
      return known.told
    }
    const reading: Reading = { owners: new Set([owner]), line: undefined }
    const told = this.find(digest, reading).finally(() => this.reading.delete(digest))
    this.reading.set(digest, Object.assign(reading, { told }))
    return told
  }

  /** Reads images that came, one after the other, so that nobody waits for it later: where they will be judged. */
  soon(digests: readonly string[], owner: ImageOwner): void {
    if (this.config.BERTH_VULNERABILITIES === undefined) return
    for (const digest of digests) if (this.waiting.size < MAX_WAITING) this.waiting.set(digest, owner)
    void this.work()
  }

  private async work(): Promise<void> {
    if (this.isWorking) return
    this.isWorking = true
    for (const [digest, owner] of this.waiting) {
      this.waiting.delete(digest)
      // It is read when it is asked for, then.
      await this.told(digest, owner).catch((err: unknown) => this.log.warn({ err, digest }, 'image.not_scanned'))
    }
    this.isWorking = false
  }

  private async find(digest: string, reading: Reading): Promise<ToldContents> {
    const kept = await this.database.images.contents.get(digest, FORMAT)
    if (kept) return kept
    const nodeId = await this.database.images.holder([digest])
    if (!nodeId)
      throw new Failure('no_capacity', `no node that is ready holds image ${digest}, which has to be read first`)
    const give = await this.turnOn(nodeId, digest, reading)
    try {
      const signal = AbortSignal.timeout(LONGEST_MS)
      const packed = await packedOf(await this.nodes.contents({ principal: undefined, signal }, nodeId, digest))
      const told = { packed, nodeId }
      await this.database.images.contents.put(digest, FORMAT, told)
      return told
    } finally {
      give()
    }
  }

  private async turnOn(nodeId: NodeId, digest: string, reading: Reading): Promise<() => void> {
    const turns = this.turns.get(nodeId) ?? new FairTurns(READ_AT_ONCE)
    this.turns.set(nodeId, turns)
    const late = new AbortController()
    const why = new Failure('scan_unavailable', `image ${digest} waits to be read behind others; try again`)
    const timer = setTimeout(() => late.abort(why), LONGEST_MS).unref()
    try {
      reading.line = new OneTurn(turns, late.signal)
      for (const owner of reading.owners) reading.line.stand(owner)
      return await reading.line.turn
    } finally {
      clearTimeout(timer)
    }
  }
}

const zip = promisify(gzip)

async function packedOf(contents: ImageContents): Promise<Uint8Array> {
  const packed = await zip(JSON.stringify(contents))
  if (packed.length <= MAX_PACKED) return packed
  const warnings = ['left out: all packages, of which there is more to be told than is kept of an image']
  return zip(JSON.stringify({ ...contents, packages: [], complete: false, warnings }))
}
