import {
  getImageSbom,
  type ImageVulnerability,
  listImagePackages,
  listImageVulnerabilities,
  type Output,
} from '@berth/contracts'
import type { PageOf, PageRequest } from '@berth/persistence'
import { Controller } from '@nestjs/common'
import { z } from 'zod'
import { version } from '../http/openapi.controller.js'
import { pageAnswer, pageRequest } from '../http/paging.js'
import { type Call, Route } from '../http/route.decorator.js'
import { ownerOf } from '../images/image-names.js'
import { ImagesService } from '../images/images.service.js'
import { ImageGate } from './image-gate.js'
import { ImageScans } from './image-scans.js'
import { KnownVulnerabilities } from './known-vulnerabilities.js'

/** How many come before: what is told of an image is the same each time, as long as the database is. */
const Position = z.string().regex(/^\d{1,6}$/)

/** Loaded when it is first used: it takes some 20 MiB. */
const scan = () => import('@berth/scan')

@Controller()
export class ScansController {
  constructor(
    private readonly images: ImagesService,
    private readonly scans: ImageScans,
    private readonly known: KnownVulnerabilities,
    private readonly gate: ImageGate,
  ) {}

  @Route(listImagePackages)
  async packages(call: Call<typeof listImagePackages>): Promise<Output<typeof listImagePackages>> {
    const page = pageRequest(call.query, Position)
    const { contents } = await this.contents(call)
    const { distribution, complete, warnings, packages } = contents
    const { withPurl } = await scan()
    const { items, next } = pageIn(packages, page)
    const told = items.map((one) => withPurl(one, distribution))
    return { distribution, complete, warnings, ...pageAnswer({ items: told, next }) }
  }

  @Route(getImageSbom)
  async sbom(call: Call<typeof getImageSbom>): Promise<Output<typeof getImageSbom>> {
    const { digest, createdAt } = await this.images.get(call, call.params.image, ownerOf(call.principal))
    const contents = await this.scans.contents(digest)
    const subject = { digest, createdAt, contents, tool: { name: 'berth', version } }
    const { cycloneDxOf, spdxOf } = await scan()
    return call.query.format === 'spdx' ? spdxOf(subject) : cycloneDxOf(subject)
  }

  @Route(listImageVulnerabilities)
  async vulnerabilities(call: Call<typeof listImageVulnerabilities>): Promise<Output<typeof listImageVulnerabilities>> {
    const page = pageRequest(call.query, Position)
    const { contents, policy } = await this.contents(call)
    const { database, vulnerabilities } = await this.known.match(contents)
    const { isAtLeast, unknowable, verdictOf } = await scan()
    const { severity = 'unknown', fixable } = call.query
    const shown = vulnerabilities.filter(
      (one) => isAtLeast(one.severity, severity) && (fixable === undefined || one.fixedVersion !== null),
    )
    const unknown = unknowable(contents)
    return {
      database,
      policy: verdictOf(policy, vulnerabilities, contents.complete),
      summary: summaryOf(vulnerabilities),
      complete: contents.complete,
      warnings: [...contents.warnings, ...(unknown === undefined ? [] : [unknown])],
      ...pageAnswer(pageIn(shown, page)),
    }
  }

  /** Of an image that the caller may see. @throws image_not_found and as `ImageScans.contents` */
  private async contents({ principal, params }: Seen) {
    const owner = ownerOf(principal)
    const digest = await this.images.digestOf(owner, params.image)
    const policy = await this.gate.policy(principal.kind === 'tenant' ? principal.tenantId : undefined)
    return { contents: await this.scans.contents(digest), policy }
  }
}

type Seen = Pick<Call<typeof listImagePackages>, 'principal' | 'params'>

function pageIn<T>(items: readonly T[], { after, limit }: PageRequest): PageOf<T> {
  const from = Number(after ?? 0)
  const end = from + limit
  return { items: items.slice(from, end), next: end < items.length ? String(end) : null }
}

function summaryOf(found: readonly ImageVulnerability[]) {
  const summary = { unknown: 0, none: 0, low: 0, medium: 0, high: 0, critical: 0 }
  for (const { severity } of found) summary[severity]++
  return summary
}
