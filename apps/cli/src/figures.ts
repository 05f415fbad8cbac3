// figures.ts: sizes and ages as people read them.
import { DAY, HOUR, MINUTE, SECOND } from '@berth/contracts'

const sizes = ['B', 'KiB', 'MiB', 'GiB', 'TiB'] as const

/** 1536 → `1.5 KiB`. */
export function sizeText(bytes: number): string {
  const power = bytes < 1 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), sizes.length - 1)
  return `${power === 0 ? bytes : (bytes / 1024 ** power).toFixed(1)} ${sizes[power]}`
}

const ages = [
  [365 * DAY, 'y'],
  [DAY, 'd'],
  [HOUR, 'h'],
  [MINUTE, 'm'],
] as const

/** In the largest unit of which there are two: 90 minutes → `90m`, 3 days → `3d`. */
export function ageText(ms: number): string {
  const found = ages.find(([unit]) => ms >= 2 * unit)
  return found ? `${Math.floor(ms / found[0])}${found[1]}` : `${Math.floor(Math.max(0, ms) / SECOND)}s`
}
