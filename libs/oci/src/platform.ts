// platform.ts: which image of an index is for a machine (image-spec, image-index.md, "platform").
import { Failure } from '@berth/contracts'
import type { Descriptor, ImageConfig, Index } from './manifest.js'

interface Parts {
  readonly os: string
  readonly architecture: string
  readonly variant?: string | null | undefined
}

/** As OCI writes it: `linux/amd64`, `linux/arm/v7`. The variant that goes without saying is left out. */
export function platformOf({ os, architecture, variant }: Parts): string {
  const usual = architecture === 'arm64' ? 'v8' : architecture === 'arm' ? 'v7' : ''
  const shown = variant && !(architecture === 'arm64' && variant === usual) ? `/${variant}` : ''
  return `${os}/${architecture}${shown === '' && architecture === 'arm' ? `/${usual}` : shown}`
}

/** `linux/arm` means v7, `linux/arm64` v8, `linux/amd64` v1: compared with the variant written out. */
function full(platform: string): string {
  const [os = '', architecture = '', variant] = platform.split('/')
  const usual: Readonly<Record<string, string>> = { arm: 'v7', arm64: 'v8', amd64: 'v1' }
  return `${os}/${architecture}/${variant ?? usual[architecture] ?? ''}`
}

export const samePlatform = (a: string, b: string): boolean => full(a) === full(b)

/** What an index holds besides images: attestations of builders and the like, which say they are for no machine. */
const isImage = ({ platform }: Descriptor) => platform?.os !== 'unknown'

/**
 * The entry of an index for a platform: the first that is exactly for it. One that names no platform is for any, and
 * its configuration decides.
 * @throws Failure platform_unsupported with those that there are
 */
export function choosePlatform(index: Index, wanted: string): Descriptor {
  const images = index.manifests.filter(isImage)
  const found =
    images.find(({ platform }) => platform && samePlatform(platformOf(platform), wanted)) ??
    images.find(({ platform }) => !platform)
  if (found) return found
  const offered = [...new Set(images.flatMap(({ platform }) => (platform ? [platformOf(platform)] : [])))]
  throw new Failure(
    'platform_unsupported',
    `there is no image for ${wanted}; there are ones for ${offered.join(', ') || 'nothing'}`,
    { platforms: offered.slice(0, 100) },
  )
}

/** @throws Failure platform_unsupported for an image of another platform than `wanted` */
export function checkPlatform(config: ImageConfig, wanted: string): void {
  const is = platformOf(config)
  if (!samePlatform(is, wanted))
    throw new Failure('platform_unsupported', `the image is for ${is}, not for ${wanted}`, { platforms: [is] })
}
