// images.service.ts: what jobs can start from. Nodes tell what they hold when they join and with every heartbeat.
import { Failure, type Image } from '@berth/contracts'
import { Inject, Injectable } from '@nestjs/common'
import { Recent } from '../recent.js'
import { CLOCK, type Clock, DATABASE, type Database } from '../tokens.js'

/** How long an answer is used again, in milliseconds: every job asks. */
const FRESH_MS = 2000

@Injectable()
export class ImagesService {
  private readonly recent: Recent<readonly Image[]>

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CLOCK) clock: Clock,
  ) {
    this.recent = new Recent({ clock, forMs: FRESH_MS, atMost: 1 })
  }

  async list(): Promise<{ items: Image[]; nextCursor: null }> {
    return { items: [...(await this.database.nodes.images())], nextCursor: null }
  }

  /**
   * Refuses names that no ready node holds. With no ready node at all nothing is known, and jobs wait for one.
   * @throws image_not_found naming the image
   */
  async require(references: Iterable<string>): Promise<void> {
    const missing = missingFrom(await this.recent.get('images', () => this.database.nodes.images()), references)
    if (missing === undefined) return
    // It may have come within the last seconds.
    const now = await this.database.nodes.images()
    if (missingFrom(now, references) === undefined) return
    const known = [...new Set(now.map(({ reference }) => reference))].slice(0, 20).join(', ')
    throw new Failure('image_not_found', `no node has the image ${missing}; there are ${known}`, { image: missing })
  }
}

/** The first reference that none of `images` answers to; undefined when all do, or when no image is known at all. */
export function missingFrom(images: readonly Image[], references: Iterable<string>): string | undefined {
  if (images.length === 0) return undefined
  const names = new Set(images.flatMap(namesOf))
  for (const reference of references) if (!names.has(reference)) return reference
  return undefined
}

/** Names that a job may use for an image: with and without `:latest`, by digest, and name with digest. */
function namesOf({ reference, digest }: Image): string[] {
  const short = reference.replace(/:latest$/, '')
  const repository = reference.replace(/:[^:/]*$/, '')
  return [reference, short, `${short}:latest`, digest, `${repository}@${digest}`]
}
