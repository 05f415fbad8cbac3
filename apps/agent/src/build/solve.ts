// solve.ts: a plan → an image. Stages are made as soon as those that they need are, some commands at once; a step whose key
// is known was made before, and costs a look at the cache. The first failure ends all else.

import { type BuildStep, Failure, type HeldImage, ImageDigest, type ImageLayer, invariant } from '@berth/contracts'
import {
  type BuildOp,
  type CopySource,
  checkPlatform,
  evaluateStage,
  type ImageConfig,
  type PlannedStage,
  type StageBase,
} from '@berth/oci'
import { tooMuch } from '../images/budget.js'
import { orNoRoom } from '../images/content.js'
import { nodePlatform } from '../images/images.js'
import { epochOf, type Made, Maker, rootParts, type SolveParts, type Solving } from './make.js'
import { type HistoryStep, imageConfig } from './result.plan.js'
import { contextRoot, layersRoot, type Root } from './roots.js'

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
  readonly #maker: Maker
  #vertices = 0

  constructor(parts: SolveParts, solving: Solving) {
    this.#parts = parts
    this.#solving = solving
    this.#context = contextRoot(rootParts(parts, solving), solving.context)
    this.#maker = new Maker(parts, solving, (from) => this.#rootOf(from))
  }

  /** Makes a stage, those that it needs before. Each is asked for once. */
  stage(stage: PlannedStage): Promise<Stage> {
    const made = this.#stage(stage)
    this.#stages.set(stage.index, made)
    return made
  }

  /** Resolves when nothing of any command is left. */
  settled(): Promise<void> {
    return this.#maker.settled()
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
      epochMs: epochOf(build),
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
    const root = this.#roots.get(stage) ?? layersRoot(rootParts(this.#parts, this.#solving), stage.layers)
    this.#roots.set(stage, root)
    return root
  }

  #from({ from, name }: PlannedStage, prefix: string): void {
    const stage =
      from.kind === 'stage' ? this.#solving.plan.stages.find(({ index }) => index === from.index) : undefined
    const what = stage ? (stage.name ?? `stage-${stage.index}`) : from.kind === 'image' ? from.reference : 'scratch'
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
      const on = { layers: stage.layers, root: this.#rootOfStage(stage) }
      const made = await placed(op.line, op.name, () => this.#maker.make(on, op, vertex))
      // A directory that is there already is as good as made before.
      if (made.kind === 'made') this.#end(vertex, began, made.step.layer, op.kind === 'run' ? 0 : null)
      else this.#tell({ step: 'cached', vertex })
      return grown(stage, op, made)
    } catch (error) {
      this.#failed(vertex, began, error)
      throw error
    }
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
  } catch (thrown) {
    const error = orNoRoom(thrown)
    if (!(error instanceof Failure) || 'line' in error.data) throw error
    const [word = ''] = instruction.split(/\s/, 1)
    const message = `line ${line}, ${word}: ${error.message}`
    throw new Failure(error.code, message, { ...error.data, line, instruction: instruction.slice(0, 4096) })
  }
}
