// answering.ts: answers to questions about images, from what was found in them and what is known.
import { gunzipSync } from 'node:zlib'
import { ImageContents, type ImageVulnerability, invariant, MiB, type Severity } from '@berth/contracts'
import { cycloneDxOf, isAtLeast, type Matched, spdxOf, type Vulnerabilities, verdictOf, withPurl } from '@berth/scan'
import type { Answers, Kind, Question, Questions, Stretch } from './questions.js'

/** Of contents, unpacked. */
const MAX_BYTES = 16 * MiB
/** Images that are remembered, for who reads on: page after page. */
const REMEMBERED = 8

interface Image {
  /** What `contents` are of. */
  readonly packed: Uint8Array
  readonly contents: ImageContents
  /** What is known of it, once that was asked. */
  matched?: Matched
}

export class Answering {
  private readonly images = new Map<string, Image>()

  /** @param known undefined: questions about what is known are not asked */
  constructor(private readonly known: Vulnerabilities | undefined) {}

  answer(question: Question): Answers[Kind] {
    const image = this.image(question)
    switch (question.kind) {
      case 'packages':
        return packagesOf(image, question)
      case 'sbom':
        return sbomOf(image, question)
      case 'vulnerabilities':
        return this.vulnerabilities(image, question)
      case 'verdict':
        return this.verdict(image, question)
    }
  }

  private image({ digest, packed }: Question): Image {
    const remembered = this.images.get(digest)
    // Once a node is removed that told what is in an image, another one may tell something else.
    const isSame = remembered !== undefined && Buffer.compare(remembered.packed, packed) === 0
    const image = isSame ? remembered : { packed, contents: contentsOf(packed) }
    this.images.delete(digest)
    this.images.set(digest, image)
    const [oldest] = this.images.size > REMEMBERED ? this.images.keys() : []
    if (oldest !== undefined) this.images.delete(oldest)
    return image
  }

  private matched(image: Image): Matched {
    image.matched ??= this.database.match(image.contents)
    return image.matched
  }

  private get database(): Vulnerabilities {
    invariant(this.known, 'a thread without a database is asked what is known')
    return this.known
  }

  private verdict(image: Image, { policy }: Pick<Questions['verdict'], 'policy'>): Answers['verdict'] {
    const { found, leftOut } = this.matched(image)
    const complete = image.contents.complete && leftOut.length === 0
    return { ...verdictOf(policy, found, complete), complete }
  }

  private vulnerabilities(image: Image, question: Questions['vulnerabilities']): Answers['vulnerabilities'] {
    const { found, leftOut } = this.matched(image)
    const { severity, fixable } = question
    const { complete, warnings } = image.contents
    const shown = found.filter((one) => isAtLeast(one.severity, severity) && (!fixable || one.fixedVersion !== null))
    const { mode, allowed, against } = this.verdict(image, question)
    const untold = this.database.unknowable(image.contents)
    return {
      ...{ policy: { mode, allowed, against }, summary: summaryOf(found) },
      complete: complete && leftOut.length === 0,
      warnings: [...warnings, ...leftOut, ...(untold === undefined ? [] : [untold])],
      ...partOf(shown, question),
    }
  }
}

const contentsOf = (packed: Uint8Array): ImageContents =>
  ImageContents.parse(JSON.parse(gunzipSync(packed, { maxOutputLength: MAX_BYTES }).toString()))

function packagesOf({ contents }: Image, stretch: Stretch): Answers['packages'] {
  const { distribution, complete, warnings, packages } = contents
  const { items, next } = partOf(packages, stretch)
  return { distribution, complete, warnings, items: items.map((one) => withPurl(one, distribution)), next }
}

function sbomOf({ contents }: Image, { digest, createdAt, format, version }: Questions['sbom']): Uint8Array {
  const subject = { digest, createdAt, contents, tool: { name: 'berth', version } }
  return Buffer.from(JSON.stringify(format === 'spdx' ? spdxOf(subject) : cycloneDxOf(subject)))
}

function partOf<T>(items: readonly T[], { from, limit }: Stretch) {
  const end = from + limit
  return { items: items.slice(from, end), next: end < items.length ? end : null }
}

function summaryOf(found: readonly ImageVulnerability[]): Record<Severity, number> {
  const summary = { unknown: 0, none: 0, low: 0, medium: 0, high: 0, critical: 0 }
  for (const { severity } of found) summary[severity]++
  return summary
}
