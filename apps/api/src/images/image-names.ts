// image-names.ts: what callers write → what admission is to look for. Nodes tell what they hold when they join and with
// every heartbeat; which of it are base images is asked for every other second, whatever the number of jobs. Names of
// tenants cost nothing here: the statement that admits looks them up.
import { Failure, type TenantId } from '@berth/contracts'
import { type ImageOwner, type ImageWanted, PUBLIC_OWNER } from '@berth/domain'
import type { BaseImage, ImageScope } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import type { OperatorPrincipal, TenantPrincipal } from '../http/auth.js'
import { Recent } from '../recent.js'
import { CLOCK, type Clock, DATABASE, type Database } from '../tokens.js'
import { baseScope, idBeginning, nameOf, onlyOne, wantedOf, wellNamed } from './names.plan.js'

/** How long an answer is used again, in milliseconds: every job asks. */
const FRESH_MS = 2000
const BASE = 'base'

export type ImageCaller = TenantPrincipal | OperatorPrincipal

/** Whose images a caller has: a tenant its own, an operator those that are public. */
export const ownerOf = (caller: ImageCaller): ImageOwner =>
  caller.kind === 'operator' ? PUBLIC_OWNER : caller.tenantId

/** Whose images are shown: an operator may name a tenant. @throws forbidden_scope */
export function ownerSeen(caller: ImageCaller, tenantId: TenantId | undefined): ImageOwner {
  if (tenantId === undefined || tenantId === ownerOf(caller)) return ownerOf(caller)
  if (caller.kind === 'operator') return tenantId
  throw new Failure('forbidden_scope', 'only operators see images as another tenant does', { scope: 'operator' })
}

@Injectable()
export class ImageNames {
  private readonly recent: Recent<readonly BaseImage[]>

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CLOCK) clock: Clock,
  ) {
    this.recent = new Recent({ clock, forMs: FRESH_MS, atMost: 1 })
  }

  /** What a name means to an owner, with what a look-up of it needs. @throws InvalidRequest */
  async look(owner: ImageOwner, text: string): Promise<{ readonly scope: ImageScope; readonly wanted: ImageWanted }> {
    const base = await this.base()
    const wanted = await this.wanted(owner, text, base)
    return { scope: { owner, base: baseScope(base) }, wanted }
  }

  async scope(owner: ImageOwner): Promise<ImageScope> {
    return { owner, base: baseScope(await this.base()) }
  }

  /**
   * Admits something that starts from images.
   * @param owner whose names they are
   * @param texts names as written
   * @param admit told what they mean, in the same order
   * @throws InvalidRequest for what is no name; image_not_found saying what base images there are
   */
  async admitted<T>(
    owner: ImageOwner,
    texts: readonly string[],
    admit: (images: readonly ImageWanted[]) => Promise<T>,
  ): Promise<T> {
    const before = await this.base()
    try {
      return await admit(await this.wantedEach(owner, texts, before))
    } catch (error) {
      if (!(error instanceof Failure) || error.code !== 'image_not_found') throw error
      // A base image may have come within the last seconds.
      this.recent.drop(BASE)
      const now = await this.base()
      if (!sameBase(before, now)) return admit(await this.wantedEach(owner, texts, now))
      const known = [...new Set(now.map(({ reference }) => reference))].slice(0, 20).join(', ')
      throw new Failure(error.code, `${error.message}; base images are ${known}`, error.data)
    }
  }

  /** Digests of the base images that a name may mean: nodes may have different ones under it. */
  async baseDigests({ base }: ImageWanted): Promise<readonly string[]> {
    if (!base) return []
    if (base.digest !== null) return [base.digest]
    const same = (await this.base()).filter(({ reference }) => reference === base.key)
    return [...new Set(same.map(({ digest }) => digest))]
  }

  private async wantedEach(owner: ImageOwner, texts: readonly string[], base: readonly BaseImage[]) {
    const wanted = new Map<string, ImageWanted>()
    for (const text of texts) if (!wanted.has(text)) wanted.set(text, await this.wanted(owner, text, base))
    return texts.map((text) => wanted.get(text) ?? wantedOf(text, base))
  }

  /** What may be the beginning of an id is a name where there is one of it, as `docker` has it. */
  private async wanted(owner: ImageOwner, text: string, base: readonly BaseImage[]): Promise<ImageWanted> {
    const wanted = wantedOf(text, base)
    const prefix = idBeginning(text)
    if (prefix === undefined || wanted.base !== null) return wanted
    const own = await this.database.images.beginning(owner, nameOf(text), prefix)
    const ofBase = base.flatMap(({ digest }) => (digest.startsWith(prefix) ? [digest] : []))
    const digest = onlyOne(text, [...own, ...ofBase])
    return digest === undefined ? wanted : { ...wantedOf(digest, base), text }
  }

  private base(): Promise<readonly BaseImage[]> {
    return this.recent.get(BASE, async () => wellNamed(await this.database.images.base()))
  }
}

const sameBase = (a: readonly BaseImage[], b: readonly BaseImage[]): boolean => {
  const key = (all: readonly BaseImage[]) =>
    all.map(({ reference, digest, ready }) => `${reference} ${digest} ${ready}`).join('\n')
  return key(a) === key(b)
}
