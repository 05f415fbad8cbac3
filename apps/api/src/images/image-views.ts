import type { Image, ImageProgress } from '@berth/contracts'
import type { ImageRecord } from '@berth/persistence'
import type { Telling } from '../http/progress.js'
import { shortName } from './names.plan.js'

/** An image as callers see it. */
export const imageView = ({ references, labels, addedAt, ...record }: ImageRecord): Image => ({
  ...record,
  references: references.map(shortName),
  labels: { ...labels },
  addedAt: addedAt?.toISOString() ?? null,
})

/** What streams of images are told by. */
export const telling: Telling<ImageProgress, { images: Image[] }> = {
  failed: ({ code, message }) => ({ step: 'failed', code, message }),
  done: (step) => (step.step === 'done' ? { images: step.images } : undefined),
}
