// phases.ts: where the time goes, as what was measured says itself.
import { percentiles } from './load.js'
import { one, table } from './section.js'

/** One call: its time as seen from outside, and how long its phases took by its own account; null: it had none such. */
export interface Sample {
  readonly totalMs: number
  readonly phases: Readonly<Record<string, number | null>>
}

/** Medians of the phases, of what they leave of the total, and of the total. */
export function phasesTable(samples: readonly Sample[]): string {
  const phases = new Map<string, number[]>()
  for (const sample of samples)
    for (const [name, ms] of Object.entries(sample.phases)) phases.set(name, [...(phases.get(name) ?? []), ms ?? 0])
  const medians = [...phases].map(([name, times]) => [name, percentiles(times).p50] as const)
  const total = percentiles(samples.map(({ totalMs }) => totalMs)).p50
  const rest = total - medians.reduce((sum, [, ms]) => sum + ms, 0)
  const rows = [...medians, ['everything else', rest] as const, ['**total**', total] as const]
  return table(
    ['phase', 'ms'],
    rows.map(([name, ms]) => [name, one(ms)]),
  )
}
