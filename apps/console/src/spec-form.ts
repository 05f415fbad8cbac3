// spec-form.ts: what people type into forms as the bodies of requests. What is wrong with a value is for the API to say,
// which knows all rules; here only text is taken apart.
import type { Arguments, createJob, createSandbox, SandboxLimits } from '@berth/contracts'
import { bytes } from './format.js'

/** Names of fields → what was typed. */
export type Fields = Readonly<Record<string, string>>

/** Something that cannot be taken apart; `field` as the API would name it. */
export class FormProblem extends Error {
  constructor(
    readonly field: string,
    message: string,
  ) {
    super(message)
    this.name = 'FormProblem'
  }
}

/**
 * Words as a POSIX shell splits them (2.2 Quoting, 2.6.5), without any expansion.
 * @throws FormProblem where a quote is not closed
 */
export function splitWords(text: string, field = 'command'): string[] {
  const words: string[] = []
  let word: string | undefined
  for (const [, space, single, double, escaped, plain, open] of text.matchAll(
    /(\s+)|'([^']*)'|"((?:[^"\\]|\\[\s\S])*)"|\\([\s\S])|([^\s'"\\]+)|([\s\S])/g,
  )) {
    if (open !== undefined)
      throw new FormProblem(field, open === '\\' ? 'ends with a backslash' : `${open} is not closed`)
    if (space !== undefined) {
      if (word !== undefined) words.push(word)
      word = undefined
      continue
    }
    word = (word ?? '') + (single ?? double?.replace(/\\(["\\$`\n])/g, '$1') ?? escaped ?? plain ?? '')
  }
  if (word !== undefined) words.push(word)
  return words
}

/** How the text of a command is meant. */
export const commandModes = ['shell', 'words'] as const

/** `shell`: a script for `sh -c`; `words`: program and arguments. */
export function argvOf(text: string, mode: string, field = 'command'): string[] {
  return mode === 'words' ? splitWords(text, field) : ['sh', '-c', text]
}

/** Lines of `NAME=value`; empty lines and those that begin with `#` are left out. @throws FormProblem on another line */
export function pairsOf(text: string, field: string): Record<string, string> {
  const lines = text.split('\n').map((line) => line.replace(/\r$/, ''))
  const pairs = lines
    .filter((line) => line.trim() !== '' && !line.trimStart().startsWith('#'))
    .map((line): [string, string] => {
      const at = line.indexOf('=')
      if (at <= 0) throw new FormProblem(field, `“${line.slice(0, 40)}” is not NAME=value`)
      return [line.slice(0, at).trim(), line.slice(at + 1)]
    })
  return Object.fromEntries(pairs)
}

/** Without the fields that were left empty. */
function given<T extends Record<string, unknown>>(values: T): { [K in keyof T]?: Exclude<T[K], '' | undefined> } {
  const kept: { [K in keyof T]?: Exclude<T[K], '' | undefined> } = {}
  for (const key in values) {
    const value = values[key]
    if (isGiven(value)) kept[key] = value
  }
  return kept
}

const isGiven = <V>(value: V): value is Exclude<V, '' | undefined> => value !== '' && value !== undefined

/** In JSON what is no number would be null, which has a meaning of its own. @throws FormProblem */
function parsed(text: string, field: string): number {
  const value = Number(text)
  if (Number.isFinite(value)) return value
  throw new FormProblem(field, 'must be a number')
}

const numberOf = (text: string | undefined, field: string): number | undefined =>
  text ? parsed(text, field) : undefined

const limitsOf = ({ memory, cpus, disk, pids }: Fields) =>
  given({
    memoryBytes: memory,
    cpus: numberOf(cpus, 'limits.cpus'),
    diskBytes: disk,
    pids: numberOf(pids, 'limits.pids'),
  })

export type SandboxBody = NonNullable<Arguments<typeof createSandbox>['body']>
export type JobBody = NonNullable<Arguments<typeof createJob>['body']>

const policies = ['no', 'on-failure', 'always', 'unless-stopped'] as const

/** The body of `createSandbox`. @throws FormProblem */
export function sandboxBody(fields: Fields): SandboxBody {
  const { name, image, command = '', run = 'none', env = '', labels = '' } = fields
  const policy = policies.find((one) => one === fields.restart)
  const clocks = given({
    maxLifetimeMs: fields.maxLifetime,
    idleTimeoutMs: fields.idleTimeout,
    pausedForMs: fields.pausedFor,
    deleteAfterMs: fields.deleteAfter,
  })
  const main = run === 'shell' || run === 'words' ? { command: argvOf(command, run) } : { runImage: run === 'image' }
  return {
    ...given({ name, image, user: fields.user, workingDir: fields.workingDir }),
    ...main,
    env: pairsOf(env, 'env'),
    labels: pairsOf(labels, 'labels'),
    limits: limitsOf(fields),
    clocks,
    ...(policy ? { restart: { policy } } : {}),
  }
}

const textOf = (value: number | undefined): string => (value === undefined ? '' : String(value))

/** Limits that a sandbox need not have, as they stand in their fields before anything is typed; empty where unset. */
export const optionalLimits = (limits: SandboxLimits) => ({
  reservation: limits.memoryReservationBytes === undefined ? '' : bytes(limits.memoryReservationBytes),
  cpuset: limits.cpuset ?? '',
  cpuShares: textOf(limits.cpuShares),
  cpuPeriod: textOf(limits.cpuPeriodUs),
  ioWeight: textOf(limits.ioWeight),
})

/**
 * The body of `updateSandbox` from the form that changes limits: an optional one that was emptied is unset.
 * @param now what the form was filled with
 * @throws FormProblem
 */
export function limitsBody(fields: Fields, now: SandboxLimits) {
  const before = optionalLimits(now)
  const change = <T>(name: keyof typeof before, field: string, parse: (text: string, field: string) => T) => {
    const typed = fields[name]?.trim()
    if (typed === undefined || typed === before[name]) return undefined
    return typed === '' ? null : parse(typed, `limits.${field}`)
  }
  const optional = given({
    memoryReservationBytes: change('reservation', 'memoryReservationBytes', (text) => text),
    cpuset: change('cpuset', 'cpuset', (text) => text),
    cpuShares: change('cpuShares', 'cpuShares', parsed),
    cpuPeriodUs: change('cpuPeriod', 'cpuPeriodUs', parsed),
    ioWeight: change('ioWeight', 'ioWeight', parsed),
  })
  return { limits: { ...limitsOf(fields), ...optional } }
}

/** The body of `createJob`. @throws FormProblem */
export function jobBody(fields: Fields): JobBody {
  const { name, image, command = '', run = 'shell', env = '', labels = '' } = fields
  return {
    ...given({ name, image, user: fields.user, timeoutMs: fields.timeout }),
    command: argvOf(command, run),
    env: pairsOf(env, 'env'),
    labels: pairsOf(labels, 'labels'),
    limits: limitsOf(fields),
    ...(fields.attempts ? { retry: { maxAttempts: parsed(fields.attempts, 'retry.maxAttempts') } } : {}),
  }
}

/** A job for each line that is not empty, all else alike; their names get a number. @throws FormProblem */
export function batchBodies(fields: Fields): JobBody[] {
  const lines = (fields.command ?? '').split('\n').filter((line) => line.trim() !== '')
  if (lines.length === 0) throw new FormProblem('command', 'needs a command a line')
  return lines.map((command, i) => {
    const { name, ...body } = jobBody({ ...fields, command })
    return name === undefined ? body : { ...body, name: `${name}-${i + 1}` }
  })
}
