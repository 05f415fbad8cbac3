// scan.ts: `./berth images scan` and `./berth images sbom`: what is in an image, over the API.
import { pipeline } from 'node:stream/promises'
import {
  getImageSbom,
  type ImageVulnerability,
  listImageVulnerabilities,
  type Severity,
  severities,
} from '@berth/contracts'
import { withClient } from './images.js'
import type { Places } from './up/config.js'

const REFUSED = 1

/**
 * Prints what is known of an image, a line each, worst first; what there is of each severity, and warnings, on stderr.
 * @returns exit code: 0, or 1 where nothing may be started from it
 */
export function scanImage(places: Places, image: string, severity: Severity | undefined): Promise<number> {
  return withClient(places, async (client) => {
    for (let cursor: string | undefined; ; ) {
      const query = { limit: 200, ...(severity && { severity }), ...(cursor !== undefined && { cursor }) }
      const page = await client.call(listImageVulnerabilities, { params: { image }, query })
      process.stdout.write(page.items.map(rowOf).join(''))
      if (page.nextCursor !== null) {
        cursor = page.nextCursor
        continue
      }
      for (const warning of page.warnings) process.stderr.write(`${warning}\n`)
      process.stderr.write(`${summaryOf(page.summary)}\n`)
      if (page.policy.allowed) return 0
      process.stderr.write('nothing may be started from it\n')
      return REFUSED
    }
  })
}

export const rowOf = ({ id, severity, score, package: one, fixedVersion, summary }: ImageVulnerability): string =>
  `${[severity, score ?? '-', id, one.name, one.version, fixedVersion ?? '-', summary].join('\t')}\n`

export const summaryOf = (counted: Readonly<Record<Severity, number>>): string =>
  [...severities]
    .reverse()
    .flatMap((severity) => (counted[severity] > 0 ? [`${counted[severity]} ${severity}`] : []))
    .join(', ') || 'nothing is known to be wrong with it'

export function printSbom(places: Places, image: string, format: 'spdx' | 'cyclonedx'): Promise<void> {
  return withClient(places, async (client) => {
    const document = await client.open(getImageSbom, { params: { image }, query: { format } })
    await pipeline(document, process.stdout, { end: false })
  })
}
