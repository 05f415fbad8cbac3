// policy.ts: whether an image may be started, by what is known of it.
import type { ImagePolicy, ImageVulnerability, PolicyVerdict } from '@berth/contracts'
import { isAtLeast } from './severity.js'

const MOST_IDS = 100

/**
 * @param found worst first
 * @param complete whether all of the image was looked at: of one that was not nobody knows what is in it
 */
export function verdictOf(
  { mode, severity, fixableOnly, exempt }: ImagePolicy,
  found: readonly ImageVulnerability[],
  complete: boolean,
): PolicyVerdict {
  if (mode === 'off') return { mode, allowed: true, against: [] }
  const exempted = new Set(exempt.map((id) => id.toUpperCase()))
  const against = found.filter(
    (one) =>
      isAtLeast(one.severity, severity) &&
      (!fixableOnly || one.fixedVersion !== null) &&
      ![one.id, ...one.aliases].some((id) => exempted.has(id.toUpperCase())),
  )
  const ids = [...new Set(against.map(({ id }) => id))].slice(0, MOST_IDS)
  return { mode, allowed: mode !== 'refuse' || (complete && ids.length === 0), against: ids }
}
