// log-lines.ts: entries of a log, which may be parts of a line, as lines to show. Bounded: the oldest lines go.
import type { LogEntry } from '@berth/contracts'
import { plainText } from '../format.js'

export interface LogLine {
  /** Grows with every line and stays with it. */
  readonly id: number
  readonly stream: LogEntry['stream']
  readonly at: string
  readonly text: string
  /** Its line feed has come. */
  readonly whole: boolean
}

export interface LogLines {
  readonly lines: readonly LogLine[]
  /** Offset to go on from: that of the last entry. */
  readonly since: number | undefined
  /** Lines that were dropped at the beginning. */
  readonly dropped: number
  readonly nextId: number
}

/** Lines that are kept, and characters of one line that are shown. */
export const MAX_LINES = 5000
const MAX_TEXT = 10_000

export const noLines: LogLines = { lines: [], since: undefined, dropped: 0, nextId: 0 }

/** The lines with more entries added, in their order. What one stream left open, the next part of it goes on with. */
export function addEntries(known: LogLines, entries: readonly LogEntry[]): LogLines {
  if (entries.length === 0) return known
  const lines = [...known.lines]
  let nextId = known.nextId
  for (const { stream, at, text } of entries) {
    const parts = text.split('\n')
    const last = parts.pop() ?? ''
    for (const part of parts) nextId = addPart(lines, { id: nextId, stream, at, text: part, whole: true })
    if (last !== '') nextId = addPart(lines, { id: nextId, stream, at, text: last, whole: false })
  }
  const over = Math.max(0, lines.length - MAX_LINES)
  return {
    lines: over > 0 ? lines.slice(over) : lines,
    since: entries.at(-1)?.offset ?? known.since,
    dropped: known.dropped + over,
    nextId,
  }
}

/** How far back the open line of a stream can be: lines of the other stream that came between. */
const LOOK_BACK = 50

function addPart(lines: LogLine[], part: LogLine): number {
  for (let i = lines.length - 1; i >= 0 && i >= lines.length - LOOK_BACK; i--) {
    const line = lines[i]
    if (line?.stream !== part.stream) continue
    if (line.whole) break
    lines[i] = { ...line, text: clip(line.text + part.text), whole: part.whole }
    return part.id
  }
  lines.push({ ...part, text: clip(part.text) })
  return part.id + 1
}

const clip = (text: string): string => (text.length > MAX_TEXT ? text.slice(0, MAX_TEXT) : text)

/** A line as it is shown: without control characters. */
export const shownText = ({ text }: LogLine): string => plainText(text)

/** Parts of a text, those that were searched for marked; upper and lower case are the same. */
export function marked(text: string, search: string): readonly { readonly text: string; readonly hit: boolean }[] {
  if (search === '') return [{ text, hit: false }]
  const found: { text: string; hit: boolean }[] = []
  const [where, what] = [text.toLowerCase(), search.toLowerCase()]
  // Where lower case has another length (İ), positions would not fit: then nothing is marked.
  if (where.length !== text.length) return [{ text, hit: false }]
  let at = 0
  for (let next = where.indexOf(what); next !== -1; next = where.indexOf(what, at)) {
    if (next > at) found.push({ text: text.slice(at, next), hit: false })
    found.push({ text: text.slice(next, next + what.length), hit: true })
    at = next + what.length
  }
  if (at < text.length || found.length === 0) found.push({ text: text.slice(at), hit: false })
  return found
}
