import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import type { FoundPackage, ImageContents } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { z } from 'zod'
import { purlOf } from './package-url.js'
import { cycloneDxOf, type SbomSubject, spdxOf } from './sbom.js'

// The schema of CycloneDX comes with its library; ajv is dependency-cruiser's.
const require = createRequire(import.meta.url)
const Ajv = require('ajv').default
const addFormats = require('ajv-formats').default
const library = dirname(require.resolve('@cyclonedx/cyclonedx-library/package.json'))
const schema = (name: string) =>
  JSON.parse(readFileSync(join(library, `res/schema/${name}.SNAPSHOT.schema.json`), 'utf8'))

const layer = `sha256:${'1'.repeat(64)}`
const found = (more: Partial<FoundPackage> & Pick<FoundPackage, 'type' | 'name' | 'version'>): FoundPackage => ({
  ...{ architecture: null, source: null, license: null, path: 'var/lib/dpkg/status', layer },
  ...more,
})
const packages = [
  found({
    type: 'deb',
    name: 'bash',
    version: '5.2.37-2+b3',
    architecture: 'amd64',
    source: { name: 'bash', version: '5.2.37-2' },
  }),
  found({ type: 'deb', name: 'libssl3', version: '3.0.1', source: { name: 'openssl', version: '3.0.1' } }),
  found({ type: 'npm', name: '@a/b', version: '1.0.0', license: 'MIT OR "odd"' }),
  found({ type: 'pypi', name: 'Foo_Bar', version: '1.0' }),
  found({ type: 'pypi', name: 'foo-bar', version: '1.0' }),
]
const contents: ImageContents = {
  distribution: { id: 'debian', version: '13', name: 'Debian 13' },
  ...{ packages, complete: false, warnings: ['a warning'] },
}
const subject: SbomSubject = {
  digest: `sha256:${'ab'.repeat(32)}`,
  createdAt: '2025-01-02T03:04:05.678+01:00',
  contents,
  tool: { name: 'berth', version: '0.1.0' },
}

test.each<[FoundPackage, string]>([
  [packages[0] as FoundPackage, 'pkg:deb/debian/bash@5.2.37-2+b3?arch=amd64&distro=debian-13'],
  [packages[1] as FoundPackage, 'pkg:deb/debian/libssl3@3.0.1?distro=debian-13&upstream=openssl'],
  [packages[2] as FoundPackage, 'pkg:npm/%40a/b@1.0.0'],
  [packages[3] as FoundPackage, 'pkg:pypi/foo-bar@1.0'],
])('purl of $name', (one, purl) => expect(purlOf(one, contents.distribution)).toBe(purl))

test('a purl is written of whatever a package is made to say', () => {
  const text = fc.string({
    unit: fc.constantFrom('%', '%zz', '/', '..', '@', '?', '\u{1f600}', '\u202e', 'é', 'a', '1'),
  })
  const word = text.filter((one) => one !== '')
  fc.assert(
    fc.property(fc.constantFrom('deb', 'apk', 'pypi'), word, word, word, word, (type, name, version, more, id) => {
      const source = { name: more, version: more }
      const one = found({ type, name, version, architecture: more, source })
      expect(purlOf(one, { id, version: more, name: '' })).toMatch(/^pkg:[!-~]+$/)
    }),
  )
})

// What SPDX 2.3's schema (spdx-spec, schemas/spdx-schema.json) has for the fields that are written, and no others.
const none = z.literal('NOASSERTION')
const spdxId = z.string().regex(/^SPDXRef-[a-zA-Z0-9.-]+$/)
const SpdxPackage = z.strictObject({
  ...{ SPDXID: spdxId, name: z.string().min(1), versionInfo: z.string(), downloadLocation: none },
  ...{ filesAnalyzed: z.literal(false), licenseConcluded: none, licenseDeclared: none, copyrightText: none },
  ...{ licenseComments: z.string().optional(), sourceInfo: z.string().optional() },
  primaryPackagePurpose: z.enum(['CONTAINER']).optional(),
  checksums: z
    .array(z.strictObject({ algorithm: z.enum(['SHA256']), checksumValue: z.string().regex(/^[0-9a-f]{64}$/) }))
    .optional(),
  externalRefs: z
    .array(
      z.strictObject({
        ...{ referenceCategory: z.enum(['PACKAGE-MANAGER']), referenceType: z.literal('purl') },
        referenceLocator: z.string().regex(/^pkg:\S+$/),
      }),
    )
    .optional(),
})
const Spdx = z.strictObject({
  ...{ spdxVersion: z.literal('SPDX-2.3'), dataLicense: z.literal('CC0-1.0'), SPDXID: z.literal('SPDXRef-DOCUMENT') },
  ...{ name: z.string().min(1), documentNamespace: z.url(), comment: z.string().optional() },
  creationInfo: z.strictObject({
    created: z.string().regex(/^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\dZ$/),
    creators: z.array(z.string().regex(/^Tool: \S+$/)).min(1),
  }),
  packages: z.array(SpdxPackage),
  relationships: z.array(
    z.strictObject({
      ...{ spdxElementId: spdxId, relatedSpdxElement: spdxId, relationshipType: z.enum(['DESCRIBES', 'CONTAINS']) },
    }),
  ),
})

test.each<[string, Partial<SbomSubject>]>([
  ['an image', {}],
  ['one with nothing in it', { contents: { distribution: null, packages: [], complete: true, warnings: [] } }],
  ['one that says no time', { createdAt: 'yesterday' }],
])('SPDX of %s is what its schema says', (_, more) => {
  const parsed = Spdx.safeParse(JSON.parse(JSON.stringify(spdxOf({ ...subject, ...more }))))
  expect(parsed.error?.issues ?? []).toEqual([])
})

test('SPDX: what is required of a document, and each id once', () => {
  const document = JSON.parse(JSON.stringify(spdxOf(subject)))
  expect(document).toMatchObject({
    ...{ spdxVersion: 'SPDX-2.3', dataLicense: 'CC0-1.0', SPDXID: 'SPDXRef-DOCUMENT', name: subject.digest },
    documentNamespace: `urn:berth:sbom:${subject.digest}`,
    creationInfo: { created: '2025-01-02T02:04:05Z', creators: ['Tool: berth-0.1.0'] },
    comment: 'a warning',
  })
  const ids = document.packages.map(({ SPDXID }: { SPDXID: string }) => SPDXID)
  expect(new Set(ids).size).toBe(packages.length + 1)
  for (const id of ids) expect(id).toMatch(/^SPDXRef-[A-Za-z0-9.-]+$/)
  expect(document.packages[1]).toEqual({
    ...{ SPDXID: ids[1], name: 'bash', versionInfo: '5.2.37-2+b3', filesAnalyzed: false },
    ...{ downloadLocation: 'NOASSERTION', licenseConcluded: 'NOASSERTION', licenseDeclared: 'NOASSERTION' },
    ...{ copyrightText: 'NOASSERTION', sourceInfo: `/var/lib/dpkg/status in layer ${layer}` },
    externalRefs: [
      {
        ...{ referenceCategory: 'PACKAGE-MANAGER', referenceType: 'purl' },
        referenceLocator: 'pkg:deb/debian/bash@5.2.37-2+b3?arch=amd64&distro=debian-13',
      },
    ],
  })
  expect(document.relationships).toContainEqual({
    ...{ spdxElementId: 'SPDXRef-DOCUMENT', relationshipType: 'DESCRIBES', relatedSpdxElement: 'SPDXRef-image' },
  })
  const contained = document.relationships.filter((one: Record<string, string>) => one.relationshipType === 'CONTAINS')
  expect(contained.map((one: Record<string, string>) => one.relatedSpdxElement)).toEqual(ids.slice(1))
})

test.each<[string, Partial<SbomSubject>]>([
  ['an image', {}],
  ['one with nothing in it', { contents: { distribution: null, packages: [], complete: true, warnings: [] } }],
  ['one that says no time', { createdAt: 'yesterday' }],
  [
    'one whose packages say what they like',
    {
      contents: {
        ...{ distribution: { id: 'de"b', version: '\u202e', name: '' }, complete: true, warnings: ['\ufffd'] },
        packages: ['..', '%zz', '\u{1f600}', '__proto__', '<x>'].map((text) =>
          found({ type: 'apk', name: text, version: text, architecture: text, license: text, path: text }),
        ),
      },
    },
  ],
])('CycloneDX of %s is what its schema says', (_, more) => {
  const ajv = new Ajv({ strict: false, allErrors: true })
  addFormats(ajv)
  for (const name of ['iri-reference', 'idn-email']) ajv.addFormat(name, true)
  for (const name of ['spdx', 'jsf-0.82', 'cryptography-defs'])
    ajv.addSchema({ ...schema(name), $id: `http://cyclonedx.org/schema/${name}.SNAPSHOT.schema.json` })
  const validate = ajv.compile(schema('bom-1.6'))
  const document = cycloneDxOf({ ...subject, ...more })
  expect(validate(document) ? [] : validate.errors).toEqual([])
  expect(document).toMatchObject({ bomFormat: 'CycloneDX', specVersion: '1.6' })
})

test('CycloneDX has each package with its purl, and where it is', () => {
  const { components, serialNumber } = JSON.parse(JSON.stringify(cycloneDxOf(subject)))
  expect(components).toHaveLength(packages.length + 1)
  expect(components.find(({ name }: { name: string }) => name === '@a/b')).toMatchObject({
    ...{ type: 'library', version: '1.0.0', purl: 'pkg:npm/%40a/b@1.0.0' },
    licenses: [{ license: { name: 'MIT OR "odd"' } }],
    properties: [
      { name: 'berth:layer', value: layer },
      { name: 'berth:path', value: '/var/lib/dpkg/status' },
    ],
  })
  expect(serialNumber).toMatch(/^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
})

test('the same image gives the same bytes', () => {
  for (const write of [spdxOf, cycloneDxOf])
    expect(JSON.stringify(write(structuredClone(subject)))).toBe(JSON.stringify(write(subject)))
})
