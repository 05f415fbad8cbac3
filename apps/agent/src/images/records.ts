// records.ts: images as they are written down.
import { HeldImage, type ImageSettings } from '@berth/contracts'
import { z } from 'zod'

const ManifestDescriptor = z.object({ mediaType: z.string(), digest: z.string(), size: z.number().int() })
export type ManifestDescriptor = z.infer<typeof ManifestDescriptor>

/** A base image, as `images.json` has it. */
export const Stored = z.object({
  reference: z.string(),
  manifestDigest: z.string(),
  digest: z.string().regex(/^sha256:[0-9a-f]{64}$/),
  sizeBytes: z.number().int(),
  /** diffIDs, lowest layer first. */
  layers: z.array(z.string().regex(/^sha256:[0-9a-f]{64}$/)),
  config: z.object({
    env: z.array(z.string()),
    entrypoint: z.array(z.string()),
    command: z.array(z.string()),
    workingDir: z.string().optional(),
    user: z.string().optional(),
    stopSignal: z.string().optional(),
  }),
})
export type Stored = z.infer<typeof Stored>

/** One configuration may be in several manifests, packed in several ways; the newest comes first. */
export const Kept = z.object({
  heldSince: z.iso.datetime(),
  manifests: z.array(z.object({ manifest: ManifestDescriptor, image: HeldImage })).min(1),
})
export type Kept = z.infer<typeof Kept>

/** An image as a sandbox starts from it. */
export interface ResolvedImage {
  readonly reference: string
  readonly digest: string
  /** Directories, topmost first. */
  readonly layers: readonly string[]
  readonly config: Stored['config']
}

/** Settings as they are kept of a base image: what says nothing is left out. */
export const startOf = ({
  env,
  entrypoint,
  command,
  workingDir,
  user,
  stopSignal,
}: ImageSettings): Stored['config'] => ({
  ...{ env, entrypoint, command },
  ...(workingDir === null ? {} : { workingDir }),
  ...(user === null ? {} : { user }),
  ...(stopSignal === null ? {} : { stopSignal }),
})
