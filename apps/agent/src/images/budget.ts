// budget.ts: how much of a quota a request may use.
import { Failure, MiB } from '@berth/contracts'
import { layerLimits } from './layers.js'

/** Bytes that may be unpacked for one request. */
export class Budget {
  #left: number

  constructor(maxBytes: number | undefined) {
    this.#left = maxBytes ?? Number.POSITIVE_INFINITY
  }

  get left(): number {
    return Math.min(this.#left, layerLimits.maxBytes)
  }

  take(bytes: number): void {
    this.#left -= bytes
    if (this.#left < 0) throw tooMuch()
  }
}

/**
 * Most bytes of a layer, packed or not, that becomes so many: of small files a tar's headers are more than what is in
 * them.
 */
export const packedAtMost = (unpackedBytes: number): number => 2 * unpackedBytes + 256 * MiB

export const tooMuch = () =>
  new Failure('quota_exceeded', 'the image is larger than what is left of the quota of images')
