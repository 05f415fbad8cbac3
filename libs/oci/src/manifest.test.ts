import { Failure } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { heldImage, importedConfig, writtenManifest } from './image.js'
import { compressionOf, layerCompression, layersOf, parseDocument, parseImageConfig } from './manifest.js'
import { checkPlatform, choosePlatform, platformOf, samePlatform } from './platform.js'

const digest = (letter: string) => `sha256:${letter.repeat(64)}`
const bytes = (value: unknown) => Buffer.from(JSON.stringify(value))
const layer = { mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip', digest: digest('b'), size: 10 }
const manifest = {
  schemaVersion: 2,
  config: { mediaType: 'application/vnd.oci.image.config.v1+json', digest: digest('a'), size: 5 },
  layers: [layer],
}
const config = { architecture: 'amd64', os: 'linux', rootfs: { type: 'layers', diff_ids: [digest('d')] } }

test.each([
  ['application/vnd.oci.image.layer.v1.tar', 'none'],
  ['application/vnd.oci.image.layer.v1.tar+gzip', 'gzip'],
  ['application/vnd.oci.image.layer.v1.tar+zstd', 'zstd'],
  ['application/vnd.oci.image.layer.nondistributable.v1.tar+gzip', 'gzip'],
  ['application/vnd.docker.image.rootfs.diff.tar', 'none'],
  ['application/vnd.docker.image.rootfs.diff.tar.gzip', 'gzip'],
  ['application/vnd.docker.image.rootfs.diff.tar.zstd', 'zstd'],
  ['application/vnd.oci.image.config.v1+json', undefined],
  ['application/vnd.in-toto+json', undefined],
  ['text/plain', undefined],
])('a layer of %s is packed by %s', (mediaType, how) => expect(layerCompression(mediaType)).toBe(how))

test.each([
  [[0x1f, 0x8b, 8, 0], 'gzip'],
  [[0x28, 0xb5, 0x2f, 0xfd], 'zstd'],
  [[0x51, 0x2a, 0x4d, 0x18], 'zstd'],
  [[0x28, 0xb5, 0x2f, 0xfe], 'none'],
  [[0x2e, 0x2f, 0, 0], 'none'],
  [[0x1f], 'none'],
  [[], 'none'],
])('%j begins what is packed by %s', (beginning, how) => expect(compressionOf(Uint8Array.from(beginning))).toBe(how))

describe('a document', () => {
  test('is a manifest or an index by what is in it', () => {
    expect(parseDocument(bytes(manifest)).kind).toBe('manifest')
    expect(parseDocument(bytes({ schemaVersion: 2, manifests: [] })).kind).toBe('index')
  })

  test.each([
    ['no JSON', Buffer.from('<html>')],
    ['no UTF-8', Buffer.from([0x22, 0xff, 0x22])],
    ['schema 1', bytes({ schemaVersion: 1, fsLayers: [] })],
    ['both', bytes({ ...manifest, manifests: [] })],
    ['neither', bytes({})],
    ['null', bytes(null)],
    ['no layers', bytes({ ...manifest, layers: [] })],
    ['a digest of another kind', bytes({ ...manifest, layers: [{ ...layer, digest: `sha512:${'a'.repeat(128)}` }] })],
    ['a negative size', bytes({ ...manifest, layers: [{ ...layer, size: -1 }] })],
  ])('that is %s is refused', (_what, text) =>
    expect(() => parseDocument(text)).toThrow(expect.objectContaining({ code: 'image_invalid' })),
  )

  test.each([
    ['a chart', { ...manifest, config: { ...manifest.config, mediaType: 'application/vnd.cncf.helm.config.v1+json' } }],
    ['an empty one', { ...manifest, config: { ...manifest.config, mediaType: 'application/vnd.oci.empty.v1+json' } }],
    [
      'a signature',
      { ...manifest, layers: [{ ...layer, mediaType: 'application/vnd.dev.cosign.simplesigning.v1+json' }] },
    ],
    ['an attestation', { ...manifest, layers: [{ ...layer, mediaType: 'application/vnd.in-toto+json' }] }],
  ])('that is of an artifact, as of %s, is told as one', (_what, artifact) =>
    expect(() => parseDocument(bytes(artifact))).toThrow(/^it is no image, but an artifact of type "application/),
  )

  test('of an image may have a layer of a kind that is not known, or call its configuration what it likes', () => {
    const lz4 = { ...layer, mediaType: 'application/vnd.oci.image.layer.v1.tar+lz4' }
    expect(parseDocument(bytes({ ...manifest, layers: [lz4] })).kind).toBe('manifest')
    for (const mediaType of ['application/octet-stream', 'application/json', 'text/html', ''])
      expect(parseDocument(bytes({ ...manifest, config: { ...manifest.config, mediaType } })).kind).toBe('manifest')
  })

  test('agrees with its configuration', () => {
    const parsed = parseDocument(bytes(manifest))
    if (parsed.kind !== 'manifest') throw new Error('no manifest')
    const one = parseImageConfig(bytes(config))
    expect(layersOf(parsed.manifest, one)).toEqual([{ descriptor: layer, diffId: digest('d'), compression: 'gzip' }])
    const two = parseImageConfig(bytes({ ...config, rootfs: { type: 'layers', diff_ids: [digest('d'), digest('e')] } }))
    expect(() => layersOf(parsed.manifest, two)).toThrow('disagree')
    const odd = { ...parsed.manifest, layers: [{ ...layer, mediaType: 'text/plain' }] }
    expect(() => layersOf(odd, one)).toThrow('not supported')
  })
})

describe('a platform', () => {
  test.each([
    [{ os: 'linux', architecture: 'amd64' }, 'linux/amd64'],
    [{ os: 'linux', architecture: 'arm64', variant: 'v8' }, 'linux/arm64'],
    [{ os: 'linux', architecture: 'arm64' }, 'linux/arm64'],
    [{ os: 'linux', architecture: 'arm', variant: 'v6' }, 'linux/arm/v6'],
    [{ os: 'linux', architecture: 'arm' }, 'linux/arm/v7'],
    [{ os: 'linux', architecture: 'amd64', variant: 'v3' }, 'linux/amd64/v3'],
  ])('%j is %s', (parts, written) => expect(platformOf(parts)).toBe(written))

  test.each([
    ['linux/arm64', 'linux/arm64/v8', true],
    ['linux/arm', 'linux/arm/v7', true],
    ['linux/arm/v6', 'linux/arm/v7', false],
    ['linux/amd64', 'linux/amd64/v1', true],
    ['linux/amd64', 'linux/amd64/v3', false],
    ['linux/amd64', 'windows/amd64', false],
  ])('%s and %s: %s', (a, b, same) => expect(samePlatform(a, b)).toBe(same))

  const entry = (letter: string, os?: string, architecture?: string, variant?: string) => ({
    ...{ mediaType: 'application/vnd.oci.image.manifest.v1+json', digest: digest(letter), size: 1 },
    ...(os && architecture ? { platform: { os, architecture, ...(variant ? { variant } : {}) } } : {}),
  })
  const index = (...manifests: ReturnType<typeof entry>[]) => ({ schemaVersion: 2 as const, manifests })

  test('chooses the first image for it, and no attestation', () => {
    const entries = [
      entry('0', 'unknown', 'unknown'),
      entry('1', 'linux', 'arm64', 'v8'),
      entry('2', 'linux', 'amd64'),
      entry('3', 'linux', 'amd64'),
    ]
    expect(choosePlatform(index(...entries), 'linux/amd64').digest).toBe(digest('2'))
    expect(choosePlatform(index(...entries), 'linux/arm64').digest).toBe(digest('1'))
    expect(choosePlatform(index(entry('4')), 'linux/amd64').digest).toBe(digest('4'))
  })

  test('that there is no image for is told with those that there are', () => {
    const entries = index(
      entry('0', 'unknown', 'unknown'),
      entry('1', 'linux', 'arm64'),
      entry('2', 'windows', 'amd64'),
    )
    expect(() => choosePlatform(entries, 'linux/amd64')).toThrow(
      new Failure(
        'platform_unsupported',
        'there is no image for linux/amd64; there are ones for linux/arm64, windows/amd64',
      ),
    )
    expect(() => checkPlatform(parseImageConfig(bytes({ ...config, architecture: 'arm64' })), 'linux/amd64')).toThrow(
      'the image is for linux/arm64, not for linux/amd64',
    )
  })
})

test('an image is told of as its documents say', () => {
  const parsed = parseImageConfig(
    bytes({
      ...config,
      created: '2026-01-01T00:00:00Z',
      history: [
        { created_by: 'COPY . /', created: null },
        { created_by: 'CMD x', empty_layer: true, comment: 'c' },
      ],
      config: {
        Env: ['A=b'],
        Cmd: ['x'],
        User: '',
        Labels: { l: 'm' },
        ExposedPorts: { '80/tcp': {} },
        Volumes: { '/v': {} },
      },
    }),
  )
  expect(heldImage({ config: digest('a'), manifest: digest('f') }, parsed, [])).toEqual({
    digest: digest('a'),
    manifestDigest: digest('f'),
    platform: 'linux/amd64',
    createdAt: '2026-01-01T00:00:00Z',
    layers: [],
    history: [
      { createdAt: null, createdBy: 'COPY . /', comment: '', emptyLayer: false },
      { createdAt: null, createdBy: 'CMD x', comment: 'c', emptyLayer: true },
    ],
    settings: {
      ...{ env: ['A=b'], entrypoint: [], command: ['x'], workingDir: null, user: null, stopSignal: null },
      ...{ labels: { l: 'm' }, exposedPorts: ['80/tcp'], volumes: ['/v'] },
    },
  })
})

test('an image that says more of itself than any is refused: nodes have it in memory', () => {
  const digests = { config: digest('a'), manifest: digest('f') }
  const config = (Env: readonly string[]) =>
    parseImageConfig(
      bytes({
        architecture: 'amd64',
        os: 'linux',
        rootfs: { type: 'layers', diff_ids: [digest('d')] },
        config: { Env },
      }),
    )
  expect(heldImage(digests, config(['x'.repeat(200_000)]), []).settings.env).toHaveLength(1)
  expect(() => heldImage(digests, config(Array(300).fill('x'.repeat(1000))), [])).toThrow(/more than 262144 bytes/)
})

test('documents that are made here are these bytes, and are read back', () => {
  const settings = { command: ['sh'], env: ['A=b'], exposedPorts: ['80/tcp', '22/tcp'], user: null }
  const made = importedConfig({
    platform: 'linux/arm/v7',
    diffId: digest('d'),
    createdAt: '2026-01-01T00:00:00.000Z',
    settings,
  })
  expect(made.toString()).toBe(
    '{"architecture":"arm","variant":"v7","os":"linux","created":"2026-01-01T00:00:00.000Z","config":{"Env":["A=b"],' +
      '"Cmd":["sh"],"ExposedPorts":{"22/tcp":{},"80/tcp":{}}},"rootfs":{"type":"layers","diff_ids":["' +
      `${digest('d')}"]},"history":[{"created":"2026-01-01T00:00:00.000Z","created_by":"import","comment":"imported from a tar"}]}`,
  )
  expect(parseImageConfig(made).config.Cmd).toEqual(['sh'])
  const written = writtenManifest({ digest: digest('a'), size: 5 }, [layer])
  expect(parseDocument(written)).toEqual({
    kind: 'manifest',
    manifest: { ...manifest, mediaType: 'application/vnd.oci.image.manifest.v1+json' },
  })
})
