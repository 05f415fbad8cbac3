// Pulls and pushes against Debian's docker-registry, with a proxy in front that goes wrong.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { mediaTypes } from '@berth/oci'
import { describe, expect, test } from '@jest/globals'
import { Progress } from './progress.js'
import { push } from './push.js'
import { accessTo, digestOf, imageOf, LOGIN, noise, publish, type Trouble } from './registry.fixture.js'
import { forever, TestStore, times } from './store.fixture.js'
import { givenTransfers, isBlob } from './transfers.fixture.js'
import { zstdTool } from './zstd.fixture.js'

const on = givenTransfers()
const { reference, pull } = on

describe('a pull', () => {
  test('brings an image whole: verified, unpacked, told of, and found again after a restart', async () => {
    const { image: got, steps } = await pull()
    expect(got).toMatchObject(on.held())
    expect(steps).toEqual(
      on.image.blobs.map((blob) => ({
        ...{ step: 'layer', digest: digestOf(blob), state: 'done', bytes: blob.length, totalBytes: blob.length },
      })),
    )
    expect(await on.store.problems()).toEqual([])
    await on.store.reopen()
    const resolved = on.store.images.resolve('whatever', got.digest)
    expect(resolved).toMatchObject({ digest: got.digest, config: { command: ['/bin/sh'] } })
    const [top = '', base = ''] = resolved?.layers ?? []
    expect(readdirSync(join(top, 'app'))).toEqual(['data'])
    expect(readFileSync(join(base, 'etc/motd'), 'utf8')).toBe('hello')
    expect(on.store.images.resolve('team/app:1')).toBeUndefined()
    expect(on.store.images.list()).toEqual([
      { digest: got.digest, sizeBytes: 700_005, heldSince: expect.stringMatching(/Z$/) },
    ])
  })

  test('of what is here fetches no layer, once the registry says that it may', async () => {
    await pull()
    on.proxy.asked.length = 0
    const { steps } = await pull()
    expect(on.proxy.asked.filter(isBlob)).toEqual([])
    expect(on.proxy.asked.filter(({ method }) => method === 'HEAD')).toHaveLength(3)
    expect(steps.map((step) => step.step === 'layer' && step.state)).toEqual(['done', 'done'])
  })

  test('by digest, of an index and of Docker’s media types', async () => {
    const docker = imageOf([on.lower], {
      layerType: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
      manifest: { mediaType: mediaTypes.dockerManifest },
    })
    const typed = { ...docker, mediaType: mediaTypes.dockerManifest }
    await publish(on.registry, 'team/docker', 'amd', typed)
    const entry = (bytes: Buffer, architecture: string) => ({
      ...{ mediaType: mediaTypes.dockerManifest, digest: digestOf(bytes), size: bytes.length },
      platform: { os: 'linux', architecture },
    })
    const native = process.arch === 'arm64' ? 'arm64' : 'amd64'
    const manifests = [entry(Buffer.from('other'), 's390x'), entry(docker.manifest, native)]
    const index = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.dockerList, manifests }))
    on.proxy.trouble = ({ path }) =>
      path.endsWith('manifests/all')
        ? { kind: 'answer', status: 200, headers: { 'content-type': mediaTypes.dockerList }, body: index }
        : undefined
    const { image: got } = await on.store.pull(`${on.proxy.host}/team/docker:all`, accessTo(on.proxy))
    expect(got.manifestDigest).toBe(digestOf(docker.manifest))
    const byDigest = await on.store.pull(
      `${on.proxy.host}/team/docker@${digestOf(docker.manifest)}`,
      accessTo(on.proxy),
    )
    expect(byDigest.image).toEqual(got)
    await expect(
      on.store.pull(`${on.proxy.host}/team/docker:all`, accessTo(on.proxy), { platform: 'linux/s390x' }),
    ).rejects.toMatchObject({ code: 'platform_unsupported' })
  })

  test('of layers packed by zstd and not at all', async () => {
    for (const [type, pack] of [
      [`${mediaTypes.layer}+zstd`, zstdTool],
      [mediaTypes.layer, (tar: Buffer) => tar],
    ] as const) {
      const packed = imageOf([on.lower], { layerType: type, pack })
      await publish(on.registry, 'team/packed', '1', packed)
      const { image: got } = await on.store.pull(`${on.proxy.host}/team/packed:1`, accessTo(on.proxy))
      expect(got.layers[0]).toMatchObject({ diffId: digestOf(on.lower), mediaType: type })
    }
    expect(await on.store.problems()).toEqual([])
  })

  test('that two ask for at once fetches each layer once', async () => {
    const [a, b] = await Promise.all([pull(), pull()])
    expect(a.image).toEqual(b.image)
    expect(on.proxy.asked.filter((asked) => on.isLayer(asked))).toHaveLength(1)
    expect(on.proxy.asked.filter((asked) => on.isLayer(asked, 1))).toHaveLength(1)
  })

  test('stops at once when its caller goes, and the next one goes on', async () => {
    on.proxy.trouble = (asked) => (on.isLayer(asked) ? { kind: 'slow' } : undefined)
    const leaving = new AbortController()
    const pulling = pull({ signal: leaving.signal })
    while (!on.proxy.asked.some((asked) => on.isLayer(asked))) await new Promise((done) => setImmediate(done))
    leaving.abort(new Error('gone'))
    await expect(pulling).rejects.toThrow('gone')
    expect(on.store.inventory().images).toEqual([])
    on.proxy.trouble = () => undefined
    expect((await pull()).image).toMatchObject(on.held())
  })
})

describe('trouble on the way', () => {
  test('a cut connection goes on where it was cut', async () => {
    on.troubled(2, (asked) => on.isLayer(asked), { kind: 'cut', after: 100_000 })
    const { image: got, steps } = await pull()
    expect(got).toMatchObject(on.held())
    expect(steps.filter(({ step }) => step === 'retry')).toHaveLength(2)
    const ranges = on.proxy.asked.filter((asked) => on.isLayer(asked)).map(({ headers }) => headers.range)
    expect(ranges[0]).toBeUndefined()
    // All that arrived before the reset counts, which may be less than was sent.
    const [, second, third] = ranges.map((range) => Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? 0))
    expect(third).toBeGreaterThanOrEqual(second ?? 0)
    expect(third).toBeLessThanOrEqual(200_000)
    expect(await on.store.problems()).toEqual([])
  })

  test.each<[string, Trouble]>([
    ['a body that ends too early', { kind: 'end', after: 1000 }],
    ['silence', { kind: 'silence', after: 1000 }],
    ['500', { kind: 'answer', status: 500 }],
    ['503 with Retry-After', { kind: 'answer', status: 503, headers: { 'retry-after': '0' } }],
    ['429', { kind: 'answer', status: 429, headers: { 'retry-after': '1' } }],
  ])('%s is tried again', async (_what, trouble) => {
    on.troubled(1, (asked) => on.isLayer(asked), trouble)
    const { image: got, steps } = await pull()
    expect(got).toMatchObject(on.held())
    expect(steps.filter(({ step }) => step === 'retry')).toHaveLength(1)
  })

  test('of the manifest and of the configuration too', async () => {
    on.troubled(1, ({ path }) => path.includes('/manifests/'), { kind: 'cut', after: 10 })
    expect((await pull()).image).toMatchObject(on.held())
    await on.store.images.drop(digestOf(on.image.config))
    on.troubled(2, ({ path }) => path.endsWith(digestOf(on.image.config)), { kind: 'answer', status: 502 })
    expect((await pull()).image).toMatchObject(on.held())
  })

  test('that does not end is told, and what came is kept for the next', async () => {
    on.proxy.trouble = (asked) => (on.isLayer(asked) ? { kind: 'answer', status: 500 } : undefined)
    await expect(pull()).rejects.toMatchObject({ code: 'registry_unreachable' })
    await on.store.images.collect(new Set())
    expect(on.store.inventory()).toMatchObject({ images: [], layers: [] })
    expect(await on.store.problems()).toEqual([])
    on.proxy.trouble = () => undefined
    expect((await pull()).image).toMatchObject(on.held())
  })

  test('a wrong byte is found, and nothing is kept', async () => {
    on.proxy.trouble = (asked) => (on.isLayer(asked) || on.isLayer(asked, 1) ? { kind: 'corrupt' } : undefined)
    await expect(pull()).rejects.toMatchObject({ code: 'image_invalid' })
    await on.store.images.collect(new Set())
    const { blobs, partial } = on.store.inventory()
    expect(blobs.sort()).toEqual([on.image.config, on.image.manifest].map((blob) => digestOf(blob).slice(7)).sort())
    expect(
      partial.every((name) => name !== digestOf(on.image.blobs[0] ?? on.lower).slice(7)) || partial.length <= 1,
    ).toBe(true)
    expect(await on.store.problems()).toEqual([])
  })

  test('a part of another time that does not fit is dropped, and fetched anew', async () => {
    const part = await on.store.images.content.part(digestOf(on.image.blobs[0] ?? on.lower), on.proxy.host)
    await part.append(noise(5000))
    await part.close()
    expect((await pull()).image).toMatchObject(on.held())
  })

  test('a mirror that is away, lacks it or lies is passed by; its login is not sent', async () => {
    const gone = { kind: 'answer', status: 404 } as const
    for (const trouble of [gone, { kind: 'corrupt' }, { kind: 'answer', status: 500 }] as const) {
      const fresh = await TestStore.open()
      on.proxy.asked.length = 0
      on.proxy.trouble = (asked) => (trouble.kind === 'corrupt' && !isBlob(asked) ? undefined : trouble)
      const access = accessTo(on.registry, { endpoints: [on.proxy.url, on.registry.url], login: LOGIN })
      const { image: got } = await fresh.pull(`${on.registry.host}/team/app:1`, access)
      expect(got).toMatchObject(on.held())
      expect(on.proxy.asked.length).toBeGreaterThan(0)
      expect(on.proxy.asked.filter(({ headers }) => headers.authorization)).toEqual([])
    }
  })
})

describe('a push', () => {
  test('skips what is there, sends the rest, and gives the digests that were pulled', async () => {
    const { image: got } = await pull()
    const [blob = on.lower] = on.image.blobs
    const half = imageOf([on.lower], { pack: () => blob })
    await publish(on.registry, 'team/copy', 'half', half)
    const progress = new Progress()
    on.troubled(1, ({ method }) => method === 'PUT', { kind: 'answer', status: 503 })
    const access = accessTo(on.proxy)
    await push(
      on.store.images,
      { digest: got.digest, reference: `${on.proxy.host}/team/copy:2`, access, mountFrom: [] },
      forever,
      progress,
      times,
    )
    const states = progress.take().map((step) => (step.step === 'layer' ? step.state : step.step))
    expect(states).toEqual(['retry', 'present', 'done'])
    const other = await TestStore.open()
    expect((await other.pull(`${on.registry.host}/team/copy:2`, accessTo(on.registry))).image).toEqual(got)
  })

  test('of an image that is not here, or to a registry that does not let us', async () => {
    const request = {
      digest: `sha256:${'9'.repeat(64)}`,
      reference: reference(),
      access: accessTo(on.proxy),
      mountFrom: [],
    }
    await expect(push(on.store.images, request, forever, new Progress(), times)).rejects.toMatchObject({
      code: 'image_not_found',
    })
    const { image: got } = await pull()
    on.proxy.trouble = () => ({ kind: 'answer', status: 403, body: Buffer.from('{"errors":[{"message":"no"}]}') })
    await expect(
      push(on.store.images, { ...request, digest: got.digest }, forever, new Progress(), times),
    ).rejects.toMatchObject({ code: 'registry_denied', message: expect.stringContaining('answers 403') })
  })
})
