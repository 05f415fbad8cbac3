// base-images.ts: the images that a Dockerfile names → digests that the build's node holds. A name means to a build what it
// means to a job of the tenant; what nobody has is pulled, as `docker build` does.
import {
  type BuildOptions,
  type BuildProgress,
  type BuildReferences,
  Failure,
  InvalidRequest,
  type NodeId,
  type TenantId,
} from '@berth/contracts'
import { type ImageWanted, runs } from '@berth/domain'
import type { ImageOnNode } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import type { TenantPrincipal } from '../http/auth.js'
import { ImageNames } from '../images/image-names.js'
import { ImageSources } from '../images/image-sources.service.js'
import { TransfersService } from '../images/transfers.service.js'
import { ImageGate } from '../scan/image-gate.js'
import { DATABASE, type Database } from '../tokens.js'

export interface BuildCall {
  readonly principal: TenantPrincipal
  readonly signal: AbortSignal
}

type Wish = Pick<BuildOptions, 'pull' | 'platform'>

@Injectable()
export class BaseImages {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly names: ImageNames,
    private readonly sources: ImageSources,
    private readonly transfers: TransfersService,
    private readonly gate: ImageGate,
  ) {}

  /**
   * Sees to it that a node holds what a build needs, and tells what is pulled for that.
   * @param references as the Dockerfile writes them
   * @returns the digest of each
   * @throws dockerfile_invalid for what is no reference; image_not_found, platform_unsupported, image_unavailable; as a pull;
   * as `ImageGate.pass`
   */
  async *on(
    call: BuildCall,
    nodeId: NodeId,
    { references, places }: BuildReferences,
    wish: Wish,
  ): AsyncGenerator<BuildProgress, Record<string, string>> {
    const { tenantId } = call.principal
    const wanted = await Promise.all(
      references.map((text) =>
        this.wanted(tenantId, text).catch((error: unknown) => {
          throw placed(error, places, text)
        }),
      ),
    )
    const found = await this.database.builds.resolve(tenantId, nodeId, wanted)
    const digests: Record<string, string> = {}
    for (const [i, want] of wanted.entries()) {
      try {
        digests[want.text] = yield* this.one(call, nodeId, want, found[i], wish)
      } catch (error) {
        throw placed(error, places, want.text)
      }
    }
    return digests
  }

  private async *passing(tenantId: TenantId, text: string, digest: string): AsyncGenerator<BuildProgress> {
    for (const message of await this.gate.pass(tenantId, text, digest)) yield { step: 'warning', message, line: null }
  }

  private async *one(
    call: BuildCall,
    nodeId: NodeId,
    want: ImageWanted,
    { digest, held, platform }: ImageOnNode = { digest: null, held: false, platform: null },
    wish: Wish,
  ): AsyncGenerator<BuildProgress, string> {
    const { tenantId } = call.principal
    const isNamed = want.digest === null
    if (digest === null || (wish.pull && isNamed)) {
      const pulled = yield* this.pull(call, nodeId, want, wish)
      yield* this.passing(tenantId, want.text, pulled)
      return pulled
    }
    checkPlatform(want.text, platform, wish)
    yield* this.passing(tenantId, want.text, digest)
    if (held) return digest
    await this.sources.ensureOn(call, nodeId, digest)
    yield { step: 'pulled', reference: want.text, digest }
    return digest
  }

  private async wanted(tenantId: string, text: string): Promise<ImageWanted> {
    try {
      return (await this.names.look(tenantId, text)).wanted
    } catch (error) {
      if (!(error instanceof InvalidRequest)) throw error
      throw new Failure('dockerfile_invalid', error.violations.map(({ message }) => message).join('; '))
    }
  }

  private async *pull(
    call: BuildCall,
    nodeId: NodeId,
    { text }: ImageWanted,
    { platform }: Wish,
  ): AsyncGenerator<BuildProgress, string> {
    if (text.startsWith('sha256:')) throw new Failure('image_not_found', `there is no image ${text}`, { image: text })
    for await (const step of this.transfers.pull(call, text, platform ?? undefined, nodeId)) {
      if (step instanceof Failure) throw new Failure(step.code, `${text}: ${step.message}`, step.data)
      if (step.step === 'retry') yield { step: 'warning', message: `${text}: ${step.message}`, line: null }
      if (step.step === 'layer') {
        const { digest, state, bytes, totalBytes } = step
        yield { step: 'pull', reference: text, layer: digest, state, bytes, totalBytes }
      }
      const [image] = step.step === 'done' ? step.images : []
      if (!image) continue
      yield { step: 'pulled', reference: text, digest: image.digest }
      return image.digest
    }
    throw new Failure('image_not_found', `there is no image ${text}`, { image: text })
  }
}

/** Where in the Dockerfile the image is named that it is about. */
function placed(error: unknown, places: BuildReferences['places'], text: string): unknown {
  // Whatever a Dockerfile writes is looked for here, `__proto__` too.
  const place = Object.hasOwn(places, text) ? places[text] : undefined
  if (!(error instanceof Failure) || !place) return error
  const { line, instruction } = place
  const [word = ''] = instruction.split(/\s/, 1)
  return new Failure(error.code, `line ${line}, ${word}: ${error.message}`, { ...error.data, line, instruction })
}

/** @throws platform_unsupported */
function checkPlatform(text: string, has: string | null, { platform }: Wish): void {
  if (runs({ platform: has }, { platform })) return
  throw new Failure('platform_unsupported', `image ${text} is for ${has}, not for ${platform}`)
}
