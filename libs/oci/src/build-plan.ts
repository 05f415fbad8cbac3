// build-plan.ts: which stages of a Dockerfile a target needs, and in which order.
import type { Dockerfile, DockerfileWarning, Instruction } from './dockerfile.js'
import { didYouMean, invalidDockerfile } from './dockerfile-error.js'
import type { ContainerConfig } from './manifest.js'
import { Budget, processWord } from './shell-words.js'

/** Most stages in a Dockerfile. */
export const MAX_STAGES = 200

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
  readonly name: string | null
  readonly from: StageSource
  readonly line: number
  /** `linux/arm64` where FROM says so. */
  readonly platform: string
  /** Stages that this begins with, copies from or mounts, lowest first. */
  readonly needs: readonly number[]
  /** Images that this copies from or mounts, as they are written. */
  readonly images: readonly string[]
  /** Those of the stage, FROM not among them. */
  readonly instructions: readonly Instruction[]
}

export interface BuildPlan {
  /** What the target needs, each after what it needs itself; the last is the target. */
  readonly stages: readonly PlannedStage[]
  /** Every image that is needed, each once. */
  readonly references: readonly string[]
  readonly warnings: readonly DockerfileWarning[]
}

/** One step of a stage, with what the image's configuration is after it. */
export type BuildOp = {
  readonly line: number
  /** As history tells of it (`created_by`). */
  readonly text: string
  readonly config: ContainerConfig
} & (RunOp | CopyOp | WorkdirOp | { readonly kind: 'config' })

export interface RunOp {
  readonly kind: 'run'
  /** With the shell in front of it, where it is of the shell form. */
  readonly argv: readonly string[]
  /** The image's, with the build arguments that are in scope. */
  readonly env: Readonly<Record<string, string>>
  readonly workingDir: string
  /** As USER says it: name or number, with or without a group; '' is root. */
  readonly user: string
  readonly network: 'default' | 'none'
  readonly mounts: readonly RunMount[]
  /** A heredoc that begins with `#!`: an executable file that is there, read-only, while the command runs. */
  readonly script: { readonly path: string; readonly data: string } | null
  /** Build arguments in scope that count for the cache: those that Docker knows by itself do not. */
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

export type MountSource =
  | { readonly kind: 'context' }
  | { readonly kind: 'stage'; readonly index: number }
  | { readonly kind: 'image'; readonly reference: string }

export type RunMount =
  | {
      readonly type: 'cache'
      readonly id: string
      readonly target: string
      /** What it holds when it is new; null is nothing. */
      readonly from: MountSource | null
      readonly source: string
      readonly sharing: 'shared' | 'private' | 'locked'
      readonly mode: number
      readonly uid: number
      readonly gid: number
      readonly readOnly: boolean
    }
  | {
      readonly type: 'bind'
      readonly from: MountSource
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
  readonly from: Instruction
  readonly index: number
  readonly name: string | null
  readonly instructions: Instruction[]
}

/**
 * The stages that a target needs. Copying from a stage that comes later is possible, as in BuildKit, as long as nothing
 * needs itself.
 * @throws Failure dockerfile_invalid
 */
export function planBuild(file: Dockerfile, options: PlanOptions): BuildPlan {
  const { before, stages } = split(file)
  const budget = new Budget()
  const warnings = [...file.warnings]
  const globals = globalArgs(before, file, options, budget)
  const byName = new Map(stages.flatMap((stage) => (stage.name === null ? [] : [[stage.name, stage.index] as const])))
  const target = targetOf(stages, byName, options.target)
  const planned = new Map<number, PlannedStage>()
  const under = new Set<number>()
  const visit = (index: number, by: Instruction | undefined): void => {
    const stage = stages[index]
    if (!stage || planned.has(index)) return
    if (under.has(index)) throw invalidDockerfile(`stage ${stage.name ?? index} needs itself`, by ?? stage.from)
    under.add(index)
    const found = planStage(stage)
    for (const { index: need, by } of found.needs) visit(need, by)
    planned.set(index, { ...found, needs: [...new Set(found.needs.map((need) => need.index))].sort((a, b) => a - b) })
  }
  const planStage = (stage: Stage) => {
    const at = stage.from
    const expand = (word: string) => processWord(word, globals, { escape: file.escape, budget, at }).word
    const base = expand(at.rest.split(/\s+/)[0] ?? '')
    if (base === '') throw invalidDockerfile('the name of the base is empty after substitution', at)
    const earlier = byName.get(base.toLowerCase())
    const from: StageSource =
      earlier !== undefined && earlier < stage.index
        ? { kind: 'stage', index: earlier }
        : base === 'scratch'
          ? { kind: 'scratch' }
          : { kind: 'image', reference: base }
    const sources = stage.instructions.flatMap((instruction) =>
      sourcesOf(instruction).map((name) => ({
        by: instruction,
        source: resolveSource(name, byName, stages.length, instruction),
      })),
    )
    return {
      index: stage.index,
      name: stage.name,
      from,
      line: at.line,
      platform: options.platform,
      instructions: stage.instructions,
      needs: [
        ...(from.kind === 'stage' ? [{ index: from.index, by: at }] : []),
        ...sources.flatMap(({ source, by }) => (source.kind === 'stage' ? [{ index: source.index, by }] : [])),
      ],
      images: [...new Set(sources.flatMap(({ source }) => (source.kind === 'image' ? [source.reference] : [])))],
    }
  }
  visit(target, undefined)
  const order = [...planned.values()]
  const references = order.flatMap(({ from, images }) => [
    ...(from.kind === 'image' ? [from.reference] : []),
    ...images,
  ])
  return { stages: order, references: [...new Set(references)], warnings }
}

function split({ instructions }: Dockerfile): { before: Instruction[]; stages: Stage[] } {
  const before: Instruction[] = []
  const stages: Stage[] = []
  const names = new Set<string>()
  for (const instruction of instructions) {
    const stage = stages.at(-1)
    if (instruction.keyword === 'FROM') {
      const name = nameOf(instruction)
      if (name !== null && names.has(name)) throw invalidDockerfile(`there are two stages named ${name}`, instruction)
      if (name !== null) names.add(name)
      if (stages.length >= MAX_STAGES) throw invalidDockerfile(`there are more than ${MAX_STAGES} stages`, instruction)
      stages.push({ from: instruction, index: stages.length, name, instructions: [] })
    } else if (stage) stage.instructions.push(instruction)
    else if (instruction.keyword === 'ARG') before.push(instruction)
    else throw invalidDockerfile('only ARG may come before the first FROM', instruction)
  }
  if (stages.length === 0) throw invalidDockerfile('the Dockerfile has no FROM')
  return { before, stages }
}

/** Lower-case: names of stages are the same in either case. */
function nameOf(from: Instruction): string | null {
  const [, as, name, ...more] = from.rest.split(/\s+/)
  if (as === undefined) {
    if (from.rest === '') throw invalidDockerfile('FROM needs the name of a base', from)
    return null
  }
  if (as.toUpperCase() !== 'AS' || name === undefined || more.length > 0)
    throw invalidDockerfile('FROM takes a base, or a base and "AS name"', from)
  if (!/^[a-z][a-z0-9-_.]*$/i.test(name))
    throw invalidDockerfile(`${JSON.stringify(name)} is no name of a stage: letters, digits, "-", "_", "."`, from)
  if (name.toLowerCase() === 'scratch' || name.toLowerCase() === 'context')
    throw invalidDockerfile(`${name} is no name for a stage: it means something else`, from)
  return name.toLowerCase()
}

function targetOf(stages: readonly Stage[], byName: ReadonlyMap<string, number>, target: string | null): number {
  if (target === null || target === '') return stages.length - 1
  const named = byName.get(target.toLowerCase())
  if (named !== undefined) return named
  if (/^\d{1,6}$/.test(target) && Number(target) < stages.length) return Number(target)
  const hint = didYouMean(target.toLowerCase(), [...byName.keys()])
  throw invalidDockerfile(`there is no stage ${JSON.stringify(target.slice(0, 100))} to build${hint}`)
}

/** What the instructions of a stage copy from or mount, as it is written. */
function sourcesOf({ flags, keyword }: Instruction): string[] {
  if (keyword === 'COPY' || keyword === 'ADD')
    return flags.flatMap((flag) => (flag.startsWith('--from=') ? [flag.slice('--from='.length)] : []))
  if (keyword !== 'RUN') return []
  return flags.flatMap((flag) =>
    flag.startsWith('--mount=') ? (/(?:^|,)from=([^,]+)/.exec(flag.slice('--mount='.length))?.slice(1) ?? []) : [],
  )
}

function resolveSource(
  name: string,
  byName: ReadonlyMap<string, number>,
  stages: number,
  at: Instruction,
): StageSource {
  if (name === 'scratch') return { kind: 'scratch' }
  if (/^\d+$/.test(name)) {
    if (Number(name) < stages) return { kind: 'stage', index: Number(name) }
    throw invalidDockerfile(`there is no stage ${name}`, at)
  }
  const index = byName.get(name.toLowerCase())
  return index === undefined ? { kind: 'image', reference: name } : { kind: 'stage', index }
}

/** The arguments before the first FROM, with those that are always there; FROM alone sees them all. */
function globalArgs(
  before: readonly Instruction[],
  file: Dockerfile,
  { args, platform }: PlanOptions,
  budget: Budget,
): ReadonlyMap<string, string> {
  const [os = '', architecture = '', variant = ''] = platform.split('/')
  const known: [string, string][] = ['BUILD', 'TARGET'].flatMap((side) => [
    [`${side}PLATFORM`, args[`${side}PLATFORM`] ?? platform],
    [`${side}OS`, os],
    [`${side}ARCH`, architecture],
    [`${side}VARIANT`, variant],
  ])
  const values = new Map(known)
  for (const at of before) {
    for (const word of at.rest.split(/\s+/)) {
      const [name = '', ...value] = word.split('=')
      const given = args[name]
      if (given !== undefined) values.set(name, given)
      else if (value.length > 0)
        values.set(name, processWord(value.join('='), values, { escape: file.escape, budget, at }).word)
    }
  }
  return values
}
