import { expect, test } from '@jest/globals'
import { archiveDocuments, entryName, linkedEntry, parseDockerManifest, parseLayoutIndex } from './archive.js'
import { parseChallenges } from './challenge.js'
import { parseReference } from './reference.js'

const digest = (letter: string) => `sha256:${letter.repeat(64)}`
const bytes = (value: unknown) => Buffer.from(JSON.stringify(value))
const manifest = { mediaType: 'application/vnd.oci.image.manifest.v1+json', digest: digest('a'), size: 3 }

test('an archive says this, byte for byte', () => {
  const image = {
    ...{ manifest, platform: 'linux/amd64', config: digest('c'), layers: [digest('d')] },
    references: [parseReference('team/app:1'), parseReference('localhost:5000/app')],
  }
  const text = (format: 'docker' | 'oci') =>
    Object.fromEntries(archiveDocuments([image], format).map(({ name, content }) => [name, content.toString()]))
  const entry = (name: string, short: string) =>
    `{"mediaType":"${manifest.mediaType}","digest":"${digest('a')}","size":3,"platform":{"architecture":"amd64","os":"linux"},` +
    `"annotations":{"io.containerd.image.name":"${name}","org.opencontainers.image.ref.name":"${short}"}}`
  const index = (...entries: string[]) =>
    `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[${entries.join(',')}]}`
  expect(text('docker')).toEqual({
    'oci-layout': '{"imageLayoutVersion":"1.0.0"}',
    'index.json': index(entry('docker.io/team/app:1', '1'), entry('localhost:5000/app:latest', 'latest')),
    'manifest.json':
      `[{"Config":"blobs/sha256/${'c'.repeat(64)}","RepoTags":["team/app:1","localhost:5000/app:latest"],` +
      `"Layers":["blobs/sha256/${'d'.repeat(64)}"]}]`,
  })
  expect(text('oci')).toEqual({
    'oci-layout': '{"imageLayoutVersion":"1.0.0"}',
    'index.json': index(
      entry('docker.io/team/app:1', 'team/app:1'),
      entry('localhost:5000/app:latest', 'localhost:5000/app:latest'),
    ),
  })
})

test('what is written is read back', () => {
  const image = { manifest, platform: 'linux/amd64', config: digest('c'), layers: [digest('d')] }
  const references = ['team/app:1', 'debian:12']
  const documents = archiveDocuments(
    [{ ...image, references: references.map((text) => parseReference(text)) }],
    'docker',
  )
  const content = (name: string) => documents.find((one) => one.name === name)?.content ?? Buffer.alloc(0)
  expect(parseLayoutIndex(content('index.json'))).toEqual([
    { descriptor: expect.objectContaining({ digest: digest('a') }), references },
  ])
  expect(parseDockerManifest(content('manifest.json'))).toEqual([
    { config: `blobs/sha256/${'c'.repeat(64)}`, layers: [`blobs/sha256/${'d'.repeat(64)}`], references },
  ])
})

test('what docker wrote before 25, and others write, is read', () => {
  expect(
    parseDockerManifest(bytes([{ Config: './abc.json', RepoTags: null, Layers: ['x/layer.tar', '/y//layer.tar'] }])),
  ).toEqual([{ config: 'abc.json', layers: ['x/layer.tar', 'y/layer.tar'], references: [] }])
  const named = (annotations: Record<string, string>) =>
    parseLayoutIndex(bytes({ schemaVersion: 2, manifests: [{ ...manifest, annotations }] }))[0]?.references
  expect(named({ 'org.opencontainers.image.ref.name': 'latest' })).toEqual([])
  expect(named({ 'org.opencontainers.image.ref.name': 'docker.io/library/debian:12' })).toEqual(['debian:12'])
  expect(named({})).toEqual([])
})

test.each([
  ['no JSON', Buffer.from('x')],
  ['no images', bytes([])],
  ['no layers', bytes([{ Config: 'c', Layers: [] }])],
  ['a name that is none', bytes([{ Config: 'c', Layers: ['l'], RepoTags: ['A B'] }])],
])('a manifest.json with %s is refused', (_what, text) =>
  expect(() => parseDockerManifest(text)).toThrow(expect.objectContaining({ code: 'archive_invalid' })),
)

test('an index without an image is refused', () =>
  expect(() => parseLayoutIndex(bytes({ schemaVersion: 2, manifests: [] }))).toThrow('names no image'))

test.each([
  ['a/layer.tar', '../b/layer.tar', 'b/layer.tar'],
  ['a/b/c', '../../d', 'd'],
  ['a', 'b', 'b'],
  ['a', '/x/y', 'x/y'],
  ['a', '../b', undefined],
  ['a/b', '../../../etc/passwd', undefined],
])('the link %s to %s leads to %s', (name, target, to) => expect(linkedEntry(name, target)).toBe(to))

test('names of entries have one form', () => expect(entryName('./a//b/./c')).toBe('a/b/c'))

test.each([
  ['', []],
  ['Basic realm="x"', [{ scheme: 'basic', parameters: { realm: 'x' } }]],
  [
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"',
    [
      {
        scheme: 'bearer',
        parameters: {
          realm: 'https://auth.docker.io/token',
          service: 'registry.docker.io',
          scope: 'repository:a/b:pull,push',
        },
      },
    ],
  ],
  [
    'Basic realm="a \\"b\\"", Bearer REALM=x , error="invalid_token"',
    [
      { scheme: 'basic', parameters: { realm: 'a "b"' } },
      { scheme: 'bearer', parameters: { realm: 'x', error: 'invalid_token' } },
    ],
  ],
  ['Negotiate', [{ scheme: 'negotiate', parameters: {} }]],
  ['="x"', []],
  ['realm="x"', []],
])('the challenge %s', (header, challenges) => expect(parseChallenges(header)).toEqual(challenges))
