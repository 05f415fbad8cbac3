// image-node.ts: what the API asks a node about images, and what the node answers. A node keeps content, by digest; names,
// and who may use what, are the API's. Long work answers with a line of JSON a step (`ImageStep`), the last of which is
// `done` or `failed`.
//
// Paths are those of `nodePath` of libs/node-rpc: /v1/nodes/<id>/images/…
//
//     GET    images/<digest>                  → HeldImage; base images too
//     GET    images/<digest>/packages         → ImageContents (image-scan.ts): what is installed in it
//     GET    images/<digest>/blobs/<digest>|manifest?from=… → its bytes, from an offset on
//     POST   images/<digest>/bring            BringImage → steps      has the node hold it, from wherever it is to be had
//     POST   images/pull                      PullImage → steps       fetches from a registry, verifies, unpacks
//     POST   images/push                      PushImage → steps
//     POST   images/load?maxBytes=…           an archive → steps      `docker save`'s, or an OCI layout in a tar; gzip or zstd too
//     POST   images/import?config=<JSON>&maxBytes=…  a tar of a root → steps  one layer of what is in it; config: ImportConfig
//     GET    images/archive?image=<digest>&name=<digest>=<reference>…&format=docker|oci → the archive
//
// What nobody has any more is told to the node by the answer to its heartbeat; its layers go with the last image of them.
import { z } from 'zod'
import { problems } from './errors.js'

export const ImageDigest = z.string().regex(/^sha256:[0-9a-f]{64}$/, 'must be sha256: and 64 hex digits')
export type ImageDigest = z.infer<typeof ImageDigest>

/** An operating system and processor, as OCI names them: `linux/amd64`, `linux/arm/v7`. */
export const Platform = z
  .string()
  .regex(/^linux\/[a-z0-9]{1,16}(\/[a-z0-9.]{1,16})?$/, 'must be like linux/amd64 or linux/arm/v7')

const loginFields = z.object({
  username: z
    .string()
    .min(1)
    .max(256)
    .regex(/^[^\p{Cc}\p{Cs}:]*$/u, 'must not contain ":" or control characters'),
  password: z.string().max(8192).optional().describe('Password or access token'),
  identityToken: z
    .string()
    .max(8192)
    .regex(/^[\x20-\x7e]+$/, 'must be printable ASCII')
    .optional()
    .describe(
      'Instead of a password: what `docker login` keeps as `identitytoken`, for which the token server gives tokens',
    ),
})
type LoginFields = z.infer<typeof loginFields>

function oneSecret({ password, identityToken }: LoginFields, context: z.RefinementCtx): void {
  if ((password === undefined) === (identityToken === undefined))
    context.addIssue({ code: 'custom', path: ['password'], message: 'must be given, or identityToken instead of it' })
}

/** With one of the two secrets. */
export const RegistryLogin = loginFields.superRefine(oneSecret)
export const GivenRegistryLogin = loginFields.strict().superRefine(oneSecret)
export type RegistryLogin = z.infer<typeof RegistryLogin>

/** How a registry is spoken to. The operator decides this, never a tenant. */
export const RegistryAccess = z.object({
  endpoints: z
    .array(z.url())
    .min(1)
    .describe('Tried in this order: mirrors first, the registry itself last; http only where the operator lists it'),
  certificates: z.string().nullable().describe('PEM of authorities that are trusted besides the usual ones'),
  login: RegistryLogin.nullable().describe('Sent to the registry itself, never to a mirror'),
  privateAddresses: z
    .boolean()
    .default(false)
    .describe(
      'Whether connections may go to loopback, link-local and private addresses. Without it a name that leads there, a ' +
        'redirect or a token server among them, is refused at the address that is connected to',
    ),
})
export type RegistryAccess = z.infer<typeof RegistryAccess>

export const PullImage = z.object({
  reference: z.string().describe('In full: registry/repository with a tag, a digest or both'),
  platform: Platform.optional().describe("Default: the node's own; any other is refused"),
  access: RegistryAccess,
  maxBytes: z.number().int().min(0).describe('Most bytes that may be added unpacked, for the quota of the tenant'),
})
export type PullImage = z.infer<typeof PullImage>

export const PushImage = z.object({
  digest: ImageDigest.describe('Image id'),
  reference: z.string().describe('In full, with a tag'),
  access: RegistryAccess,
  mountFrom: z
    .array(
      z
        .string()
        .regex(/^[a-z0-9]+(?:(?:[./]|__?|-+)[a-z0-9]+)*$/)
        .max(255),
    )
    .max(8)
    .default([])
    .describe('Repositories of the same registry, known to whoever pushes, that may have blobs of the image'),
})
export type PushImage = z.infer<typeof PushImage>

export const BringImage = z.object({
  pass: z.string().min(1).max(1024).describe('Lets the node ask the API for it: see `ImageNeed`'),
  owner: z.string().max(64).describe('For whom: what others have is fetched again'),
})
export type BringImage = z.infer<typeof BringImage>

export const ImageLayer = z.object({
  diffId: ImageDigest.describe('Digest of the unpacked tar'),
  digest: ImageDigest.describe('Digest as it is fetched'),
  mediaType: z.string().max(255),
  sizeBytes: z.number().int().min(0).describe('As it is fetched'),
  unpackedBytes: z.number().int().min(0).describe('Of its files'),
})
export type ImageLayer = z.infer<typeof ImageLayer>

export const ImageHistory = z.object({
  createdAt: z.string().max(64).nullable(),
  createdBy: z.string().max(65_536).describe('The command'),
  comment: z.string().max(65_536),
  emptyLayer: z.boolean().describe('Whether it made no layer'),
})

/** What a container of the image runs with, unless told otherwise. */
export const ImageSettings = z.object({
  env: z.array(z.string()),
  entrypoint: z.array(z.string()),
  command: z.array(z.string()),
  workingDir: z.string().nullable(),
  user: z.string().nullable(),
  stopSignal: z.string().nullable(),
  labels: z.record(z.string(), z.string()),
  exposedPorts: z.array(z.string()),
  volumes: z.array(z.string()),
})
export type ImageSettings = z.infer<typeof ImageSettings>

/** An image as the node holds it. */
export const HeldImage = z.object({
  digest: ImageDigest.describe('Of the configuration: the image id'),
  manifestDigest: ImageDigest,
  platform: z.string().max(64),
  createdAt: z.string().max(64).nullable().describe('As its builder says'),
  layers: z.array(ImageLayer).max(500).describe('Lowest first'),
  history: z.array(ImageHistory).max(2000),
  settings: ImageSettings,
})
export type HeldImage = z.infer<typeof HeldImage>

/** Settings of an image that is made from a root file system. */
export const ImportConfig = ImageSettings.partial().extend({ comment: z.string().max(4096).optional() })
export type ImportConfig = z.infer<typeof ImportConfig>

export const ImageStep = z.discriminatedUnion('step', [
  z.object({
    step: z.literal('layer').describe('How far a layer is; again and again while it moves'),
    digest: ImageDigest,
    state: z.enum(['waiting', 'fetching', 'unpacking', 'pushing', 'present', 'done']),
    bytes: z.number().int().min(0).describe('Done so far, as it is transferred'),
    totalBytes: z.number().int().min(0).nullable(),
  }),
  z.object({ step: z.literal('retry').describe('Something failed and is tried again'), message: z.string() }),
  z.object({
    step: z.literal('done'),
    images: z.array(z.object({ image: HeldImage, references: z.array(z.string()).describe('Names in an archive') })),
  }),
  z.object({
    step: z.literal('failed'),
    code: z.enum(Object.keys(problems) as [keyof typeof problems]),
    message: z.string(),
  }),
])
export type ImageStep = z.infer<typeof ImageStep>
