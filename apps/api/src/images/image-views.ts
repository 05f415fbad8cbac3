import type { Image } from '@berth/contracts'
import type { ImageRecord } from '@berth/persistence'
import { shortName } from './names.plan.js'

/** An image as callers see it. */
export const imageView = ({ references, labels, addedAt, ...record }: ImageRecord): Image => ({
  ...record,
  references: references.map(shortName),
  labels: { ...labels },
  addedAt: addedAt?.toISOString() ?? null,
})
