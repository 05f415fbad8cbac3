// image-scans.ts: what is in images, by digest. A node that has the image reads it, once; Postgres keeps it. Who may see
// it is for the caller to decide.
import { promisify } from 'node:util'
import { gzip } from 'node:zlib'
import { Failure, type ImageContents, KiB } from '@berth/contracts'
import type { ToldContents } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import type { Config } from '../config.js'
import { ImageNodes } from '../images/image-nodes.js'
import { CONFIG, DATABASE, type Database, LOG, type Logger } from '../tokens.js'

/** Grows when what nodes find in the same image does. */
const FORMAT = 2
/** Most that is kept of one image. What a real one has packs to a tenth of it; what does not is made not to. */
const MAX_PACKED = 512 * KiB
/** A node has its own, shorter, limit. */
const LONGEST_MS = 180_000
/** Images that wait to be read because they came; what does not fit is read when it is asked for. */
const MAX_WAITING = 200

@Injectable()
export class ImageScans {
  private readonly reading = new Map<string, Promise<ToldContents>>()
  private readonly waiting = new Set<string>()
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
   * @throws no_capacity where no node that is ready holds it; scan_unavailable, node_unreachable
   */
  told(digest: string): Promise<ToldContents> {
    const known = this.reading.get(digest)
    if (known) return known
    const told = this.find(digest).finally(() => this.reading.delete(digest))
    this.reading.set(digest, told)
    return told
  }

  /** Reads images that came, one after the other, so that nobody waits for it later: where they will be judged. */
  soon(digests: readonly string[]): void {
    if (this.config.BERTH_VULNERABILITIES === undefined) return
    for (const digest of digests) if (this.waiting.size < MAX_WAITING) this.waiting.add(digest)
    void this.work()
  }

  private async work(): Promise<void> {
    if (this.isWorking) return
    this.isWorking = true
    for (const digest of this.waiting) {
      this.waiting.delete(digest)
      // It is read when it is asked for, then.
      await this.told(digest).catch((err: unknown) => this.log.warn({ err, digest }, 'image.not_scanned'))
    }
    this.isWorking = false
  }

  private async find(digest: string): Promise<ToldContents> {
    const kept = await this.database.images.contents.get(digest, FORMAT)
    if (kept) return kept
    const nodeId = await this.database.images.holder([digest])
    if (!nodeId)
      throw new Failure('no_capacity', `no node that is ready holds image ${digest}, which has to be read first`)
    const signal = AbortSignal.timeout(LONGEST_MS)
    const packed = await packedOf(await this.nodes.contents({ principal: undefined, signal }, nodeId, digest))
    const told = { packed, nodeId }
    await this.database.images.contents.put(digest, FORMAT, told)
    return told
  }
}

const zip = promisify(gzip)

async function packedOf(contents: ImageContents): Promise<Uint8Array> {
  const packed = await zip(JSON.stringify(contents))
  if (packed.length <= MAX_PACKED) return packed
  const warnings = ['left out: all packages, of which there is more to be told than is kept of an image']
  return zip(JSON.stringify({ ...contents, packages: [], complete: false, warnings }))
}
