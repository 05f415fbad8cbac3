// image-warnings.ts: what is told where a policy lets an image pass that it would refuse otherwise: to the tenant in the
// answer that creates and as an event, to the operator in the log. An answer tells it each time; event and log once a day for
// the same of the same image.
//
// Nobody waits for an image to be read: an answer tells what is known by then, and only the first one who asks gives it a
// moment. The event tells what is found later.
import { DAY, type ImagePolicy, type PolicyVerdict, type TenantId } from '@berth/contracts'
import { FairTurns } from '@berth/domain'
import { Inject, Injectable } from '@nestjs/common'
import { Recent } from '../recent.js'
import { Changes } from '../scheduling/changes.js'
import { CLOCK, type Clock, DATABASE, type Database, LOG, type Logger } from '../tokens.js'
import { ImageVerdicts, type Verdict } from './image-verdicts.js'

/** How long the first answer gives it, in milliseconds. */
const MOMENT_MS = 250
/** What this process remembers to have told. */
const MAX_TOLD = 10_000
/** Ids that are told of one image. */
export const NAMED = 10

/** To be called once what starts from the image is admitted. @returns what the answer tells; undefined: nothing */
export type Warning = () => Promise<string | undefined>

@Injectable()
export class ImageWarnings {
  private readonly told: Recent<void>
  /** Events of one tenant wait for the same row, each with a connection that others need: one at a time. */
  private readonly turns = new FairTurns({ all: Number.POSITIVE_INFINITY, each: 1 })
  /** Images that an answer gives a moment. */
  private readonly awaited = new Set<string>()

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CLOCK) clock: Clock,
    @Inject(LOG) private readonly log: Logger,
    private readonly verdicts: ImageVerdicts,
    private readonly changes: Changes,
  ) {
    this.told = new Recent({ clock, forMs: DAY, atMost: MAX_TOLD })
  }

  /** Begins to judge an image, which passes whatever comes of it. */
  begin(tenantId: TenantId, policy: ImagePolicy, image: string, digest: string): Warning {
    const verdict = this.verdicts.of(digest, policy, tenantId).catch((err: unknown) => {
      this.log.warn({ err, digest }, 'image.not_scanned')
      return undefined
    })
    return async () => {
      void verdict.then((found) => found && this.tell(tenantId, policy, image, digest, found))
      const found = await this.soon(verdict, digest)
      return found && isWarning(found) ? `image ${image}: ${reasonOf(found, policy)}` : undefined
    }
  }

  /** What is found within a moment, for one who waits; for others what is there already. */
  private async soon(verdict: Promise<Verdict | undefined>, digest: string): Promise<Verdict | undefined> {
    const isFirst = !this.awaited.has(digest)
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<undefined>((done) => {
      timer = setTimeout(() => done(undefined), isFirst ? MOMENT_MS : 0)
    })
    this.awaited.add(digest)
    try {
      return await Promise.race([verdict, late])
    } finally {
      clearTimeout(timer)
      if (isFirst) this.awaited.delete(digest)
    }
  }

  private async tell(tenantId: TenantId, policy: ImagePolicy, image: string, digest: string, found: Verdict) {
    if (!isWarning(found)) return
    const { against, complete } = found
    const { severity } = policy
    const work = async () => {
      const warning = { image, severity, vulnerabilities: against.slice(0, NAMED), complete }
      const give = await this.turns.take(tenantId, new AbortController().signal)
      try {
        if (!(await this.database.events.warned(tenantId, digest, warning))) return
      } finally {
        give()
      }
      this.log.warn({ tenant: tenantId, digest, against, complete }, 'image.vulnerable')
      this.changes.told(tenantId)
    }
    const key = JSON.stringify([tenantId, digest, severity, against, complete])
    // It is told with the next use of the image, then.
    await this.told.get(key, work).catch((err: unknown) => this.log.error({ err, digest }, 'image.warning.failed'))
  }
}

const isWarning = ({ against, complete }: Verdict): boolean => against.length > 0 || !complete

/** Why an image is none to start from, in words. */
export function reasonOf({ against }: PolicyVerdict, { severity }: ImagePolicy): string {
  if (against.length === 0) return 'it could not be looked at whole'
  const more = against.length > NAMED ? ` and ${against.length - NAMED} more` : ''
  return `of ${severity} severity or worse it has ${against.slice(0, NAMED).join(', ')}${more}`
}
