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

const aliases: Readonly<Record<string, string>> = { x86_64: 'amd64', 'x86-64': 'amd64', aarch64: 'arm64', armhf: 'arm' }
const systems = ['linux', 'windows', 'darwin', 'freebsd', 'netbsd', 'openbsd', 'solaris', 'plan9', 'aix', 'android']
const architectures = 'amd64 386 arm arm64 ppc64 ppc64le mips mips64 mips64le mipsle riscv64 s390x wasm loong64'.split(
  ' ',
)

/**
 * A platform as people write it, in full: `linux/aarch64`, `arm64`, `linux` (containerd/platforms, Parse).
 * @param own what goes without saying
 */
export function parsePlatform(text: string, own: string): string | undefined {
  const [first = '', ...more] = text.toLowerCase().split('/')
  const [system = '', architecture = ''] = own.split('/')
  const known = aliases[first] ?? first
  if (more.length === 0 && systems.includes(known)) return `${known}/${architecture}`
  if (more.length === 0) return architectures.includes(known) ? `${system}/${known}` : undefined
  const [second = '', variant, ...rest] = more
  const parts = [first, aliases[second] ?? second, ...(variant === undefined ? [] : [variant])]
  return rest.length === 0 && parts.every((part) => /^[a-z0-9_.-]+$/.test(part)) ? parts.join('/') : undefined
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
