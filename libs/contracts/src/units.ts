import { z } from 'zod'

const binary: Readonly<Record<string, number>> = { '': 1, b: 1, k: 1024, m: 1024 ** 2, g: 1024 ** 3, t: 1024 ** 4 }
const durations: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/**
 * Bytes from `268435456`, `"256m"`, `"1.5g"`, `"64KiB"` (powers of 1024, as docker's `--memory`).
 * @returns whole bytes, or undefined when the text is not a size
 */
export function parseBytes(text: string): number | undefined {
  const match = /^(\d{1,15}(?:\.\d{1,6})?)\s*([bkmgt]?)(?:i?b)?$/i.exec(text.trim())
  const unit = binary[match?.[2]?.toLowerCase() ?? '?']
  if (!match?.[1] || unit === undefined) return undefined
  return Math.round(Number(match[1]) * unit)
}

/**
 * Milliseconds from `"250ms"`, `"10s"`, `"5m"`, `"1h30m"`, `"7d"` (Go's duration forms, and days).
 * @returns whole milliseconds, or undefined when the text is not a duration
 */
export function parseDuration(text: string): number | undefined {
  if (!/^(\d{1,12}(\.\d{1,6})?(ms|s|m|h|d))+$/.test(text)) return undefined
  let total = 0
  for (const [, amount, unit] of text.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h|d)/g))
    total += Number(amount) * (durations[unit ?? ''] ?? Number.NaN)
  return Math.round(total)
}

/** What is missing or null is told as of any field. */
const neither = (what: string) => ({
  error: ({ input }: { readonly input: unknown }) =>
    input === undefined || input === null ? undefined : `must be ${what}`,
})

const quantity = (what: string, parse: (text: string) => number | undefined, min: number, max: number) =>
  z.union([z.number(), z.string().max(32)], neither(what)).transform((value, context) => {
    const parsed = typeof value === 'number' ? value : parse(value)
    if (parsed === undefined || !Number.isSafeInteger(parsed)) {
      context.addIssue({ code: 'custom', message: `must be ${what}` })
      return z.NEVER
    }
    if (parsed < min || parsed > max) {
      context.addIssue({ code: 'custom', message: `must be between ${min} and ${max}, is ${parsed}` })
      return z.NEVER
    }
    return parsed
  })

/** A size in bytes: a whole number or text with a unit; becomes a number. */
export const Bytes = (min: number, max: number) =>
  quantity('a whole number of bytes or a size such as "256m"', parseBytes, min, max)

/** A duration: whole milliseconds or text with units; becomes milliseconds. */
export const DurationMs = (min: number, max: number) =>
  quantity('a whole number of milliseconds or a duration such as "10s"', parseDuration, min, max)

export const KiB = 1024
export const MiB = 1024 ** 2
export const GiB = 1024 ** 3
export const SECOND = 1000
export const MINUTE = 60_000
export const HOUR = 3_600_000
export const DAY = 86_400_000
