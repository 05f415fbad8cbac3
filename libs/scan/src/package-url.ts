// package-url.ts: packages by their purl (ECMA-427), which is how documents and databases know them.
import type { Distribution, FoundPackage, ImagePackage } from '@berth/contracts'
import packageUrl from 'packageurl-js'

const { PackageURL } = packageUrl

/** @param distribution of the image; deb and apk are of it */
export function purlOf(one: FoundPackage, distribution: Distribution | null): string {
  const { type, name, version, architecture, source } = one
  if (type === 'pypi') return new PackageURL(type, undefined, name, version).toString()
  if (type === 'npm') {
    const [scope, own] = name.startsWith('@') ? name.split('/') : [undefined, name]
    return new PackageURL(type, scope, own ?? name, version).toString()
  }
  const id = distribution?.id ?? (type === 'deb' ? 'debian' : 'alpine')
  const qualifiers = {
    ...(architecture !== null && { arch: plain(architecture) }),
    ...(distribution?.version != null && { distro: plain(`${id}-${distribution.version}`) }),
    ...(source && source.name !== name && { upstream: plain(upstreamOf(source, version)) }),
  }
  return new PackageURL(type, id, name, version, qualifiers).toString()
}

/** What is beyond 16 bits the library's encoding of qualifiers throws at; no package has it but to that end. */
const plain = (text: string): string => text.replace(/[\u{10000}-\u{10ffff}]/gu, '\ufffd')

const upstreamOf = (source: { readonly name: string; readonly version: string }, version: string): string =>
  source.version === version ? source.name : `${source.name}@${source.version}`

export const withPurl = (one: FoundPackage, distribution: Distribution | null): ImagePackage => ({
  purl: purlOf(one, distribution),
  ...one,
})
