import type { Build } from '@berth/contracts'
import type { BuildRecord } from '@berth/persistence'
import { shortName } from '../images/names.plan.js'

/** A build as its tenant sees it. */
export const buildView = ({ tenantId: _, names, limits, options, ...record }: BuildRecord): Build => ({
  ...record,
  tags: names.map(shortName),
  limits: { ...limits },
  options: { ...options },
})
