// scans.service.ts: what is told of images to who may see them.
import type { ImagePolicy, VulnerabilityDatabase } from '@berth/contracts'
import { FairTurns } from '@berth/domain'
import { Injectable } from '@nestjs/common'
import { version } from '../http/openapi.controller.js'
import { ownerOf } from '../images/image-names.js'
import { type ImagesCall, ImagesService } from '../images/images.service.js'
import { ImageGate } from './image-gate.js'
import { ImageScans } from './image-scans.js'
import { KnownVulnerabilities } from './known-vulnerabilities.js'
import { PlainThread } from './plain-thread.js'
import type { Answers, Questions, Stretch } from './questions.js'

@Injectable()
export class ScansService {
  /** What is in an image is up to whoever made it: nobody's holds up others' for longer than one answer. */
  private readonly turns = new FairTurns({ all: Number.POSITIVE_INFINITY, each: 1 })

  constructor(
    private readonly images: ImagesService,
    private readonly scans: ImageScans,
    private readonly plain: PlainThread,
    private readonly known: KnownVulnerabilities,
    private readonly gate: ImageGate,
  ) {}

  packages(call: ImagesCall, image: string, stretch: Stretch): Promise<Answers['packages']> {
    return this.inTurn(call, async () => {
      const about = await this.about(call, await this.images.digestOf(ownerOf(call.principal), image))
      return this.plain.ask('packages', { ...about, ...stretch })
    })
  }

  /** JSON, UTF-8. */
  sbom(call: ImagesCall, image: string, format: Questions['sbom']['format']): Promise<Uint8Array> {
    return this.inTurn(call, async () => {
      const { digest, createdAt } = await this.images.get(call, image, ownerOf(call.principal))
      return this.plain.ask('sbom', { ...(await this.about(call, digest)), format, createdAt, version })
    })
  }

  vulnerabilities(
    call: ImagesCall,
    image: string,
    shown: Pick<Questions['vulnerabilities'], 'severity' | 'fixable'> & Stretch,
  ): Promise<{ readonly database: VulnerabilityDatabase; readonly answer: Answers['vulnerabilities'] }> {
    return this.inTurn(call, async () => {
      const about = await this.about(call, await this.images.digestOf(ownerOf(call.principal), image))
      return this.known.ask('vulnerabilities', { ...about, ...shown, policy: await this.policy(call) })
    })
  }

  private policy({ principal }: ImagesCall): Promise<ImagePolicy> {
    return this.gate.policy(principal.kind === 'tenant' ? principal.tenantId : undefined)
  }

  private async about({ principal }: ImagesCall, digest: string) {
    const { packed } = await this.scans.told(digest, ownerOf(principal))
    return { digest, packed }
  }

  private async inTurn<T>({ principal, signal }: ImagesCall, work: () => Promise<T>): Promise<T> {
    const give = await this.turns.take(ownerOf(principal), signal)
    try {
      return await work()
    } finally {
      give()
    }
  }
}
