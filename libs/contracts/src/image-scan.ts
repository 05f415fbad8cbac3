// image-scan.ts: what is in an image, and what is known to be wrong with it. A node reads the packages out of the layers
// (`GET images/<digest>/packages` → ImageContents); it never runs anything of the image. All else is the API's.
import { z } from 'zod'
import { ImageDigest } from './image-node.js'
import { Page, route, Time } from './route.js'

/** Who installed a package, as the type of its purl says. */
export const packageTypes = ['deb', 'apk', 'npm', 'pypi'] as const
export const PackageType = z.enum(packageTypes)
export type PackageType = z.infer<typeof PackageType>

/** What is told of one image, whatever is in it. */
export const contentLimits = { packages: 20_000, warnings: 100, text: 256, path: 4096 } as const

const text = z.string().min(1).max(contentLimits.text)

const packageFields = {
  type: PackageType,
  name: text,
  version: text,
  architecture: text.nullable(),
  source: z
    .object({ name: text, version: text })
    .nullable()
    .describe('Of deb and apk: the source package that it was built from, by which vulnerabilities are known'),
  license: z.string().max(1024).nullable().describe('As the package says'),
  path: z.string().max(contentLimits.path).describe('The file of the image that tells of it'),
  layer: ImageDigest.describe('The layer (diffID) that brought it'),
}

/** A package as a node finds it. */
export const FoundPackage = z.object(packageFields)
export type FoundPackage = z.infer<typeof FoundPackage>

/** Of /etc/os-release. */
export const Distribution = z.object({
  id: text.describe('E.g. `debian`, `alpine`'),
  version: text.nullable().describe('E.g. `13`, `3.22.1`; null where there is none, as of Debian testing'),
  name: z.string().max(contentLimits.text).describe('For people'),
})
export type Distribution = z.infer<typeof Distribution>

/** What a node finds in an image. */
export const ImageContents = z.object({
  distribution: Distribution.nullable(),
  packages: z.array(FoundPackage).max(contentLimits.packages),
  complete: z.boolean().describe('Whether all of it was looked at, within the limits; `warnings` say what was not'),
  warnings: z.array(z.string().max(1024)).max(contentLimits.warnings + 1),
})
export type ImageContents = z.infer<typeof ImageContents>

export const ImagePackage = z.object({
  purl: z.string().describe('Package URL, e.g. `pkg:deb/debian/bash@5.2.37-2?arch=amd64&distro=debian-13`'),
  ...packageFields,
})
export type ImagePackage = z.infer<typeof ImagePackage>

/** From harmless to worst; `unknown`: nobody has rated it. */
export const severities = ['unknown', 'none', 'low', 'medium', 'high', 'critical'] as const
export const Severity = z.enum(severities)
export type Severity = z.infer<typeof Severity>

/** Which images may not be started. */
export const ImagePolicy = z.strictObject({
  mode: z
    .enum(['off', 'warn', 'refuse'])
    .describe(
      '`warn`: told in the answer that creates, as an event and in the log of the API; `refuse`: neither jobs nor ' +
        'sandboxes start from it',
    ),
  severity: z
    .enum(['low', 'medium', 'high', 'critical'])
    .default('critical')
    .describe('The least that counts. What nobody has rated never does'),
  fixableOnly: z.boolean().default(false).describe('Whether only what a newer version mends counts'),
  exempt: z
    .array(z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$/, 'must be an id such as CVE-2025-1234'))
    .max(256)
    .default([])
    .describe('Ids of vulnerabilities that do not count, by any of their names'),
})
export type ImagePolicy = z.infer<typeof ImagePolicy>

/** Of an answer that creates something. */
export const Warnings = z
  .array(z.string())
  .describe('What is known against its images, where the policy of images warns: one for each image; mostly none')
export type Warnings = z.infer<typeof Warnings>

/** Most that one answer has. */
export const MAX_WARNINGS = 100

export const ImageVulnerability = z.object({
  id: z.string().describe('By a CVE id where it has one'),
  aliases: z.array(z.string()).describe('Its other names'),
  severity: Severity,
  score: z.number().nullable().describe('CVSS base score, 0 to 10'),
  summary: z.string(),
  fixedVersion: z.string().nullable().describe('The first version without it, where there is one'),
  package: ImagePackage,
})
export type ImageVulnerability = z.infer<typeof ImageVulnerability>

const ofSeverity = z.object({
  ...{ unknown: z.number().int(), none: z.number().int(), low: z.number().int(), medium: z.number().int() },
  ...{ high: z.number().int(), critical: z.number().int() },
})

export const VulnerabilityDatabase = z.object({
  version: z.string().describe('Changes when what is known changes'),
  records: z.number().int(),
  loadedAt: Time,
})
export type VulnerabilityDatabase = z.infer<typeof VulnerabilityDatabase>

/** What the policy that holds for the caller says of an image. */
export const PolicyVerdict = z.object({
  mode: ImagePolicy.shape.mode,
  allowed: z.boolean().describe('Whether jobs and sandboxes may start from it'),
  against: z.array(z.string()).describe('Ids of what counts against it, worst first; the first 100'),
})
export type PolicyVerdict = z.infer<typeof PolicyVerdict>

const Reference = z.string().min(1).max(512)
const reading = { rate: 'read', scope: 'images:read', operators: true, tag: 'images', method: 'GET' } as const
const params = z.object({ image: Reference })
const scanning = ['image_not_found', 'no_capacity', 'node_unreachable', 'scan_unavailable'] as const
const nextCursor = z.string().nullable()

export const listImagePackages = route({
  ...reading,
  id: 'listImagePackages',
  path: '/v1/images/:image/packages',
  summary: 'What is installed in an image',
  description:
    'As the files of package managers in it say: dpkg, apk, npm, pip. It is read without running anything of the image, ' +
    'once for each image.',
  params,
  query: z.strictObject({ ...Page.query }),
  reply: {
    200: z.object({
      ...{ distribution: Distribution.nullable(), complete: ImageContents.shape.complete },
      ...{ warnings: z.array(z.string()), items: z.array(ImagePackage), nextCursor },
    }),
  },
  errors: scanning,
})

export const getImageSbom = route({
  ...reading,
  id: 'getImageSbom',
  path: '/v1/images/:image/sbom',
  summary: 'A software bill of materials of an image',
  description:
    'SPDX 2.3 or CycloneDX 1.6, as JSON. The same image gives the same bytes: the document is named by the digest, and ' +
    "its time is the image's.",
  params,
  query: z.strictObject({ format: z.enum(['spdx', 'cyclonedx']).default('spdx') }),
  reply: { 200: 'bytes' },
  errors: scanning,
})

export const listImageVulnerabilities = route({
  ...reading,
  id: 'listImageVulnerabilities',
  path: '/v1/images/:image/vulnerabilities',
  summary: 'Known vulnerabilities of what is installed in an image, worst first',
  description:
    "By the operator's database of vulnerabilities; `scan_unavailable` where there is none. `summary` counts all of them, " +
    'whatever `severity` says.',
  params,
  query: z.strictObject({
    ...Page.query,
    severity: Severity.optional().describe('Only these and worse ones'),
    fixable: z.enum(['true']).optional().describe('Only what a newer version mends'),
  }),
  reply: {
    200: z.object({
      ...{ database: VulnerabilityDatabase, policy: PolicyVerdict, summary: ofSeverity },
      ...{ complete: ImageContents.shape.complete, warnings: z.array(z.string()) },
      ...{ items: z.array(ImageVulnerability), nextCursor },
    }),
  },
  errors: scanning,
})
