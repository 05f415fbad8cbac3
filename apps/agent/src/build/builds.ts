// builds.ts: the builds that are going on. Each lives as long as its caller's requests: it ends with the one that is open, and
// a minute after the last where no next one comes. Nothing of a build outlives its agent but cache: what a killed one
// leaves is removed by recovery (containers, layers of the pool, control groups) and by `open` (files).

import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import {
  type BuildId,
  type BuildReferences,
  type BuildStep,
  Failure,
  type ImageLayer,
  MAX_DOCKERFILE_BYTES,
  MiB,
  type NodeBuild,
  type SolveBuild,
  type TenantId,
} from '@berth/contracts'
import { NODE_BUILDS } from '@berth/domain'
import { removeTree } from '@berth/host'
import { type BuildPlan, type Dockerfile, parseDockerfile, parseIgnore, planBuild } from '@berth/oci'
import { orNoRoom } from '../images/content.js'
import { Exclusive } from '../images/exclusive.js'
import { nodePlatform } from '../images/images.js'
import { BuildCache } from './cache.js'
import { Context, ContextMemory } from './context.js'
import { epochOf, type SolveParts } from './make.js'
import type { CommandParts } from './run.js'
import { solve } from './solve.js'
import { StepStream } from './step-stream.js'
import { clamped, readSmall, type Tree } from './tree.js'

export interface BuildsParts extends CommandParts {
  /** The agent's data directory. */
  readonly dataDirectory: string
  /** Most bytes that all tenants may keep in cache mounts, of the pool. */
  readonly mountBytes: number
  /** How long a build waits for its next request, in milliseconds. Default: a minute. */
  readonly idleMs?: number
}

interface Build {
  readonly id: BuildId
  readonly wanted: NodeBuild
  readonly directory: string
  readonly abort: AbortController
  /** Layers that must not be collected. */
  readonly held: Map<string, ImageLayer>
  context: Context | undefined
  /** Once the context was read. */
  planned: { readonly file: Dockerfile; readonly plan: BuildPlan } | undefined
  /** Resolves when the request that is open has come to its end; undefined while none is. */
  working: Promise<void> | undefined
  idle: NodeJS.Timeout | undefined
  /** Resolves when nothing of it is left. */
  ending: Promise<void> | undefined
}

/**
 * Builds that a node takes at once. The API places no more than `NODE_BUILDS`, and shares them between tenants; some besides may be
 * over for it whose files are still being removed here.
 */
const MAX_BUILDS = 1.5 * NODE_BUILDS.all
const IDLE_MS = 60_000
/** Entries of all contexts of one tenant at a time: those of one large build, and others have their share. */
const CONTEXT_ENTRIES = 600_000
const MAX_IGNORE_BYTES = 1 * MiB

export class Builds {
  readonly #parts: BuildsParts
  readonly #root: string
  readonly #builds = new Map<BuildId, Build>()
  readonly #making = new Exclusive()
  readonly #memory = new ContextMemory()
  /** Of tenants that have builds. */
  readonly #memories = new Map<TenantId, ContextMemory>()
  readonly #digests = () => this.#held()
  #cache: BuildCache | undefined
  #closed = false

  private constructor(parts: BuildsParts) {
    this.#parts = parts
    this.#root = join(parts.dataDirectory, 'builds')
  }

  /** To be called once recovery is over. Removes what builds of a killed agent have left. */
  static async open(parts: BuildsParts): Promise<Builds> {
    const builds = new Builds(parts)
    await removeTree(builds.#root)
    mkdirSync(builds.#root, { mode: 0o700 })
    const { dataDirectory, images, shop, mountBytes } = parts
    const inUse = () => new Set([...builds.#builds.values()].flatMap(({ held }) => [...held.keys()]))
    builds.#cache = await BuildCache.open({ dataDirectory, images, pool: shop.pool, mountBytes, inUse })
    images.keepers.add(builds.#digests)
    return builds
  }

  get cache(): BuildCache {
    if (!this.#cache) throw new Failure('unavailable', 'the node has not started yet')
    return this.#cache
  }

  /** @throws Failure id_taken, no_capacity, platform_unsupported; build_failed for an epoch that is none */
  begin(id: BuildId, wanted: NodeBuild): void {
    if (this.#closed) throw new Failure('unavailable', 'the node is going down')
    if (this.#builds.has(id)) throw new Failure('id_taken', `there is a build ${id} already`)
    if (this.#builds.size >= MAX_BUILDS)
      throw new Failure('no_capacity', `the node is at ${MAX_BUILDS} builds already, and takes no more`)
    if (wanted.platform !== undefined && wanted.platform !== nodePlatform)
      throw new Failure('platform_unsupported', `this node builds for ${nodePlatform}, and not for ${wanted.platform}`)
    epochOf(wanted)
    const directory = join(this.#root, id)
    try {
      mkdirSync(directory, { mode: 0o700 })
    } catch (error) {
      throw orNoRoom(error)
    }
    const { tenants } = this.#parts.shop
    tenants.limit(wanted.tenantId, wanted.tenantLimits)
    tenants.hold(wanted.tenantId)
    const build: Build = {
      ...{ id, wanted, directory },
      abort: new AbortController(),
      held: new Map(),
      context: undefined,
      planned: undefined,
      working: undefined,
      idle: undefined,
      ending: undefined,
    }
    this.#builds.set(id, build)
    this.#await(build)
  }

  /**
   * Takes in the context, and reads its Dockerfile. A build whose context is refused has ended.
   * @throws Failure context_invalid, dockerfile_invalid, no_capacity, build_not_found, wrong_state, build_canceled
   */
  async context(id: BuildId, body: Readable, caller: AbortSignal): Promise<BuildReferences> {
    const build = this.#find(id)
    if (build.context) throw new Failure('wrong_state', `build ${id} has its context already`)
    try {
      const { references, places } = await this.#work(build, caller, (signal) => this.#plan(build, body, signal))
      const told = [...places].map(([reference, { line, text = '' }]) => {
        return [reference, { line, instruction: text.trimEnd().slice(0, 4096) }] as const
      })
      return { references: [...references], places: Object.fromEntries(told) }
    } catch (error) {
      await this.#end(build)
      throw orNoRoom(error)
    }
  }

  /** Makes the image, and tells of it. The build has ended when this does. @throws as `context` */
  async *solve(id: BuildId, { images }: SolveBuild, caller: AbortSignal): AsyncGenerator<BuildStep> {
    const build = this.#find(id)
    const { planned, context, wanted, directory } = build
    if (!planned || !context) throw new Failure('wrong_state', `build ${id} needs its context first`)
    const steps = new StepStream()
    const over = this.#work(build, caller, async (signal) => {
      signal.addEventListener('abort', () => steps.cut(), { once: true })
      for (const warning of planned.plan.warnings) void steps.push({ step: 'warning', ...warning })
      const { cache } = this
      const hold = (layer: ImageLayer) => void build.held.set(layer.diffId, layer)
      const parts: SolveParts = { ...this.#parts, cache, making: this.#making }
      const solving = { buildId: id, build: wanted, directory, ...planned, context, images, steps, hold, signal }
      return solve(parts, solving)
    }).then(
      (image): BuildStep => ({ step: 'done', image }),
      (error: unknown) => this.#failed(build, error),
    )
    void over.then((last) => steps.end(last))
    try {
      yield* steps
    } finally {
      await this.#end(build)
    }
  }

  /** Ends a build at once; one that is not known has ended. Resolves when nothing of it is left. */
  async cancel(id: BuildId): Promise<void> {
    const build = this.#builds.get(id)
    if (build) await this.#end(build)
  }

  /** Ends all of them. */
  async close(): Promise<void> {
    this.#closed = true
    await Promise.all([...this.#builds.values()].map((build) => this.#end(build)))
    this.#parts.images.keepers.delete(this.#digests)
  }

  *#held(): Iterable<string> {
    yield* this.cache.digests()
    for (const { held } of this.#builds.values())
      for (const { diffId, digest } of held.values()) {
        yield diffId
        yield digest
      }
  }

  #find(id: BuildId): Build {
    const build = this.#builds.get(id)
    if (!build || build.ending)
      throw new Failure('build_not_found', `there is no build ${id} on this node, or it has ended`)
    if (build.working) throw new Failure('wrong_state', `another request for build ${id} is open`)
    return build
  }

  /** Does what a request asks for; it ends with its caller, and with the build. */
  async #work<T>(build: Build, caller: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    clearTimeout(build.idle)
    const signal = AbortSignal.any([caller, build.abort.signal])
    const working = work(signal)
    build.working = working.then(
      () => undefined,
      () => undefined,
    )
    try {
      return await working
    } catch (error) {
      throw build.abort.signal.aborted ? build.abort.signal.reason : error
    } finally {
      build.working = undefined
      this.#await(build)
    }
  }

  /** For its next request. */
  #await(build: Build): void {
    if (build.ending) return
    build.idle = setTimeout(() => void this.#end(build), this.#parts.idleMs ?? IDLE_MS).unref()
  }

  async #plan(build: Build, body: Readable, signal: AbortSignal): Promise<BuildPlan> {
    const { tenantId, maxContextBytes, target, args } = build.wanted
    const { content } = this.#parts.images
    const memory = this.#memories.get(tenantId) ?? new ContextMemory(CONTEXT_ENTRIES, this.#memory)
    this.#memories.set(tenantId, memory)
    const context = await Context.receive(content, body, { maxBytes: maxContextBytes, memory, signal })
    build.context = context
    const file = await readDockerfile(context, build.wanted)
    const plan = planBuild(file, { target, args, platform: nodePlatform })
    build.planned = { file, plan }
    return plan
  }

  #end(build: Build): Promise<void> {
    build.ending ??= this.#remove(build).catch((err: unknown) =>
      this.#parts.log.error({ build: build.id, err }, 'build.release_failed'),
    )
    return build.ending
  }

  async #remove(build: Build): Promise<void> {
    const { id, wanted, directory } = build
    clearTimeout(build.idle)
    build.abort.abort(new Failure('build_canceled', 'the build was canceled'))
    await build.working
    try {
      await build.context?.close()
      await removeTree(directory)
    } finally {
      this.#builds.delete(id)
      if (![...this.#builds.values()].some((other) => other.wanted.tenantId === wanted.tenantId))
        this.#memories.delete(wanted.tenantId)
      this.#parts.shop.tenants.release(wanted.tenantId)
    }
    if (build.planned) await this.cache.prune(wanted.tenantId, { keepBytes: wanted.cacheBytes })
  }

  #failed({ id }: Build, thrown: unknown): BuildStep {
    const error = orNoRoom(thrown)
    const place = { line: null, instruction: null }
    if (!(error instanceof Failure)) {
      this.#parts.log.error({ build: id, err: error }, 'build.failed')
      return { step: 'failed', code: 'internal_error', message: 'see the log of the node', ...place }
    }
    const { code, message, data } = error
    const line = typeof data.line === 'number' ? data.line : null
    const instruction = typeof data.instruction === 'string' ? data.instruction.slice(0, 4096) : null
    return { step: 'failed', code, message: message.slice(0, 16 * 1024), line, instruction }
  }
}

const DEFAULT_DOCKERFILE = 'Dockerfile'

/** Reads the Dockerfile, which may be ignored itself, and takes out of the context what is. */
async function readDockerfile(
  context: Context,
  { dockerfile, dockerfileText }: Pick<NodeBuild, 'dockerfile' | 'dockerfileText'>,
): Promise<Dockerfile> {
  const wanted = clamped(dockerfile)
  const given = dockerfileText ?? (await textOf(context, wanted, MAX_DOCKERFILE_BYTES))
  // Where there is no `Dockerfile`, `dockerfile` is one, as with Docker.
  const path = given === undefined && wanted === DEFAULT_DOCKERFILE ? wanted.toLowerCase() : wanted
  const text = given ?? (await textOf(context, path, MAX_DOCKERFILE_BYTES))
  if (text === undefined) throw new Failure('dockerfile_invalid', `there is no file ${wanted} in the context`)
  const ignored =
    (dockerfileText === null ? await textOf(context, `${path}.dockerignore`, MAX_IGNORE_BYTES) : undefined) ??
    (await textOf(context, '.dockerignore', MAX_IGNORE_BYTES))
  const ignore = ignored === undefined ? undefined : parseIgnore(ignored)
  if (ignore) await context.leaveOut((one) => ignore.ignores(one))
  return parseDockerfile(text)
}

async function textOf(context: Tree, path: string, most: number): Promise<string | undefined> {
  const bytes = await readSmall(context, path, most).catch((error: unknown) => {
    throw error instanceof Failure ? new Failure('context_invalid', error.message) : error
  })
  return bytes?.toString()
}
