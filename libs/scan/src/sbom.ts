// sbom.ts: an image's packages as a bill of materials. Nothing in it is of the moment or by chance, so the same image
// gives the same bytes: who keeps one can tell whether anything has changed.
import { createHash } from 'node:crypto'
import type { FoundPackage, ImageContents } from '@berth/contracts'
import CycloneDX from '@cyclonedx/cyclonedx-library'
import { purlOf } from './package-url.js'

export interface SbomSubject {
  /** Of the image. */
  readonly digest: string
  /** As its builder says; what is no time counts as none. */
  readonly createdAt: string | null
  readonly contents: ImageContents
  /** Of the program that writes the document. */
  readonly tool: { readonly name: string; readonly version: string }
}

type Json = Readonly<Record<string, unknown>>

const hexOf = (digest: string): string => digest.replace(/^sha256:/, '')
const hashOf = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, 16)

/** Known by what it is, so that the same package has the same name in documents of other images. */
const idOf = (one: FoundPackage): string => {
  const { type, name, version, architecture } = one
  const readable = name.replace(/[^A-Za-z0-9.-]/g, '-').slice(0, 64)
  return `${type}-${readable}-${hashOf(JSON.stringify([type, name, version, architecture]))}`
}

function timeOf(createdAt: string | null): Date {
  const time = new Date(createdAt ?? 0)
  return Number.isNaN(time.getTime()) || time.getUTCFullYear() > 9999 || time.getUTCFullYear() < 1 ? new Date(0) : time
}

const NONE = 'NOASSERTION'

/** SPDX 2.3 (ISO/IEC 5962) as JSON: the image contains its packages. */
export function spdxOf({ digest, createdAt, contents, tool }: SbomSubject): Json {
  const { packages, distribution, warnings } = contents
  const described = packages.map((one) => spdxPackage(one, purlOf(one, distribution)))
  const image = 'SPDXRef-image'
  const created = `${timeOf(createdAt).toISOString().slice(0, 19)}Z`
  return {
    spdxVersion: 'SPDX-2.3',
    dataLicense: 'CC0-1.0',
    SPDXID: 'SPDXRef-DOCUMENT',
    name: digest,
    documentNamespace: `urn:berth:sbom:${digest}`,
    creationInfo: { created, creators: [`Tool: ${tool.name}-${tool.version}`] },
    ...(warnings.length > 0 && { comment: warnings.join('\n') }),
    packages: [
      {
        SPDXID: image,
        name: digest,
        versionInfo: digest,
        downloadLocation: NONE,
        filesAnalyzed: false,
        primaryPackagePurpose: 'CONTAINER',
        checksums: [{ algorithm: 'SHA256', checksumValue: hexOf(digest) }],
        ...unknownLicense,
      },
      ...described,
    ],
    relationships: [
      { spdxElementId: 'SPDXRef-DOCUMENT', relationshipType: 'DESCRIBES', relatedSpdxElement: image },
      ...described.map(({ SPDXID }) => ({
        ...{ spdxElementId: image, relationshipType: 'CONTAINS', relatedSpdxElement: SPDXID },
      })),
    ],
  }
}

const unknownLicense = { licenseConcluded: NONE, licenseDeclared: NONE, copyrightText: NONE } as const

function spdxPackage(one: FoundPackage, purl: string) {
  return {
    SPDXID: `SPDXRef-${idOf(one)}`,
    name: one.name,
    versionInfo: one.version,
    downloadLocation: NONE,
    filesAnalyzed: false,
    ...unknownLicense,
    // What packages say is rarely an expression of SPDX.
    ...(one.license !== null && { licenseComments: `The package says: ${one.license}` }),
    sourceInfo: `/${one.path} in layer ${one.layer}`,
    externalRefs: [{ referenceCategory: 'PACKAGE-MANAGER', referenceType: 'purl', referenceLocator: purl }],
  }
}

/** CycloneDX 1.6 as JSON. */
export function cycloneDxOf({ digest, createdAt, contents, tool }: SbomSubject): Json {
  const { Models, Enums, Serialize, Spec } = CycloneDX
  const { packages, distribution, warnings } = contents
  const property = (name: string, value: string) => new Models.Property(`berth:${name}`, value)
  const components = packages.map((one) => {
    const component = new Models.Component(Enums.ComponentType.Library, one.name, {
      ...{ bomRef: idOf(one), version: one.version, purl: purlOf(one, distribution) },
      properties: new Models.PropertyRepository([property('path', `/${one.path}`), property('layer', one.layer)]),
    })
    if (one.license !== null) component.licenses.add(new Models.NamedLicense(one.license))
    return component
  })
  if (distribution)
    components.push(
      new Models.Component(Enums.ComponentType.OperatingSystem, distribution.id, {
        ...{ bomRef: 'operating-system', description: distribution.name },
        ...(distribution.version !== null && { version: distribution.version }),
      }),
    )
  const image = new Models.Component(Enums.ComponentType.Container, digest, {
    ...{ bomRef: 'image', version: digest },
    hashes: new Models.HashDictionary([[Enums.HashAlgorithm['SHA-256'], hexOf(digest)]]),
    properties: new Models.PropertyRepository(warnings.map((text) => property('warning', text))),
  })
  for (const { bomRef } of components) image.dependencies.add(bomRef)
  const bom = new Models.Bom({
    serialNumber: `urn:uuid:${uuidOf(digest)}`,
    components: new Models.ComponentRepository(components),
    metadata: new Models.Metadata({
      timestamp: timeOf(createdAt),
      component: image,
      tools: new Models.Tools({ tools: new Models.ToolRepository([new Models.Tool(tool)]) }),
    }),
  })
  const normalizer = new Serialize.JSON.Normalize.Factory(Spec.Spec1dot6)
  return JSON.parse(new Serialize.JsonSerializer(normalizer).serialize(bom, { sortLists: true }))
}

/** A UUID of the image: RFC 9562's version 8, whose bits are anyone's. */
function uuidOf(digest: string): string {
  const hex = hexOf(digest)
  const variant = ((Number.parseInt(hex[16] ?? '0', 16) & 3) | 8).toString(16)
  const parts = [hex.slice(0, 8), hex.slice(8, 12), `8${hex.slice(13, 16)}`, `${variant}${hex.slice(17, 20)}`]
  return [...parts, hex.slice(20, 32)].join('-')
}
