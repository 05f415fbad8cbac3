import { getImageSbom, listImagePackages, listImageVulnerabilities, type Output } from '@berth/contracts'
import type { PageRequest } from '@berth/persistence'
import { Controller, StreamableFile } from '@nestjs/common'
import { z } from 'zod'
import { pageAnswer, pageRequest } from '../http/paging.js'
import { type Call, Route } from '../http/route.decorator.js'
import { savedAs } from '../sandboxes/files.service.js'
import type { Stretch } from './questions.js'
import { ScansService } from './scans.service.js'

/** How many come before: what is told of an image is the same each time, as long as the database is. */
const Position = z.string().regex(/^\d{1,6}$/)

const formats = {
  spdx: { type: 'application/spdx+json', suffix: '.spdx.json' },
  cyclonedx: { type: 'application/vnd.cyclonedx+json; version=1.6', suffix: '.cdx.json' },
} as const

@Controller()
export class ScansController {
  constructor(private readonly scans: ScansService) {}

  @Route(listImagePackages)
  async packages(call: Call<typeof listImagePackages>): Promise<Output<typeof listImagePackages>> {
    const answer = await this.scans.packages(call, call.params.image, stretchOf(pageRequest(call.query, Position)))
    const { distribution, complete, warnings } = answer
    return { distribution, complete, warnings: [...warnings], ...pageAnswer(pageOf(answer)) }
  }

  @Route(getImageSbom)
  async sbom(call: Call<typeof getImageSbom>): Promise<StreamableFile> {
    const { type, suffix } = formats[call.query.format]
    const document = await this.scans.sbom(call, call.params.image, call.query.format)
    call.header('content-disposition', savedAs(call.params.image, suffix))
    return new StreamableFile(document, { type, length: document.length })
  }

  @Route(listImageVulnerabilities)
  async vulnerabilities(call: Call<typeof listImageVulnerabilities>): Promise<Output<typeof listImageVulnerabilities>> {
    const { severity = 'unknown', fixable } = call.query
    const stretch = stretchOf(pageRequest(call.query, Position))
    const shown = { ...stretch, severity, fixable: fixable !== undefined }
    const { database, answer } = await this.scans.vulnerabilities(call, call.params.image, shown)
    const { policy, summary, complete, warnings } = answer
    return { database, policy, summary, complete, warnings: [...warnings], ...pageAnswer(pageOf(answer)) }
  }
}

const stretchOf = ({ after, limit }: PageRequest): Stretch => ({ from: Number(after ?? 0), limit })

const pageOf = <T>({ items, next }: { readonly items: readonly T[]; readonly next: number | null }) => ({
  items,
  next: next === null ? null : String(next),
})
