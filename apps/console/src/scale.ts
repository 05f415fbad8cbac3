// scale.ts: where points of a chart lie. Everything is a value; the component draws it.

/** A value at a moment; `null` where there is none, so the line is broken. */
export interface Point {
  readonly at: number
  readonly value: number | null
}

export interface Scale {
  /** Upper end of the axis: a round number at or above every value. */
  readonly max: number
  /** Marks from 0 to `max`, both included. */
  readonly ticks: readonly number[]
}

/**
 * A scale from zero to a round end. Binary quantities get ends that are round in powers of two.
 * @param values of what is drawn; without any, or all zero, the end is `least`
 * @param least smallest upper end, above 0
 * @param base 1000 for plain numbers, 1024 for bytes
 */
export function scaleOf(values: readonly number[], least: number, base: 1000 | 1024 = 1000): Scale {
  const top = Math.max(least, ...values)
  const unit = base === 1024 ? 1024 ** Math.floor(Math.log(top) / Math.log(1024)) : 1
  const step = unit * roundStep(top / unit / 4, base === 1024)
  const count = Math.ceil(top / step - 1e-9)
  return { max: step * count, ticks: Array.from({ length: count + 1 }, (_, i) => step * i) }
}

/** The smallest of 1, 2, 2.5, 5, 10 … (or of powers of two) that is not below `rough`. */
function roundStep(rough: number, binary: boolean): number {
  if (binary) return 2 ** Math.ceil(Math.log2(rough) - 1e-9)
  const power = 10 ** Math.floor(Math.log10(rough))
  const factor = [1, 2, 2.5, 5, 10].find((one) => one * power >= rough - 1e-12 * power) ?? 10
  return factor * power
}

export interface Box {
  readonly width: number
  readonly height: number
}

/**
 * The line through points as an SVG path (SVG 2, 9.3), from the lower left corner up; time runs from `from` to `to`.
 * Points outside the span are left out, but for the last one before it, which the line comes from.
 */
export function linePath(points: readonly Point[], span: { from: number; to: number }, max: number, box: Box): string {
  const x = (at: number) => round(((at - span.from) / (span.to - span.from)) * box.width)
  const y = (value: number) => round(box.height - (Math.min(value, max) / max) * box.height)
  const first = points.findIndex(({ at }) => at >= span.from)
  const parts: string[] = []
  let drawing = false
  for (const { at, value } of first === -1 ? [] : points.slice(Math.max(0, first - 1))) {
    if (value === null || at > span.to) {
      drawing = false
      continue
    }
    parts.push(`${drawing ? 'L' : 'M'}${x(at)} ${y(value)}`)
    drawing = true
  }
  return parts.join('')
}

const round = (value: number): number => Math.round(value * 10) / 10

/** Keeps the newest points: those at or after `since`, and one before, so that a line may come in from the left. */
export function keepSince(points: readonly Point[], since: number): readonly Point[] {
  const first = points.findIndex(({ at }) => at >= since)
  return first <= 1 ? points : points.slice(first - 1)
}

/** The point nearest to a moment that has a value; undefined where there is none. */
export function nearest(points: readonly Point[], at: number): Point | undefined {
  let best: Point | undefined
  for (const point of points)
    if (point.value !== null && (!best || Math.abs(point.at - at) < Math.abs(best.at - at))) best = point
  return best
}
