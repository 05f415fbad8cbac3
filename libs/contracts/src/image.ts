import { z } from 'zod'
import { TenantId } from './ids.js'
import { GivenRegistryLogin, ImageDigest, ImageHistory, ImageLayer, ImageSettings, ImportConfig } from './image-node.js'
import { Flag, Page, pageOf, route, Time } from './route.js'
import { DAY, DurationMs } from './units.js'

/** A name as users write it; the service that takes it says what is wrong with one that is none. */
export const Reference = z
  .string()
  .min(1)
  .max(512)
  .describe(
    'Name with tag, digest or both, e.g. `python`, `ghcr.io/team/app:1`, `app@sha256:…`; or an image id: `sha256:…`, or ' +
      'the first four digits of it, or more, where no other image has them',
  )

/** An image that jobs and sandboxes can start from. */
export const Image = z.object({
  digest: ImageDigest.describe('Digest of the image configuration: its id'),
  manifestDigest: ImageDigest.nullable().describe('Null for base images, in lists'),
  references: z.array(z.string()).describe('Its names, in the short form, e.g. `python:latest`; dangling without any'),
  visibility: z.enum(['tenant', 'public']).describe('`public`: of the operator, for all to use'),
  base: z.boolean().describe('Whether it came with the nodes: it is there without anybody having pulled it'),
  platform: z.string().nullable(),
  labels: z.record(z.string(), z.string()),
  sizeBytes: z.number().int().describe('Unpacked size of all layers'),
  uniqueBytes: z.number().int().describe('Of layers that no other image of its owner has: what removing it frees'),
  sharedBytes: z.number().int().describe('Of the other layers'),
  nodes: z.number().int().describe('Ready nodes that hold it'),
  createdAt: z.string().nullable().describe('As its builder says'),
  addedAt: Time.nullable().describe('When it was pulled, loaded or imported; null for base images'),
})
export type Image = z.infer<typeof Image>

export const ImageDetails = Image.extend({
  layers: z.array(ImageLayer).describe('Lowest first'),
  settings: ImageSettings.describe('What a container of it runs with, unless told otherwise'),
})
export type ImageDetails = z.infer<typeof ImageDetails>

export const ImageHistoryEntry = ImageHistory.extend({
  digest: ImageDigest.nullable().describe('Of the layer that it made, unpacked (diffID)'),
  sizeBytes: z.number().int().describe('Unpacked; 0 where it made no layer'),
  ageMs: z.number().int().nullable(),
})
export type ImageHistoryEntry = z.infer<typeof ImageHistoryEntry>

/** What a node tells of an image that it holds. */
export const NodeImage = z.object({
  reference: z.string().max(512).optional().describe('Of a base image, which all may use; others are known by digest'),
  digest: z.string().regex(/^sha256:[0-9a-f]{64}$/),
  sizeBytes: z.number().int().min(0),
  heldSince: Time.optional().describe('When the node last took it in. Without it the API never calls it unwanted'),
})
export type NodeImage = z.infer<typeof NodeImage>

/** One value of the stream of a pull, load, import or push. The last one is `done` or `failed`. */
export const ImageProgress = z.discriminatedUnion('step', [
  z.object({
    step: z.literal('layer').describe('How far a layer is; again and again while it moves'),
    digest: ImageDigest,
    state: z.enum(['waiting', 'fetching', 'unpacking', 'pushing', 'present', 'done']),
    bytes: z.number().int().describe('Done so far, as it is transferred'),
    totalBytes: z.number().int().nullable(),
  }),
  z.object({ step: z.literal('retry').describe('Something failed and is tried again'), message: z.string() }),
  z.object({ step: z.literal('done'), images: z.array(Image) }),
  z.object({ step: z.literal('failed'), code: z.string().describe('As of problems'), message: z.string() }),
])
export type ImageProgress = z.infer<typeof ImageProgress>

const reading = { rate: 'read', scope: 'images:read', operators: true, tag: 'images' } as const
const writing = { rate: 'write', scope: 'images:write', operators: true, tag: 'images', idempotency: 'none' } as const
const imageParams = z.object({ image: Reference })
const seenBy = { tenantId: TenantId.optional().describe('For operators: as this tenant sees it') }

/** Answers of what streams unless it is waited for. */
const progress = {
  200: { kind: 'ndjson', item: ImageProgress },
  201: z.object({ images: z.array(Image) }),
} as const
const wait = {
  wait: z
    .enum(['done'])
    .optional()
    .describe('Answer 201 with JSON when it is done, instead of a stream of what happens'),
}
const taking = ['quota_exceeded', 'image_invalid', 'platform_unsupported', 'no_capacity', 'node_unreachable'] as const
/** What routes have in common that take an image in. */
export const imageProgress = { reply: progress, wait, taking } as const
const talking = ['registry_denied', 'registry_unreachable', 'policy_forbidden'] as const

export const listImages = route({
  ...reading,
  id: 'listImages',
  method: 'GET',
  path: '/v1/images',
  summary: 'List the images that jobs and sandboxes can start from',
  description: 'Your own and public ones, by when they were added; base images, which came with the nodes, last.',
  query: z.strictObject({
    ...Page.query,
    ...seenBy,
    reference: z
      .string()
      .min(1)
      .max(512)
      .optional()
      .describe('A name, its beginning with a `*`, e.g. `team/*`, or a digest'),
    label: z
      .union([z.string(), z.array(z.string()).max(32)])
      .transform((one) => [one].flat())
      .optional()
      .describe('`key` or `key=value`; all must match'),
    dangling: Flag.optional().describe('true: only images that no name leads to; false: only others'),
  }),
  reply: { 200: pageOf(Image) },
  errors: [],
})
export const getImage = route({
  ...reading,
  id: 'getImage',
  method: 'GET',
  path: '/v1/images/:image',
  summary: 'Get an image with its layers and settings',
  params: imageParams,
  query: z.strictObject(seenBy),
  reply: { 200: ImageDetails },
  errors: ['image_not_found', 'node_unreachable'],
})
export const getImageHistory = route({
  ...reading,
  id: 'getImageHistory',
  method: 'GET',
  path: '/v1/images/:image/history',
  summary: 'What made each layer of an image, newest first',
  params: imageParams,
  reply: { 200: z.object({ items: z.array(ImageHistoryEntry) }) },
  errors: ['image_not_found', 'node_unreachable'],
})
export const getImageArchive = route({
  ...reading,
  id: 'getImageArchive',
  method: 'GET',
  path: '/v1/images/:image/archive',
  summary: 'Save an image as a tar',
  description:
    "`docker`: as `docker save` writes it, an OCI layout too. `oci`: an OCI image layout. Named by the image's names.",
  params: imageParams,
  query: z.strictObject({ format: z.enum(['docker', 'oci']).default('docker') }),
  reply: { 200: 'bytes' },
  errors: ['image_not_found', 'image_unavailable', 'no_capacity', 'node_unreachable'],
})
export const saveImages = route({
  ...reading,
  id: 'saveImages',
  method: 'GET',
  path: '/v1/images/archive',
  summary: 'Save several images as one tar; layers that they share are in it once',
  query: z.strictObject({
    image: z
      .union([Reference, z.array(Reference).min(1).max(100)])
      .transform((one) => [one].flat())
      .describe('Repeat it for more images'),
    format: z.enum(['docker', 'oci']).default('docker'),
  }),
  reply: { 200: 'bytes' },
  errors: ['image_not_found', 'image_unavailable', 'no_capacity', 'node_unreachable'],
})
export const pullImage = route({
  ...writing,
  id: 'pullImage',
  method: 'POST',
  path: '/v1/images/pull',
  summary: 'Fetch an image from its registry',
  description:
    'Streams what happens, layer by layer, until `done` or `failed`; what fails before anything was streamed is a problem. ' +
    'Closing the connection ends it; what was fetched whole is not fetched again by the next try. Your login for the ' +
    'registry is used, where there is one. The name then leads to this image; the one that it led to before stays.',
  query: z.strictObject(wait),
  body: z.strictObject({
    reference: Reference,
    platform: z
      .string()
      .regex(/^linux\/[a-z0-9]{1,16}(\/[a-z0-9.]{1,16})?$/, 'must be like linux/amd64')
      .optional()
      .describe("Default: the nodes' own; any other is refused"),
  }),
  reply: progress,
  errors: [...taking, ...talking],
})
export const loadImages = route({
  ...writing,
  id: 'loadImages',
  method: 'POST',
  path: '/v1/images/load',
  summary: 'Take in the images of an archive',
  description:
    'What `docker save` writes, or a tar of an OCI image layout; plain, gzip or zstd. Streams as a pull does.',
  query: z.strictObject(wait),
  body: 'bytes',
  reply: progress,
  errors: [...taking, 'archive_invalid'],
})
export const importImage = route({
  ...writing,
  id: 'importImage',
  method: 'POST',
  path: '/v1/images/import',
  summary: 'Make an image of one layer from a tar of a root file system',
  description: 'Plain, gzip or zstd. Streams as a pull does.',
  query: z.strictObject({
    ...wait,
    reference: Reference.optional().describe('Its name. Default: none, it is known by its digest'),
    config: z
      .string()
      .max(16_384)
      .optional()
      .transform((text, context) => configOf(text, context))
      .describe(
        'What containers of it run with, as JSON: `env`, `entrypoint`, `command`, `workingDir`, `user`, `labels`, …',
      ),
  }),
  body: 'bytes',
  reply: progress,
  errors: [...taking, 'archive_invalid'],
})
export const pushImage = route({
  ...writing,
  id: 'pushImage',
  method: 'POST',
  path: '/v1/images/:image/push',
  summary: 'Send an image to a registry',
  description: 'Streams as a pull does. Layers that the registry has are not sent again.',
  params: imageParams,
  query: z.strictObject(wait),
  body: z.strictObject({
    reference: Reference.optional().describe('Where to, as registry/repository:tag. Default: the name that was given'),
  }),
  reply: progress,
  errors: ['image_not_found', 'no_capacity', 'node_unreachable', ...talking],
})
export const tagImage = route({
  ...writing,
  id: 'tagImage',
  method: 'PUT',
  path: '/v1/images/:image/tags/:reference',
  summary: 'Give an image one more name',
  description:
    'A name that leads to another image leads to this one afterwards. A public image becomes one of yours too, with what ' +
    'it counts against the quota.',
  params: imageParams.extend({ reference: Reference }),
  reply: { 200: Image },
  errors: ['image_not_found', 'quota_exceeded', 'node_unreachable'],
})
export const untagImage = route({
  ...writing,
  id: 'untagImage',
  method: 'DELETE',
  path: '/v1/images/:image/tags/:reference',
  summary: 'Take a name from an image, which stays',
  params: imageParams.extend({ reference: Reference }),
  reply: { 200: Image },
  errors: ['image_not_found', 'policy_forbidden'],
})
export const removeImage = route({
  ...writing,
  id: 'removeImage',
  method: 'DELETE',
  path: '/v1/images/:image',
  summary: 'Remove a name, and with the last one the image',
  description:
    'Given an id, or a digest without a name, all its names and the image. One that a sandbox, an unfinished job or a ' +
    'template uses is refused, naming them; with `force` it loses the names and stays. Nodes free the space within a ' +
    'quarter of an hour.',
  params: imageParams,
  query: z.strictObject({ force: Flag.default(false) }),
  reply: {
    200: z.object({
      untagged: z.array(z.string()).describe('Names that are gone'),
      deleted: ImageDigest.nullable().describe('The image, if it is gone'),
      freedBytes: z.number().int(),
    }),
  },
  errors: ['image_not_found', 'image_in_use', 'policy_forbidden'],
})
export const pruneImages = route({
  ...writing,
  id: 'pruneImages',
  method: 'POST',
  path: '/v1/images/prune',
  summary: 'Remove images that nothing uses',
  description:
    'Those that no name leads to, with `all` the others too; never one that a sandbox, an unfinished job or a template ' +
    'uses.',
  body: z.strictObject({
    all: z.boolean().default(false),
    olderThan: DurationMs(0, 3650 * DAY)
      .optional()
      .describe('Only images that were added so long ago, e.g. `7d`'),
    label: z.array(z.string().max(320)).max(32).default([]).describe('`key` or `key=value`; all must match'),
  }),
  reply: { 200: z.object({ deleted: z.array(ImageDigest), freedBytes: z.number().int() }) },
  errors: [],
})

/** How a tenant is known to a registry. The password is never shown again. */
export const RegistryAccount = z.object({ registry: z.string(), username: z.string(), updatedAt: Time })
export type RegistryAccount = z.infer<typeof RegistryAccount>

/** A registry by the one name that it has here: Docker Hub was called something else, which Docker takes still. */
export const registryAt = (host: string): string => (host === 'index.docker.io' ? 'docker.io' : host)

const Registry = z
  .string()
  .regex(
    /^(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:]{2,39}\])(?::[0-9]{1,5})?$/,
    'must be a host name with an optional port, in lower case',
  )
  .transform(registryAt)
const registryParams = z.object({ registry: Registry })

export const listRegistries = route({
  ...reading,
  id: 'listRegistries',
  method: 'GET',
  path: '/v1/registries',
  summary: 'List the registries that you have a login for',
  reply: { 200: z.object({ items: z.array(RegistryAccount) }) },
  errors: [],
})
export const getRegistry = route({
  ...reading,
  id: 'getRegistry',
  method: 'GET',
  path: '/v1/registries/:registry',
  summary: 'Which login you have for a registry',
  params: registryParams,
  reply: { 200: RegistryAccount },
  errors: ['registry_not_found'],
})
export const putRegistry = route({
  ...writing,
  id: 'putRegistry',
  method: 'PUT',
  path: '/v1/registries/:registry',
  summary: 'Set your login for a registry',
  description: 'Kept encrypted, sent to that registry only, and never shown. `docker.io` is Docker Hub.',
  params: registryParams,
  body: GivenRegistryLogin,
  reply: { 200: RegistryAccount },
  errors: [],
})
export const deleteRegistry = route({
  ...writing,
  id: 'deleteRegistry',
  method: 'DELETE',
  path: '/v1/registries/:registry',
  summary: 'Forget your login for a registry',
  params: registryParams,
  reply: { 204: 'empty' },
  errors: ['registry_not_found'],
})

function configOf(text: string | undefined, context: z.RefinementCtx): ImportConfig {
  const value = text === undefined ? {} : jsonOf(text)
  const parsed = ImportConfig.strict().safeParse(value)
  if (parsed.success) return parsed.data
  const [issue] = parsed.error.issues
  const where = issue?.path.length ? `${issue.path.map(String).join('.')}: ` : ''
  const message = value === undefined ? 'must be JSON' : `must be JSON as described: ${where}${issue?.message ?? ''}`
  context.addIssue({ code: 'custom', message })
  return z.NEVER
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined // which no schema takes
  }
}
