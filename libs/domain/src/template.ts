// template.ts: what a sandbox or a job is made from, where a template is named: its values, and over them the caller's,
// field by field. Defaults are filled in afterwards.
import type { GivenJob, GivenSandbox, TemplateSpec } from '@berth/contracts'

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** What lies above wins: objects (env, labels, limits, clocks…) are merged by key, anything else is replaced whole. */
export function over(below: unknown, above: unknown): unknown {
  if (above === undefined) return below
  if (!isRecord(below) || !isRecord(above)) return above
  const keys = [...new Set([...Object.keys(below), ...Object.keys(above)])]
  const value = (of: Readonly<Record<string, unknown>>, key: string) => (Object.hasOwn(of, key) ? of[key] : undefined)
  return Object.fromEntries(keys.map((key) => [key, over(value(below, key), value(above, key))]))
}

/**
 * A sandbox of a template, before defaults. Another entrypoint takes the template's command with it, as docker's does
 * with an image's.
 * @param used name and version
 */
export function sandboxOf(template: TemplateSpec, given: GivenSandbox, used: string): unknown {
  const { command, ...rest } = template
  const kept = given.entrypoint === undefined && command !== undefined ? { ...rest, command } : rest
  return over(kept, { ...given, template: used })
}

/** Limits of a template that a job has too. */
const jobLimits = ['memoryBytes', 'cpus', 'pids', 'diskBytes', 'shmBytes'] as const

/**
 * A job of a template, before defaults. Its command is the template's entrypoint and command together; what else a
 * template says is about sandboxes that stay.
 * @param used name and version
 */
export function jobOf(template: TemplateSpec, given: GivenJob, used: string): unknown {
  const { image, env, labels, workingDir, user, hostname, entrypoint = [], command = [], limits = {} } = template
  const whole = [...entrypoint, ...command]
  const below = {
    ...{ image, env, labels, workingDir, user, hostname },
    command: whole.length > 0 ? whole : undefined,
    limits: Object.fromEntries(jobLimits.map((name) => [name, limits[name]])),
  }
  return over(below, { ...given, template: used })
}
