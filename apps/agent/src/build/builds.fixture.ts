// builds.fixture.ts: a node that builds: real containers, a store of images with busybox in it, and what is told of a build.

import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { BuildId, BuildStep, GiB, type HeldImage, MiB, mintId, NodeBuild, type TenantId } from '@berth/contracts'
import { createLogger, type Logger } from '@berth/telemetry'
import { Images } from '../images/images.js'
import { importRoot } from '../images/import.js'
import { tarOf } from '../images/registry.fixture.js'
import { berthLayer, forever } from '../images/store.fixture.js'
import { newNodeDirectory, newTenant, TestNode } from '../sandbox/node.fixture.js'
import { Turns } from '../sandbox/turns.js'
import { Builds } from './builds.js'
import { LayerTree } from './layer-tree.js'
import { follow } from './tree.js'

export const newBuild = () => BuildId.parse(mintId('build', Date.now(), randomBytes(10)))

export interface WantedBuild extends Partial<Omit<NodeBuild, 'secrets' | 'dockerfileText'>> {
  readonly id?: BuildId
  /** The context. */
  readonly files?: Readonly<Record<string, string | Buffer | null>>
  /** As text. */
  readonly secrets?: Readonly<Record<string, string>>
  readonly signal?: AbortSignal
  readonly onStep?: (step: BuildStep) => void
}

/** What was told of a build. */
export class Told {
  constructor(readonly steps: readonly BuildStep[]) {}

  get image(): HeldImage {
    const last = this.steps.at(-1)
    if (last?.step !== 'done') throw new Error(`not built: ${JSON.stringify(last)}\n${this.output}`)
    return last.image
  }

  get failed() {
    const last = this.steps.at(-1)
    if (last?.step !== 'failed') throw new Error(`not failed: ${last?.step}`)
    return last
  }

  /** What its commands wrote. */
  get output(): string {
    return this.steps.map((step) => (step.step === 'output' ? step.data : '')).join('')
  }

  /** Names of the steps that were made, and of those that were made before. */
  get made(): readonly string[] {
    return this.#names('end')
  }

  get cached(): readonly string[] {
    return this.#names('cached').filter((name) => !/^\[[^\]]*\] FROM/.test(name))
  }

  #names(kind: 'end' | 'cached'): readonly string[] {
    const names = new Map(this.steps.flatMap((step) => (step.step === 'begin' ? [[step.vertex, step.name]] : [])))
    return this.steps.flatMap((step) => (step.step === kind ? [names.get(step.vertex) ?? ''] : []))
  }
}

export class TestBuilder {
  readonly tenantId: TenantId = newTenant()
  readonly stranger: TenantId = newTenant()
  readonly newTenant = newTenant

  private constructor(
    readonly place: ReturnType<typeof newNodeDirectory>,
    readonly node: TestNode,
    readonly images: Images,
    readonly builds: Builds,
    readonly busybox: HeldImage,
  ) {}

  static async open(place = newNodeDirectory(), options: { log?: Logger; idleMs?: number } = {}): Promise<TestBuilder> {
    const { log = createLogger({ name: 'agent', level: 'silent' }), ...more } = options
    const node = await TestNode.open({ ...place, log })
    const dataDirectory = join(place.directory, 'agent')
    const images = await Images.open(dataDirectory, join(place.directory, 'layout'), berthLayer)
    const parts = { dataDirectory, shop: node.shop, starts: new Turns(4), images, mountBytes: GiB, log }
    const builds = await Builds.open({ ...parts, ...more })
    const root = execFileSync('tar', ['--sort=name', '--mtime=@1', '-C', join(place.directory, 'image'), '-c', '.'], {
      maxBuffer: 64 * MiB,
    })
    const busybox = await importRoot(images, Readable.from([root]), { env: ['PATH=/bin'] }, undefined, forever)
    return new TestBuilder(place, node, images, builds, busybox)
  }

  /** Builds, and reads what is told to the end. */
  async build(dockerfile: string, wanted: WantedBuild = {}): Promise<Told> {
    const { id = newBuild(), signal = forever, onStep } = wanted
    const references = await this.plan(id, dockerfile, wanted)
    const images = Object.fromEntries(references.map((reference) => [reference, this.busybox.digest]))
    const steps: BuildStep[] = []
    for await (const step of this.builds.solve(id, { images }, signal)) {
      steps.push(BuildStep.parse(step))
      onStep?.(step)
    }
    return new Told(steps)
  }

  /** Begins a build, and gives it its context. @returns the images that it needs */
  async plan(id: BuildId, dockerfile: string, wanted: WantedBuild = {}): Promise<readonly string[]> {
    const { id: _, files = {}, secrets = {}, signal = forever, onStep: __, ...more } = wanted
    const build = NodeBuild.parse({
      tenantId: this.tenantId,
      ids: { base: 1_000_000, count: 65_536 },
      tenantLimits: { memoryBytes: 4 * GiB, cpus: 2, pids: 4096 },
      secrets: Object.fromEntries(
        Object.entries(secrets).map(([name, text]) => [name, Buffer.from(text).toString('base64')]),
      ),
      limits: { cpus: 2, memoryBytes: 256 * MiB, pids: 256, diskBytes: 256 * MiB },
      runTimeoutMs: 60_000,
      parallel: 4,
      maxBytes: GiB,
      maxContextBytes: GiB,
      cacheBytes: GiB,
      ...more,
    })
    this.builds.begin(id, build)
    const context = await tarOf({ Dockerfile: dockerfile, ...files })
    return (await this.builds.context(id, Readable.from([context]), signal)).references
  }

  /** A file of an image as text; undefined where it has none. */
  async file(image: HeldImage, path: string): Promise<string | undefined> {
    const tree = await this.tree(image)
    const at = await follow(tree, path)
    if ((await tree.lstat(at))?.type !== 'file') return undefined
    const chunks: Uint8Array[] = []
    for await (const chunk of tree.read(at)) chunks.push(chunk)
    return Buffer.concat(chunks).toString()
  }

  tree(image: HeldImage): Promise<LayerTree> {
    return LayerTree.open(this.images.layerPaths(image.layers.map(({ diffId }) => diffId)), forever)
  }

  /** Names in the layer that a step made last. */
  async changed(image: HeldImage): Promise<readonly string[]> {
    const top = this.images.layers.path(image.layers.at(-1)?.diffId ?? '')
    const found = execFileSync('find', ['.', '-mindepth', '1'], { cwd: top, encoding: 'utf8' })
    return found.split('\n').filter(Boolean).sort()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async close(): Promise<void> {
    await this.builds.close()
    await this.node.destroy()
  }
}
