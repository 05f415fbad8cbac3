// store.fixture.ts: a store of images in a directory of its own.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { join, resolve } from 'node:path'
import type { ImageStep, PullImage, RegistryAccess } from '@berth/contracts'
import { fsck } from './fsck.js'
import { Images } from './images.js'
import { Progress } from './progress.js'
import { pull } from './pull.js'

export const berthLayer = resolve(import.meta.dirname, '../../../../libs/init/build/berth-layer')
/** Fast, and with patience enough for what a test does. */
export const times = {
  patience: { firstPauseMs: 2, longestPauseMs: 20, longestAskedMs: 3000, attempts: 6 },
  silenceMs: 300,
} as const
export const forever: AbortSignal = new AbortController().signal

const opened = new Set<string>()

export class TestStore {
  private constructor(
    readonly directory: string,
    public images: Images,
  ) {}

  static async open(): Promise<TestStore> {
    const directory = mkdtempSync('/var/tmp/berth-store-')
    opened.add(directory)
    return new TestStore(directory, await openImages(directory))
  }

  /** As after a restart of the agent. */
  async reopen(): Promise<void> {
    this.images = await openImages(this.directory)
  }

  /** @returns the image, and the steps that were told by then */
  async pull(reference: string, access: RegistryAccess, more: Partial<PullImage> & { signal?: AbortSignal } = {}) {
    const { signal = forever, ...changed } = more
    const progress = new Progress()
    const request = { reference, access, maxBytes: 1e12, ...changed }
    const image = await pull(this.images, request, signal, progress, times)
    const steps: readonly ImageStep[] = progress.take()
    return { image, steps }
  }

  /** What is wrong with it. */
  async problems(): Promise<readonly string[]> {
    return (await fsck(this.images, false, forever)).problems
  }

  /** Names of blobs, layers, parts and images that are here. */
  inventory() {
    const names = (path: string) => readdirSync(join(this.directory, path)).sort()
    const blobs = names('blobs/sha256').filter((name) => !name.endsWith('.json'))
    return {
      blobs,
      layers: names('layers/sha256'),
      partial: names('partial'),
      images: names('images'),
      incoming: names('incoming'),
    }
  }

  /** Removes all that were opened, whatever became of their test. */
  static removeAll(): void {
    for (const directory of opened) rmSync(directory, { recursive: true, force: true })
    opened.clear()
  }
}

const openImages = (directory: string) => Images.open(directory, join(directory, 'layout'), berthLayer)
