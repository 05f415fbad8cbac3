// make.ts: one step of a stage → the layer that it makes, now or before.
//
// The key of a step is a digest of the layers that it is made on, of what it does, and of the content that it copies; so
// what is made anew and comes out as before changes nothing that comes after it. Values of secrets are in no key.

import { createHash } from 'node:crypto'
import type { Readable } from 'node:stream'
import { type BuildId, Failure, type ImageLayer, invariant, type NodeBuild } from '@berth/contracts'
import type { BuildOp, BuildPlan, CopySource, Dockerfile } from '@berth/oci'
import { Budget } from '../images/budget.js'
import type { Exclusive } from '../images/exclusive.js'
import { addLayer } from '../images/ingest.js'
import { asErrand } from '../sandbox/errand.js'
import { Turns } from '../sandbox/turns.js'
import type { BuildCache, CachedStep } from './cache.js'
import type { Context } from './context.js'
import { copyLayer, workdirLayer } from './copy.js'
import { type Patterns, patternsOf } from './mask.js'
import { type MountParts, mountAll, mountsKey } from './mounts.js'
import { chainOf, fill, type Root, type RootParts } from './roots.js'
import { type CommandParts, runCommand } from './run.js'
import { CommandOutput, type StepStream } from './step-stream.js'
import { follow } from './tree.js'

export interface SolveParts extends CommandParts {
  readonly cache: BuildCache
  /** One at a time for each key of a tenant: two builds that come to the same step make it once. */
  readonly making: Exclusive
}

export interface Solving {
  readonly buildId: BuildId
  readonly build: NodeBuild
  readonly file: Dockerfile
  readonly plan: BuildPlan
  readonly context: Context
  readonly images: Readonly<Record<string, string>>
  /** Of the build, on the node; what is in it goes with it. */
  readonly directory: string
  readonly steps: StepStream
  /** Has a layer kept until the build is over. */
  readonly hold: (layer: ImageLayer) => void
  readonly signal: AbortSignal
}

/** What a step is made on. */
export interface Below {
  /** Lowest first. */
  readonly layers: readonly ImageLayer[]
  readonly root: Root
}

interface LayerBounds {
  readonly maxBytes: number
  readonly signal: AbortSignal
}

/** What became of a step: its image stays as it was, it was made before, or now. */
export type Made =
  | { readonly kind: 'nothing' }
  | { readonly kind: 'cached'; readonly step: CachedStep }
  | { readonly kind: 'made'; readonly step: CachedStep }

/** Of an image: overlayfs takes no more (libs/init/enter.c). */
const MAX_LAYERS = 500

/** SOURCE_DATE_EPOCH in milliseconds; undefined where it is not given. @throws Failure build_failed for what is no time */
export function epochOf({ args }: Pick<NodeBuild, 'args'>): number | undefined {
  const text = args.SOURCE_DATE_EPOCH
  if (text === undefined || text === '') return undefined
  if (!/^\d{1,11}$/.test(text))
    throw new Failure('build_failed', 'the argument SOURCE_DATE_EPOCH must be seconds since 1970')
  return Number(text) * 1000
}

/** Makes the steps of one build. */
export class Maker {
  readonly #parts: SolveParts
  readonly #solving: Solving
  readonly #rootOf: (from: CopySource) => Promise<Root>
  /** Of commands, and of all else that is made: that is the node's work, and does not wait for what a command waits for. */
  readonly #turns: { readonly commands: Turns; readonly copies: Turns }
  readonly #budget: Budget
  readonly #patterns: Patterns
  readonly #mounts: MountParts
  readonly #epochMs: number | undefined
  readonly #meanwhile: Promise<void>[] = []
  #commands = 0

  constructor(parts: SolveParts, solving: Solving, rootOf: (from: CopySource) => Promise<Root>) {
    const { build, signal } = solving
    this.#parts = parts
    this.#solving = solving
    this.#rootOf = rootOf
    this.#turns = { commands: new Turns(build.parallel), copies: new Turns(build.parallel) }
    // What is in no image in the end is cache.
    this.#budget = new Budget(build.maxBytes + build.cacheBytes)
    const secrets = new Map(Object.entries(build.secrets).map(([id, text]) => [id, Buffer.from(text, 'base64')]))
    this.#patterns = patternsOf(secrets.values())
    this.#epochMs = epochOf(build)
    this.#mounts = {
      rootOf,
      lend: (wanted) => parts.cache.lend(wanted),
      fill: (directory, from, path) => fill(rootParts(parts, solving), directory, from, path),
      secrets,
      tenantId: build.tenantId,
      ids: build.ids,
      memoryBytes: build.limits.memoryBytes,
      cacheBytes: build.cacheBytes,
      signal,
    }
  }

  /**
   * @param on what it is made on
   * @param vertex what its output is told of
   * @throws Failure of what is wrong with it; the signal's reason
   */
  make(on: Below, op: Exclude<BuildOp, { kind: 'config' }>, vertex: number): Promise<Made> {
    if (on.layers.length >= MAX_LAYERS)
      throw new Failure('build_failed', `an image cannot have more than ${MAX_LAYERS} layers`)
    switch (op.kind) {
      case 'workdir':
        return this.#workdir(on, op)
      case 'copy':
        return this.#copy(on, op)
      case 'run':
        return this.#run(on, op, vertex)
    }
  }

  async #workdir(on: Below, op: BuildOp & { kind: 'workdir' }): Promise<Made> {
    const tree = await on.root.tree()
    if ((await tree.lstat(await follow(tree, op.path)))?.type === 'directory') return { kind: 'nothing' }
    const owner = op.config.User ?? ''
    const key = this.#key('workdir', chainOf(on.layers), op.path, owner)
    return this.#layered(key, op, async (limits) => {
      const made = await workdirLayer(tree, op.path, owner, { newestMs: this.#newestMs, signal: limits.signal })
      invariant(made, 'the directory was not there')
      return this.#inTurn('copies', () => this.#taken(made.tar(), limits))
    })
  }

  async #copy(on: Below, op: BuildOp & { kind: 'copy' }): Promise<Made> {
    const { signal } = this.#solving
    const root = await this.#rootOf(op.from)
    const { destination, chown, chmod, link, extract, parents, sources, inline, exclude } = op
    const how = [destination, chown, chmod, link, extract, parents]
    const onto = chainOf(on.layers)
    // Of layers that are as before nothing need be read to know that what is copied of them is too.
    const whole = op.from.kind === 'context' ? undefined : await root.keyOf('')
    const quick = whole && this.#key('copy of', onto, whole, JSON.stringify([how, sources, inline, exclude]))
    const found = quick && (await this.#known(quick))
    if (found) return found
    const copy = copyLayer({
      from: await root.tree(),
      onto: await on.root.tree(),
      ...{ op, newestMs: this.#newestMs, signal },
    })
    // What is linked is the same whatever it is put on.
    const content = await this.#inTurn('copies', () => copy.key)
    const key = this.#key('copy', link ? '' : onto, content, JSON.stringify(how))
    const made = await this.#layered(key, op, (limits) => this.#inTurn('copies', () => this.#taken(copy.tar(), limits)))
    if (quick) await this.#parts.cache.put(this.#solving.build.tenantId, quick, made.step)
    return made
  }

  /** A layer of what the agent has written as a tar; unpacking it is the tenant's own work, as its commands are. */
  #taken(tar: Readable, { maxBytes, signal }: LayerBounds): Promise<ImageLayer> {
    const { tenantId } = this.#solving.build
    return asErrand(this.#parts, tenantId, signal, (groups) =>
      addLayer(this.#parts.images, tar, { maxBytes, groups, signal }),
    )
  }

  async #run(on: Below, op: BuildOp & { kind: 'run' }, vertex: number): Promise<Made> {
    const { argv, usedArgs, workingDir, user, network, script, config } = op
    const what = [argv, config.Env ?? [], usedArgs, workingDir, user, network, script]
    const mounts = await mountsKey(this.#mounts, op.mounts)
    const key = this.#key('run', chainOf(on.layers), JSON.stringify(what), ...mounts)
    return this.#layered(key, op, (limits) =>
      this.#inTurn('commands', () => this.#command(on, op, vertex, limits.maxBytes)),
    )
  }

  async #command(on: Below, op: BuildOp & { kind: 'run' }, vertex: number, maxBytes: number): Promise<ImageLayer> {
    const { buildId, build, directory, steps, signal } = this.#solving
    const root = on.root
    const mounted = await mountAll(this.#mounts, op, root)
    const output = new CommandOutput(steps, vertex, this.#patterns)
    try {
      const command = {
        ...{ buildId, directory, maxBytes, signal },
        tenantId: build.tenantId,
        ids: build.ids,
        number: this.#commands++,
        limits: build.limits,
        newPrivileges: build.newPrivileges,
        timeoutMs: build.runTimeoutMs,
        layers: await root.directories(),
        argv: op.argv,
        env: { ...op.env, ...mounted.env },
        workingDir: op.workingDir,
        user: op.user,
        tmpfs: mounted.tmpfs,
        attachments: mounted.attachments,
        ways: mounted.ways,
        output: output.sinks,
        meanwhile: (work: Promise<void>) => void this.#meanwhile.push(work),
        newestMs: this.#epochMs,
      }
      return await runCommand(this.#parts, command, () => output.end())
    } finally {
      mounted.release()
    }
  }

  /** Resolves when nothing of any command is left. */
  async settled(): Promise<void> {
    await Promise.all(this.#meanwhile)
  }

  /** What a step has made before. */
  async #known(key: string): Promise<Extract<Made, { kind: 'cached' }> | undefined> {
    const { build, hold } = this.#solving
    const step = build.noCache ? undefined : await this.#parts.cache.find(build.tenantId, key)
    if (!step) return undefined
    hold(step.layer)
    return { kind: 'cached', step }
  }

  /** What a step has made, by now or before. */
  async #layered(
    key: string,
    op: BuildOp,
    make: (limits: LayerBounds) => Promise<ImageLayer>,
  ): Promise<Exclude<Made, { kind: 'nothing' }>> {
    const { cache, making, log } = this.#parts
    const { buildId, build, hold, signal } = this.#solving
    const { tenantId } = build
    const known = await this.#known(key)
    if (known) return known
    return making.run(`${tenantId} ${key}`, signal, async () => {
      const meanwhile = await this.#known(key)
      if (meanwhile) return meanwhile
      const layer = await make({ maxBytes: this.#budget.left, signal })
      hold(layer)
      log.debug({ build: buildId, diffId: layer.diffId }, 'build.made')
      this.#budget.take(layer.unpackedBytes)
      const step = { createdAt: new Date().toISOString(), description: op.name, layer }
      await cache.put(tenantId, key, step)
      log.debug({ build: buildId, key }, 'build.kept')
      return { kind: 'made', step }
    })
  }

  async #inTurn<T>(of: 'commands' | 'copies', work: () => Promise<T>): Promise<T> {
    const turns = this.#turns[of]
    await turns.take(this.#solving.signal)
    try {
      return await work()
    } finally {
      turns.release()
    }
  }

  get #newestMs(): number {
    return this.#epochMs ?? Date.now()
  }

  #key(...parts: readonly string[]): string {
    const whole = JSON.stringify([this.#epochMs ?? null, ...parts])
    return createHash('sha256').update(whole).digest('hex')
  }
}

/** What roots of a build are made with. */
export const rootParts = ({ images }: SolveParts, { directory, build, signal }: Solving): RootParts => ({
  ...{ images, directory, signal },
  maxContextBytes: build.maxContextBytes,
})
