// transfers.fixture.ts: a registry with an image of two layers, behind a proxy that goes wrong as it is told.
import { mediaTypes } from '@berth/oci'
import { afterAll, afterEach, beforeAll, beforeEach } from '@jest/globals'
import {
  type Asked,
  accessTo,
  digestOf,
  type FaultyProxy,
  imageOf,
  noise,
  publish,
  startProxy,
  startRegistry,
  type TestImage,
  type TestRegistry,
  type Trouble,
  tarOf,
} from './registry.fixture.js'
import { TestStore } from './store.fixture.js'

export const isBlob = (asked: Asked): boolean => asked.method === 'GET' && /\/blobs\//.test(asked.path)

/** One registry and proxy for all tests of a file, and a new store for each of them. */
export function givenTransfers(): Transfers {
  const on = new Transfers()
  beforeAll(() => on.start())
  afterAll(() => on.close())
  beforeEach(() => on.reset())
  afterEach(() => TestStore.removeAll())
  return on
}

class Transfers {
  registry!: TestRegistry
  proxy!: FaultyProxy
  /** What is published as `reference()`. */
  image!: TestImage
  /** Tar of its lower layer. */
  lower!: Buffer
  store!: TestStore

  readonly reference = () => `${this.proxy.host}/team/app:1`
  readonly pull = (more: Parameters<TestStore['pull']>[2] = {}) =>
    this.store.pull(this.reference(), accessTo(this.proxy), more)

  async start(): Promise<void> {
    this.registry = await startRegistry()
    this.lower = await tarOf({ 'bin/': null, 'bin/sh': noise(400_000), 'etc/motd': 'hello' })
    const upper = await tarOf({ 'etc/': null, 'etc/.wh.motd': '', 'app/data': noise(300_000) })
    this.image = imageOf([this.lower, upper])
    await publish(this.registry, 'team/app', '1', this.image)
    this.proxy = await startProxy(this.registry)
  }

  async reset(): Promise<void> {
    this.store = await TestStore.open()
    this.proxy.asked.length = 0
    this.proxy.trouble = () => undefined
  }

  async close(): Promise<void> {
    await this.proxy?.close()
    await this.registry?.close()
  }

  /** Whether a layer of the image was asked for. */
  isLayer(asked: Asked, index = 0): boolean {
    return isBlob(asked) && asked.path.endsWith(digestOf(this.image.blobs[index] ?? Buffer.alloc(0)))
  }

  /** The first so many requests that match go wrong. */
  troubled(count: number, matches: (asked: Asked) => boolean, trouble: Trouble): void {
    let left = count
    this.proxy.trouble = (asked) => (matches(asked) && left-- > 0 ? trouble : undefined)
  }

  /** What is told of the image once a node has it. */
  held() {
    const { config, manifest, blobs, tars } = this.image
    return {
      digest: digestOf(config),
      manifestDigest: digestOf(manifest),
      layers: blobs.map((blob, i) => ({
        diffId: digestOf(tars[i] ?? blob),
        digest: digestOf(blob),
        mediaType: `${mediaTypes.layer}+gzip`,
        sizeBytes: blob.length,
        unpackedBytes: [400_005, 300_000][i],
      })),
    }
  }
}
