// solve.ts: a plan → an image. Stages are made as soon as those that they need are, some commands at once; a step whose key
// is known was made before, and costs a look at the cache. The first failure ends all else.
//
// The key of a step is a digest of the layers that it is made on, of what it does, and of the content that it copies; so
// what is made anew and comes out as before changes nothing that comes after it. Values of secrets are in no key.

import { createHash } from 'node:crypto'
import {
  type BuildId,
  type BuildStep,
  Failure,
  type HeldImage,
  ImageDigest,
  type ImageLayer,
  invariant,
  type NodeBuild,
} from '@berth/contracts'
import {
  type BuildOp,
  type BuildPlan,
  type CopySource,
  checkPlatform,
  type Dockerfile,
  evaluateStage,
  type ImageConfig,
  type PlannedStage,
  type StageBase,
} from '@berth/oci'
import { Budget, tooMuch } from '../images/budget.js'
import type { Exclusive } from '../images/exclusive.js'
import { nodePlatform } from '../images/images.js'
import { addLayer } from '../images/ingest.js'
import { Turns } from '../sandbox/turns.js'
import type { BuildCache, CachedStep } from './cache.js'
import type { Context } from './context.js'
import { copyLayer, workdirLayer } from './copy.js'
import { type Patterns, patternsOf } from './mask.js'
import { type MountParts, mountAll, mountsKey } from './mounts.js'
import { type HistoryStep, imageConfig } from './result.plan.js'
import { chainOf, contextRoot, fill, layersRoot, type Root, type RootParts } from './roots.js'
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

/** What a stage has come to. */
interface Stage {
  readonly base: StageBase
  readonly image: ImageConfig | undefined
  /** How many of the layers are those of an image. */
  readonly given: number
  readonly layers: readonly ImageLayer[]
  readonly history: readonly HistoryStep[]
  readonly author: string | null
}

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

/**
 * Makes the image. Everything that runs for it has ended when this settles.
 * @throws Failure of what went wrong, with line and instruction in its data; the signal's reason
 */
export async function solve(parts: SolveParts, solving: Solving): Promise<HeldImage> {
  const failing = new AbortController()
  const signal = AbortSignal.any([solving.signal, failing.signal])
  const solver = new Solver(parts, { ...solving, signal })
  const stages = solving.plan.stages.map((stage) =>
    solver.stage(stage).catch((error: unknown) => {
      if (!failing.signal.aborted) failing.abort(error)
      throw error
    }),
  )
  await Promise.allSettled(stages)
  await solver.settled()
  if (solving.signal.aborted) throw solving.signal.reason
  if (failing.signal.aborted) throw failing.signal.reason
  return solver.image(await stages[stages.length - 1])
}

class Solver {
  readonly #parts: SolveParts
  readonly #solving: Solving
  readonly #stages = new Map<number, Promise<Stage>>()
  readonly #images = new Map<string, Promise<Stage>>()
  readonly #roots = new Map<Stage, Root>()
  readonly #context: Root
  /** Of commands, and of all else that is made: that is the node's work, and does not wait for what a command waits for. */
  readonly #turns: { readonly commands: Turns; readonly copies: Turns }
  readonly #budget: Budget
  readonly #patterns: Patterns
  readonly #mounts: MountParts
  readonly #epochMs: number | undefined
  readonly #meanwhile: Promise<void>[] = []
  #vertices = 0
  #commands = 0

  constructor(parts: SolveParts, solving: Solving) {
    this.#parts = parts
    this.#solving = solving
    const { build, context, signal } = solving
    this.#context = contextRoot(this.#rootParts, context)
    this.#turns = { commands: new Turns(build.parallel), copies: new Turns(build.parallel) }
    // What is in no image in the end is cache.
    this.#budget = new Budget(build.maxBytes + build.cacheBytes)
    const secrets = new Map(Object.entries(build.secrets).map(([id, text]) => [id, Buffer.from(text, 'base64')]))
    this.#patterns = patternsOf(secrets.values())
    this.#epochMs = epochOf(build)
    this.#mounts = {
      rootOf: (from) => this.#rootOf(from),
      lend: (wanted) => parts.cache.lend(wanted),
      fill: (directory, from, path) => fill(this.#rootParts, directory, from, path),
      secrets,
      tenantId: build.tenantId,
      ids: build.ids,
      memoryBytes: build.limits.memoryBytes,
      cacheBytes: build.cacheBytes,
      signal,
    }
  }

  get #rootParts(): RootParts {
    const { directory, build, signal } = this.#solving
    return { images: this.#parts.images, directory, maxContextBytes: build.maxContextBytes, signal }
  }

  /** Makes a stage, those that it needs before. Each is asked for once. */
  stage(stage: PlannedStage): Promise<Stage> {
    const made = this.#stage(stage)
    this.#stages.set(stage.index, made)
    return made
  }

  /** Resolves when nothing of any command is left. */
  async settled(): Promise<void> {
    await Promise.all(this.#meanwhile)
  }

  /** The image that a stage has come to. */
  async image(stage: Stage | undefined): Promise<HeldImage> {
    invariant(stage, 'a plan has a stage')
    const { build, signal } = this.#solving
    const { layers, given, base, author, history, image } = stage
    if (layers.length === 0) throw new Failure('build_failed', 'the image has no files: nothing was copied or run')
    const added = layers.slice(given).reduce((sum, { unpackedBytes }) => sum + unpackedBytes, 0)
    if (added > build.maxBytes) throw tooMuch()
    const config = imageConfig({
      base: image,
      platform: nodePlatform,
      config: base.config,
      labels: build.labels,
      author,
      layers,
      history,
      epochMs: this.#epochMs,
    })
    return this.#parts.images.assemble(config, layers, signal)
  }

  async #stage(planned: PlannedStage): Promise<Stage> {
    const { file, build, plan, signal } = this.#solving
    const base = await this.#base(planned)
    signal.throwIfAborted()
    const options = { target: build.target, args: build.args, platform: nodePlatform }
    const { ops, config, scope, author, warnings } = evaluateStage(file, planned, base.base, options)
    for (const warning of warnings) this.#tell({ step: 'warning', ...warning })
    const shown = ops.filter(({ kind }) => kind !== 'config').length + 1
    const prefix = (at: number) =>
      `[${[...(plan.stages.length > 1 ? [planned.name ?? `stage-${planned.index}`] : []), `${at}/${shown}`].join(' ')}]`
    this.#from(planned, prefix(1))
    let stage: Stage = { ...base, author: author ?? base.author }
    let at = 1
    for (const op of ops) {
      signal.throwIfAborted()
      if (op.kind !== 'config') at += 1
      stage = await this.#step(stage, op, `${prefix(at)} ${op.name}`, planned)
    }
    return { ...stage, base: { config, scope } }
  }

  #needed(index: number): Promise<Stage> {
    const stage = this.#stages.get(index)
    invariant(stage, 'a plan has what its stages need, before them')
    return stage
  }

  async #base({ from, line }: PlannedStage): Promise<Stage> {
    if (from.kind === 'stage') return this.#needed(from.index)
    if (from.kind === 'image') return placed(line, `FROM ${from.reference}`, () => this.#image(from.reference))
    return { base: { config: {} }, image: undefined, given: 0, layers: [], history: [], author: null }
  }

  /** An image that the build begins with or copies from. */
  #image(reference: string): Promise<Stage> {
    const known = this.#images.get(reference) ?? this.#readImage(reference)
    this.#images.set(reference, known)
    return known
  }

  async #readImage(reference: string): Promise<Stage> {
    const { images } = this.#parts
    const digest = ImageDigest.safeParse(this.#solving.images[reference])
    if (!digest.success) throw new Failure('image_not_found', `nobody said which image ${reference} is`)
    const { manifest, image } = await images.get(digest.data)
    const { config } = await images.documents(manifest)
    checkPlatform(config, nodePlatform)
    for (const layer of image.layers) this.#solving.hold(layer)
    const { layers } = image
    return {
      base: { config: config.config },
      image: config,
      given: layers.length,
      layers,
      history: [],
      author: null,
    }
  }

  async #rootOf(from: CopySource): Promise<Root> {
    if (from.kind === 'context') return this.#context
    return this.#rootOfStage(await (from.kind === 'stage' ? this.#needed(from.index) : this.#image(from.reference)))
  }

  #rootOfStage(stage: Stage): Root {
    const root = this.#roots.get(stage) ?? layersRoot(this.#rootParts, stage.layers)
    this.#roots.set(stage, root)
    return root
  }

  #from({ from, name }: PlannedStage, prefix: string): void {
    const what = from.kind === 'image' ? from.reference : from.kind === 'stage' ? `stage ${from.index}` : 'scratch'
    this.#tell({ step: 'cached', vertex: this.#begin(`${prefix} FROM ${what}`, name) })
  }

  async #step(stage: Stage, op: BuildOp, name: string, planned: PlannedStage): Promise<Stage> {
    if (op.kind === 'config')
      return { ...stage, history: [...stage.history, { created: null, text: op.text, emptyLayer: true }] }
    // It begins when what it is made of is there.
    for (const from of sourcesOf(op)) await this.#rootOf(from)
    const vertex = this.#begin(name, planned.name)
    const began = performance.now()
    try {
      const made = await placed(op.line, op.name, () => this.#make(stage, op, vertex))
      // A directory that is there already is as good as made before.
      if (made.kind === 'made') this.#end(vertex, began, made.step.layer, op.kind === 'run' ? 0 : null)
      else this.#tell({ step: 'cached', vertex })
      return grown(stage, op, made)
    } catch (error) {
      this.#failed(vertex, began, error)
      throw error
    }
  }

  #make(stage: Stage, op: Exclude<BuildOp, { kind: 'config' }>, vertex: number): Promise<Made> {
    if (stage.layers.length >= MAX_LAYERS)
      throw new Failure('build_failed', `an image cannot have more than ${MAX_LAYERS} layers`)
    switch (op.kind) {
      case 'workdir':
        return this.#workdir(stage, op)
      case 'copy':
        return this.#copy(stage, op)
      case 'run':
        return this.#run(stage, op, vertex)
    }
  }

  async #workdir(stage: Stage, op: BuildOp & { kind: 'workdir' }): Promise<Made> {
    const tree = await this.#rootOfStage(stage).tree()
    if ((await tree.lstat(await follow(tree, op.path)))?.type === 'directory') return { kind: 'nothing' }
    const owner = op.config.User ?? ''
    const key = this.#key('workdir', chainOf(stage.layers), op.path, owner)
    return this.#layered(key, op, async (limits) => {
      const made = await workdirLayer(tree, op.path, owner, { newestMs: this.#newestMs, signal: limits.signal })
      invariant(made, 'the directory was not there')
      return this.#inTurn('copies', () => addLayer(this.#parts.images, made.tar(), limits))
    })
  }

  async #copy(stage: Stage, op: BuildOp & { kind: 'copy' }): Promise<Made> {
    const { signal } = this.#solving
    const root = await this.#rootOf(op.from)
    const { destination, chown, chmod, link, extract, parents, sources, inline, exclude } = op
    const how = [destination, chown, chmod, link, extract, parents]
    const onto = chainOf(stage.layers)
    // Of layers that are as before nothing need be read to know that what is copied of them is too.
    const whole = op.from.kind === 'context' ? undefined : await root.keyOf('')
    const quick = whole && this.#key('copy of', onto, whole, JSON.stringify([how, sources, inline, exclude]))
    const found = quick && (await this.#known(quick))
    if (found) return found
    const copy = copyLayer({
      from: await root.tree(),
      onto: await this.#rootOfStage(stage).tree(),
      ...{ op, newestMs: this.#newestMs, signal },
    })
    // What is linked is the same whatever it is put on.
    const content = await this.#inTurn('copies', () => copy.key)
    const key = this.#key('copy', link ? '' : onto, content, JSON.stringify(how))
    const made = await this.#layered(key, op, (limits) =>
      this.#inTurn('copies', () => addLayer(this.#parts.images, copy.tar(), limits)),
    )
    if (quick) await this.#parts.cache.put(this.#solving.build.tenantId, quick, made.step)
    return made
  }

  async #run(stage: Stage, op: BuildOp & { kind: 'run' }, vertex: number): Promise<Made> {
    const { argv, usedArgs, workingDir, user, network, script, config } = op
    const what = [argv, config.Env ?? [], usedArgs, workingDir, user, network, script]
    const mounts = await mountsKey(this.#mounts, op.mounts)
    const key = this.#key('run', chainOf(stage.layers), JSON.stringify(what), ...mounts)
    return this.#layered(key, op, (limits) =>
      this.#inTurn('commands', () => this.#command(stage, op, vertex, limits.maxBytes)),
    )
  }

  async #command(stage: Stage, op: BuildOp & { kind: 'run' }, vertex: number, maxBytes: number): Promise<ImageLayer> {
    const { buildId, build, directory, steps, signal } = this.#solving
    const root = this.#rootOfStage(stage)
    const mounted = await mountAll(this.#mounts, op, root)
    const output = new CommandOutput(steps, vertex, this.#patterns)
    try {
      const command = {
        ...{ buildId, directory, maxBytes, signal },
        tenantId: build.tenantId,
        ids: build.ids,
        number: this.#commands++,
        limits: build.limits,
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
    make: (limits: { readonly maxBytes: number; readonly signal: AbortSignal }) => Promise<ImageLayer>,
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

  #begin(name: string, stage: string | null): number {
    const vertex = this.#vertices++
    this.#tell({ step: 'begin', vertex, name: name.slice(0, 4096), stage, at: new Date().toISOString() })
    return vertex
  }

  #end(vertex: number, began: number, { diffId, unpackedBytes }: ImageLayer, exitCode: number | null): void {
    this.#tell({ ...ended(vertex, began), exitCode, layer: { diffId, bytes: unpackedBytes } })
  }

  #failed(vertex: number, began: number, error: unknown): void {
    const isOurs = error instanceof Failure && !this.#solving.signal.aborted
    const exitCode = isOurs && typeof error.data.exitCode === 'number' ? error.data.exitCode : null
    const why = error instanceof Failure ? error.message.slice(0, 4096) : 'see the log of the node'
    this.#tell({ ...ended(vertex, began), exitCode, error: isOurs ? why : 'it was ended with the build' })
  }

  /** Waits for no reader: but for output, which does, steps are few. */
  #tell(step: BuildStep): void {
    void this.#solving.steps.push(step)
  }
}

/** What became of a step: its image stays as it was, it was made before, or now. */
type Made =
  | { readonly kind: 'nothing' }
  | { readonly kind: 'cached'; readonly step: CachedStep }
  | { readonly kind: 'made'; readonly step: CachedStep }

/** What a step copies from or mounts. */
function sourcesOf(op: BuildOp): readonly CopySource[] {
  if (op.kind === 'copy') return [op.from]
  if (op.kind !== 'run') return []
  return op.mounts.flatMap((mount) => ('from' in mount && mount.from !== null ? [mount.from] : []))
}

function grown(stage: Stage, { text }: BuildOp, made: Made): Stage {
  if (made.kind === 'nothing')
    return { ...stage, history: [...stage.history, { created: null, text, emptyLayer: true }] }
  const { layer, createdAt } = made.step
  const history = [...stage.history, { created: createdAt, text, emptyLayer: false }]
  return { ...stage, layers: [...stage.layers, layer], history }
}

const ended = (vertex: number, began: number) => ({
  step: 'end' as const,
  vertex,
  at: new Date().toISOString(),
  ms: Math.round(performance.now() - began),
  exitCode: null,
  error: null,
  layer: null,
})

/** Failures say where in the Dockerfile they came about. */
async function placed<T>(line: number, instruction: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (!(error instanceof Failure) || 'line' in error.data) throw error
    const [word = ''] = instruction.split(/\s/, 1)
    const message = `line ${line}, ${word}: ${error.message}`
    throw new Failure(error.code, message, { ...error.data, line, instruction: instruction.slice(0, 4096) })
  }
}
