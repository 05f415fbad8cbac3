// records.ts: what berth-files answers, bytes → values. A record is a line of words and then as many bytes as it
// announces (libs/init/README.md). It comes out of the sandbox, so whatever it is, it is bounded and made of what the
// contract allows, or refused.

import { FileEvent, type FileStat } from '@berth/contracts'
import { nonsense } from './files.plan.js'

/** Longest line: twelve words, the longest of 20 digits. */
const MAX_LINE = 256
/** Longest name, path or target: PATH_MAX, and for the path of an event below a directory once more. */
const MAX_BYTES = 2 * 4096

/** A line as words, and the bytes that came with it. */
export interface RawRecord {
  readonly words: readonly string[]
  readonly first: Buffer
  readonly second: Buffer
}

/** Cuts a stream into records whose last two words are lengths. Holds back at most one unfinished record. */
export class RecordReader {
  #rest: Buffer = Buffer.alloc(0)

  /** @throws Failure `unavailable` for what is no record */
  push(chunk: Buffer): readonly RawRecord[] {
    let rest = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk])
    const records: RawRecord[] = []
    for (let end = endOfLine(rest); end >= 0; end = endOfLine(rest)) {
      const words = rest.toString('latin1', 0, end).split(' ')
      const middle = end + 1 + lengthOf(words.at(-2))
      const next = middle + lengthOf(words.at(-1))
      if (rest.length < next) break
      records.push({ words, first: rest.subarray(end + 1, middle), second: rest.subarray(middle, next) })
      rest = rest.subarray(next)
    }
    this.#rest = rest
    return records
  }

  /** The stream has ended. @throws Failure `unavailable` inside a record */
  end(): void {
    if (this.#rest.length > 0) throw nonsense()
  }
}

function endOfLine(bytes: Buffer): number {
  const end = bytes.subarray(0, MAX_LINE).indexOf(10)
  if (end < 0 && bytes.length >= MAX_LINE) throw nonsense()
  return end
}

function lengthOf(word: string | undefined): number {
  const length = natural(word)
  if (length > MAX_BYTES) throw nonsense()
  return length
}

function natural(word: string | undefined): number {
  const value = /^\d{1,20}$/.test(word ?? '') ? Number(word) : Number.NaN
  if (!Number.isSafeInteger(value)) throw nonsense()
  return value
}

const kinds: Readonly<Record<string, FileStat['kind']>> = {
  f: 'file',
  d: 'directory',
  l: 'symlink',
  p: 'fifo',
  s: 'socket',
  b: 'block',
  c: 'char',
}

/**
 * `stat KIND SIZE MODE UID GID LINKS MTIME`, its name and its target.
 * @param path what it is the answer for; of an entry of a directory, the directory
 */
export function statOf(record: RawRecord, path: string): FileStat {
  const [word, letter = '', size, mode = '', uid, gid, links, mtime = ''] = record.words
  const kind = kinds[letter]
  if (word !== 'stat' || record.words.length !== 10 || !kind || !/^[0-7]{1,4}$/.test(mode)) throw nonsense()
  const own = record.first.length > 0 ? below(path, text(record.first)) : path
  return {
    path: own,
    name: own.replace(/\/+$/, '').split('/').at(-1) ?? '',
    kind,
    sizeBytes: natural(size),
    mode: mode.padStart(4, '0'),
    uid: natural(uid),
    gid: natural(gid),
    links: natural(links),
    modifiedAt: timeOf(mtime),
    target: kind === 'symlink' ? text(record.second) : null,
    nameBase64: isText(record.first) ? null : record.first.toString('base64'),
  }
}

const below = (directory: string, name: string) => `${directory.replace(/\/+$/, '')}/${name}`

const text = (bytes: Buffer) => bytes.toString('utf8')
const isText = (bytes: Buffer) => Buffer.from(text(bytes), 'utf8').equals(bytes)

/** RFC 3339 has the years 0 to 9999; a file may be older or newer. */
const EARLIEST_MS = Date.parse('0000-01-01T00:00:00Z')
const LATEST_MS = Date.parse('9999-12-31T23:59:59Z')

function timeOf(mtime: string): string {
  const [, seconds, fraction] = /^(-?\d{1,20})\.(\d{9})$/.exec(mtime) ?? []
  if (seconds === undefined || fraction === undefined) throw nonsense()
  const ms = Number(seconds) * 1000 + Math.floor(Number(fraction) / 1e6)
  return new Date(Math.min(LATEST_MS, Math.max(EARLIEST_MS, ms))).toISOString()
}

/** `EVENT DIRECTORY`, its path and the path before, both below the watched directory `path`. */
export function eventOf({ words, first, second }: RawRecord, path: string): FileEvent {
  const type = FileEvent.shape.type.safeParse(words[0])
  if (!type.success || words.length !== 4) throw nonsense()
  return {
    type: type.data,
    path: first.length > 0 ? below(path, text(first)) : path,
    from: type.data === 'renamed' ? below(path, text(second)) : null,
    directory: words[1] === '1',
  }
}
