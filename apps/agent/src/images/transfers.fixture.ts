// transfers.fixture.ts: a registry with an image of two layers, behind a proxy that goes wrong as it is told.
import { mediaTypes } from '@berth/oci'
import {
  type Asked,
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

export const isBlob = (asked: Asked): boolean => asked.method === 'GET' && /\/blobs\//.test(asked.path)

export class Transfers {
  private constructor(
    readonly registry: TestRegistry,
    readonly proxy: FaultyProxy,
    readonly image: TestImage,
    readonly lower: Buffer,
  ) {}

  static async start(): Promise<Transfers> {
    const registry = await startRegistry()
    const lower = await tarOf({ 'bin/': null, 'bin/sh': noise(400_000), 'etc/motd': 'hello' })
    const upper = await tarOf({ 'etc/': null, 'etc/.wh.motd': '', 'app/data': noise(300_000) })
    const image = imageOf([lower, upper])
    await publish(registry, 'team/app', '1', image)
    return new Transfers(registry, await startProxy(registry), image, lower)
  }

  reset(): void {
    this.proxy.asked.length = 0
    this.proxy.trouble = () => undefined
  }

  async close(): Promise<void> {
    await this.proxy.close()
    await this.registry.close()
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
