// build-plan.ts: which stages of a Dockerfile a target needs, and in which order.
import { Failure } from '@berth/contracts'
import { type Dockerfile, type DockerfileWarning, type Instruction, parseTriggers } from './dockerfile.js'
import type { Command } from './dockerfile-commands.js'
import { didYouMean, invalidDockerfile, type Place } from './dockerfile-error.js'
import type { ContainerConfig } from './manifest.js'
import { parsePlatform, samePlatform } from './platform.js'
import { parseReference } from './reference.js'
import { Budget, processWord } from './shell-words.js'

/** Most stages in a Dockerfile. */
const MAX_STAGES = 200
/** Most images that a build begins with or copies from. */
const MAX_REFERENCES = 200

export interface PlanOptions {
  /** Name or number of a stage; null is the last. */
  readonly target: string | null
  /** Build arguments that were given. */
  readonly args: Readonly<Record<string, string>>
  /** `linux/amd64`: what is built for, and on. */
  readonly platform: string
}

export type StageSource =
  | { readonly kind: 'image'; readonly reference: string }
  | { readonly kind: 'stage'; readonly index: number }
  | { readonly kind: 'scratch' }

export interface PlannedStage {
  /** Number of the stage in the Dockerfile, from 0. */
  readonly index: number
  /** Lower-case. */
  readonly name: string | null
  readonly from: StageSource
  readonly line: number
  /** Stages that this begins with, copies from or mounts, lowest first. */
  readonly needs: readonly number[]
  /** Images that this copies from or mounts, as they are written. */
  readonly images: readonly string[]
  /** Those of the stage, FROM not among them. */
  readonly instructions: readonly Instruction[]
  readonly shared: PlanShared
}

/** What evaluating the stages of a plan has in common. */
export interface PlanShared {
  readonly names: StageNames
  /** How many stages the Dockerfile has. */
  readonly stages: number
  /** Arguments before the first FROM, and those that are always there: what a stage declares has its value of here. */
  readonly globals: ReadonlyMap<string, string>
  /** What all of them together may still cost. */
  readonly budget: Budget
  /** Stages of the plan, by their index, and its images. */
  readonly planned: ReadonlyMap<number, PlannedStage>
  readonly references: ReadonlySet<string>
}

export interface BuildPlan {
  /** What the target needs, each after what it needs itself; the last is the target. */
  readonly stages: readonly PlannedStage[]
  /** Every image that is needed, each once. */
  readonly references: readonly string[]
  /** Where each of them is named first. */
  readonly places: ReadonlyMap<string, Place>
  readonly warnings: readonly DockerfileWarning[]
}

/** One step of a stage, with what the image's configuration is after it. */
export type BuildOp = {
  readonly line: number
  /** The instruction as it is written, without heredocs: what progress tells of. */
  readonly name: string
  /** As history tells of it (`created_by`). */
  readonly text: string
  readonly config: ContainerConfig
} & (RunOp | CopyOp | WorkdirOp | { readonly kind: 'config' })

export interface RunOp {
  readonly kind: 'run'
  /** With the shell in front of it, where it is of the shell form. */
  readonly argv: readonly string[]
  /** The image's, with the build arguments that are in scope, and with proxies that were given. */
  readonly env: Readonly<Record<string, string>>
  readonly workingDir: string
  /** As USER says it: name or number, with or without a group; '' is root. */
  readonly user: string
  readonly network: 'default' | 'none'
  readonly mounts: readonly RunMount[]
  /** A heredoc that begins with `#!`: an executable file that is there, read-only, while the command runs. */
  readonly script: { readonly path: string; readonly data: string } | null
  /** Build arguments in scope, as they are for the command. They count for the cache; of `env`, proxies do not. */
  readonly usedArgs: Readonly<Record<string, string>>
}

export type CopySource =
  | { readonly kind: 'context' }
  | { readonly kind: 'stage'; readonly index: number }
  | { readonly kind: 'image'; readonly reference: string }

export interface CopyOp {
  readonly kind: 'copy'
  readonly from: CopySource
  readonly sources: readonly string[]
  /** Heredocs: files that are made of what is written. */
  readonly inline: readonly { readonly name: string; readonly data: string }[]
  /** Absolute, with the slash at its end that was written. */
  readonly destination: string
  readonly chown: string | null
  /** Octal, or symbolic as chmod(1) takes it: `u=rw,go-w`. */
  readonly chmod: string | null
  readonly link: boolean
  /** ADD: archives among the sources are unpacked. */
  readonly extract: boolean
  readonly exclude: readonly string[]
  readonly parents: boolean
}

export interface WorkdirOp {
  readonly kind: 'workdir'
  /** Absolute; made where it is not there. */
  readonly path: string
}

export type RunMount =
  | {
      readonly type: 'cache'
      readonly id: string
      readonly target: string
      /** What it holds when it is new; null is nothing. */
      readonly from: CopySource | null
      readonly source: string
      readonly sharing: 'shared' | 'private' | 'locked'
      readonly mode: number
      readonly uid: number
      readonly gid: number
      readonly readOnly: boolean
    }
  | {
      readonly type: 'bind'
      readonly from: CopySource
      readonly source: string
      readonly target: string
      /** What is written is thrown away afterwards. */
      readonly readWrite: boolean
    }
  | {
      readonly type: 'secret'
      readonly id: string
      readonly target: string | null
      readonly env: string | null
      readonly required: boolean
      readonly mode: number
      readonly uid: number
      readonly gid: number
    }
  | { readonly type: 'tmpfs'; readonly target: string /** Bytes. */; readonly size: number | null }

interface Stage {
  readonly at: Instruction
  readonly base: string
  readonly name: string | null
  readonly platform: string | null
  readonly index: number
  readonly instructions: Instruction[]
}

/**
 * The stages that a target needs.
 * @throws Failure dockerfile_invalid
 */
export function planBuild(file: Dockerfile, options: PlanOptions): BuildPlan {
  const stages = stagesOf(file)
  const names = stageNames(stages)
  const budget = new Budget()
  const references = new Set<string>()
  const planned = new Map<number, PlannedStage>()
  const globals = globalArgs(file, options, budget)
  const shared: PlanShared = { names, stages: stages.length, globals, budget, planned, references }
  const bases = stages.map((stage) => baseOf(stage, shared, file.escape, options.platform))
  const target = targetOf(stages, names, options.target)
  const wanted = [target]
  for (let index = wanted.pop(); index !== undefined; index = wanted.pop()) {
    const stage = stages[index]
    const { from, platform = options.platform } = bases[index] ?? {}
    if (!stage || !from || planned.has(index)) continue
    // What begins with another stage is of its platform.
    if (from.kind === 'image' && !samePlatform(platform, options.platform))
      throw invalidDockerfile(`this builds for ${options.platform} only, and not for ${platform}`, stage.at)
    // What the base wants done by those who begin with it.
    const triggers = from.kind === 'stage' ? triggersOf(stages[from.index], stage.at.line) : []
    const sources = [...triggers, ...stage.instructions].flatMap((at) =>
      sourceNames(at.command).map((name) => resolveSource(name, shared, index, at)),
    )
    const needs = [from, ...sources].flatMap((source) => (source.kind === 'stage' ? [source.index] : []))
    const images = sources.flatMap((source) => (source.kind === 'image' ? [source.reference] : []))
    planned.set(index, {
      index,
      name: stage.name,
      from,
      line: stage.at.line,
      needs: [...new Set(needs)].sort((a, b) => a - b),
      images: [...new Set(images)],
      instructions: stage.instructions,
      shared,
    })
    wanted.push(...needs)
  }
  // Whatever a stage needs comes before it in the file.
  const order = [...planned.values()].sort((a, b) => a.index - b.index)
  for (const { from, images } of order)
    for (const reference of [...(from.kind === 'image' ? [from.reference] : []), ...images]) references.add(reference)
  const places = placesOf(order, stages, shared)
  if (references.size > MAX_REFERENCES) throw invalidDockerfile(`more than ${MAX_REFERENCES} images are needed`)
  return {
    stages: order,
    references: [...references],
    places,
    warnings: [...file.warnings, ...unconsumed(file, options)],
  }
}

function placesOf(planned: readonly PlannedStage[], stages: readonly Stage[], shared: PlanShared) {
  const places = new Map<string, Place>()
  const note = (source: StageSource, at: Place) => {
    if (source.kind === 'image' && !places.has(source.reference)) places.set(source.reference, at)
  }
  for (const { index, from, instructions } of planned) {
    const at = stages[index]?.at
    if (at) note(from, at)
    for (const instruction of instructions)
      for (const name of sourceNames(instruction.command))
        note(resolveSource(name, shared, index, instruction), instruction)
  }
  return places
}

/** @throws Failure dockerfile_invalid for a Dockerfile without FROM, and all that cannot be before the first one */
function stagesOf({ instructions }: Dockerfile): Stage[] {
  const stages: Stage[] = []
  for (const at of instructions) {
    const { command } = at
    if (command.kind === 'from') {
      if (stages.length >= MAX_STAGES) throw invalidDockerfile(`there are more than ${MAX_STAGES} stages`, at)
      const { base, name, platform } = command
      stages.push({ at, base, name, platform, index: stages.length, instructions: [] })
    } else if (stages.length > 0) stages.at(-1)?.instructions.push(at)
    else if (command.kind !== 'arg') throw invalidDockerfile('only ARG may come before the first FROM', at)
  }
  if (stages.length === 0) throw invalidDockerfile('the Dockerfile has no FROM')
  return stages
}

export type StageNames = ReadonlyMap<string, number>

function stageNames(stages: readonly Stage[]): StageNames {
  const names = new Map<string, number>()
  for (const { name, index, at } of stages) {
    if (name === null) continue
    if (names.has(name)) throw invalidDockerfile(`there are two stages named ${name}`, at)
    names.set(name, index)
  }
  return names
}

function baseOf(
  { at, base, platform, index }: Stage,
  { globals, names, budget }: PlanShared,
  escapeCharacter: Dockerfile['escape'],
  own: string,
): { readonly from: StageSource; readonly platform: string | undefined } {
  const expand = (word: string) => processWord(word, globals, { escape: escapeCharacter, budget, at }).word
  const name = expand(base)
  if (name === '') throw invalidDockerfile(`the base ${JSON.stringify(base)} is empty`, at)
  const written = platform === null ? own : expand(platform)
  const wanted = parsePlatform(written, own)
  if (wanted === undefined)
    throw invalidDockerfile(`${JSON.stringify(written)} is no platform, as linux/amd64 is one`, at)
  const stage = names.get(name.toLowerCase())
  if (stage !== undefined && stage < index) return { from: { kind: 'stage', index: stage }, platform: wanted }
  if (name === 'scratch') return { from: { kind: 'scratch' }, platform: wanted }
  return { from: { kind: 'image', reference: checkedReference(name, at) }, platform: wanted }
}

function checkedReference(name: string, at: Place): string {
  try {
    if (name.length <= 512) parseReference(name)
    else throw invalidDockerfile('the name of an image has more than 512 characters', at)
    return name
  } catch (error) {
    if (error instanceof Failure && error.code !== 'dockerfile_invalid')
      throw invalidDockerfile(`no name of an image: ${error.message.replace(/^image: /, '')}`, at)
    throw error
  }
}

function targetOf(stages: readonly Stage[], names: StageNames, target: string | null): number {
  if (target === null || target === '') return stages.length - 1
  const named = names.get(target.toLowerCase())
  if (named !== undefined) return named
  if (/^\d{1,6}$/.test(target) && Number(target) < stages.length) return Number(target)
  const hint = didYouMean(target.toLowerCase(), [...names.keys()])
  throw invalidDockerfile(`there is no stage ${JSON.stringify(target.slice(0, 100))} to build${hint}`)
}

/** What an instruction copies from or mounts, as it is written. */
function sourceNames(command: Command): string[] {
  if (command.kind === 'copy') return command.from === null ? [] : [command.from]
  if (command.kind === 'run') return command.mounts.flatMap(({ from }) => (from === null ? [] : [from]))
  return []
}

function triggersOf(stage: Stage | undefined, line: number): Instruction[] {
  const texts = stage?.instructions.flatMap(({ command }) => (command.kind === 'onbuild' ? [command.trigger] : []))
  return parseTriggers(texts ?? [], line)
}

/** @throws Failure dockerfile_invalid for a stage that is not there, or that comes no earlier than the one that names it */
function resolveSource(name: string, { names, stages }: PlanShared, by: number, at: Place): StageSource {
  if (name === 'scratch') return { kind: 'scratch' }
  const number = /^\d{1,6}$/.test(name)
  const index = number ? Number(name) : names.get(name.toLowerCase())
  if (index === undefined) return { kind: 'image', reference: checkedReference(name, at) }
  if (number && index >= stages) throw invalidDockerfile(`there is no stage ${name}`, at)
  if (index === by) throw invalidDockerfile(`stage ${name} cannot copy from itself`, at)
  if (index > by) throw invalidDockerfile(`stage ${name} comes later: it must be there before what needs it`, at)
  return { kind: 'stage', index }
}

/** Proxies may be given without being declared. */
export const proxyNames: ReadonlySet<string> = new Set(
  ['http_proxy', 'https_proxy', 'ftp_proxy', 'no_proxy', 'all_proxy'].flatMap((name) => [name, name.toUpperCase()]),
)

function globalArgs(
  file: Dockerfile,
  { args, platform, target }: PlanOptions,
  budget: Budget,
): ReadonlyMap<string, string> {
  const [os = '', architecture = '', variant = ''] = platform.split('/')
  const values = new Map<string, string>()
  const known = { PLATFORM: platform, OS: os, OSVERSION: '', ARCH: architecture, VARIANT: variant }
  for (const side of ['BUILD', 'TARGET'])
    for (const [what, value] of Object.entries(known)) values.set(side + what, args[side + what] ?? value)
  values.set('TARGETSTAGE', args.TARGETSTAGE ?? (target || lastName(file)))
  for (const at of file.instructions) {
    if (at.command.kind !== 'arg') break
    for (const [name, written] of at.command.args) {
      const given = Object.hasOwn(args, name) ? args[name] : undefined
      const value =
        given ?? (written === null ? undefined : processWord(written, values, { escape: file.escape, budget, at }).word)
      if (value !== undefined) values.set(name, value)
    }
  }
  return values
}

function lastName({ instructions }: Dockerfile): string {
  const last = instructions.findLast(({ command }) => command.kind === 'from')?.command
  return (last?.kind === 'from' ? last.name : null) ?? 'default'
}

/** Arguments that were given, and that nothing declares: most likely a slip. */
function unconsumed({ instructions }: Dockerfile, { args }: PlanOptions): DockerfileWarning[] {
  const declared = new Set(
    instructions.flatMap(({ command }) => (command.kind === 'arg' ? command.args.map(([name]) => name) : [])),
  )
  const known = /^(BUILD|TARGET)(PLATFORM|OS|OSVERSION|ARCH|VARIANT)$|^TARGETSTAGE$|^SOURCE_DATE_EPOCH$|^BUILDKIT_/
  const unused = Object.keys(args).filter((name) => !declared.has(name) && !proxyNames.has(name) && !known.test(name))
  if (unused.length === 0) return []
  return [{ message: `no ARG declares the build arguments ${unused.join(', ')}`.slice(0, 1000), line: null }]
}

/** What a name means to an instruction of a stage whose plan was made: it needs no more than is in that. */
export function plannedSource(stage: PlannedStage, name: string, at: Place): StageSource {
  const source = resolveSource(name, stage.shared, stage.index, at)
  const isPlanned =
    source.kind === 'scratch' ||
    (source.kind === 'stage' ? stage.shared.planned.has(source.index) : stage.shared.references.has(source.reference))
  if (isPlanned) return source
  throw invalidDockerfile(`a trigger of the base names ${name}, which the build has not: copy from it too`, at)
}
