// format.ts: values as people read them. The time now and the zone come in as values where they matter.

const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const

/** Bytes with a binary unit and at most three digits that count: `1.5 GiB`. */
export function bytes(value: number): string {
  let at = 0
  let left = Math.abs(value)
  while (left >= 999.5 && at < units.length - 1) {
    left /= 1024
    at++
  }
  const text = at === 0 || left >= 99.95 ? String(Math.round(left)) : left.toFixed(left >= 9.995 ? 1 : 2)
  const shown = text.includes('.') ? text.replace(/\.?0+$/, '') : text
  return `${value < 0 ? '-' : ''}${shown} ${units[at]}`
}

/** A count or a share with at most three digits that count: `0.25`, `12.5`, `1,200`. */
export function number(value: number): string {
  return value.toLocaleString(
    'en',
    Math.abs(value) >= 100 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 3 },
  )
}

const steps = [
  ['d', 86_400_000],
  ['h', 3_600_000],
  ['min', 60_000],
  ['s', 1000],
] as const

/** Milliseconds by their two largest units: `340 ms`, `2.5 s`, `3 min 20 s`, `5 d 2 h`. */
export function duration(ms: number): string {
  if (ms < 999.5) return `${ms < 10 && ms % 1 !== 0 ? ms.toFixed(1) : Math.round(ms)} ms`
  if (ms < 59_950) return `${Number((ms / 1000).toFixed(1))} s`
  const first = steps.findIndex(([, size]) => ms >= size - 500)
  const [name, size] = steps[first] ?? steps[3]
  const [minor, part] = steps[first + 1] ?? steps[3]
  const all = Math.round(ms / part)
  const whole = Math.floor((all * part) / size)
  const rest = all - (whole * size) / part
  return rest === 0 ? `${whole} ${name}` : `${whole} ${name} ${rest} ${minor}`
}

/** How long ago, or in how long: `just now`, `3 min ago`, `in 2 h`. */
export function ago(at: string, nowMs: number): string {
  const ms = nowMs - Date.parse(at)
  const [name, size] = steps.find(([, one]) => Math.abs(ms) >= one) ?? steps[3]
  const count = Math.round(Math.abs(ms) / size)
  if (count < 5 && name === 's') return ms >= 0 ? 'just now' : 'in a moment'
  return ms >= 0 ? `${count} ${name} ago` : `in ${count} ${name}`
}

/** A time as the browser's own zone has it: `27 Nov 2026, 14:03:09`. */
export function time(at: string): string {
  return new Date(at).toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'medium' })
}

/** An argument vector as a shell would take it, to read and to copy. */
export function commandLine(argv: readonly string[]): string {
  return argv.map((arg) => (/^[\w@%+=:,./-]+$/.test(arg) ? arg : `'${arg.replaceAll("'", "'\\''")}'`)).join(' ')
}

/** `word`, or its plural where the count asks for it. */
export const counted = (count: number, word: string, plural = `${word}s`): string =>
  `${number(count)} ${count === 1 ? word : plural}`

/** Who did something: of an id its kind and its end, which is what differs. */
export const actor = (by: string): string => by.replace(/^([a-z]{3})_[0-9a-z]{18}([0-9a-z]{8})$/, '$1 …$2')

// Control sequences as ECMA-48 has them: CSI …, OSC … up to BEL or ST, two-character ones; and other control characters
// but tab and line feed.
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const control = /\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]|[\x00-\x08\x0b-\x1f\x7f]/g

/** Text without what would colour it or move a cursor. */
export const plainText = (text: string): string => text.replace(control, '')
