// dockerignore.ts: what a .dockerignore leaves out of a build's context, by the rules of moby's patternmatcher and
// ignorefile (github.com/moby/patternmatcher), their oddities included: people's files rely on them.
import { Failure } from '@berth/contracts'
import { type Glob, type GlobPart, matches } from './glob.js'

/** Longest text that is read, in characters, and most patterns in it. */
const MAX_IGNORE_LENGTH = 256 * 1024
const MAX_IGNORE_PATTERNS = 2000

export interface Ignore {
  /** Patterns of it begin with "!": below what is ignored, there may be something that is not. */
  readonly hasExceptions: boolean
  /**
   * Whether a path is left out; a directory may be and have something in it that is not.
   * @param path from the root of the context, without a slash at either end, `a/b`; of a directory too
   */
  ignores(path: string): boolean
}

/** @throws Failure context_invalid, naming the line, for a pattern that is none */
export function parseIgnore(text: string): Ignore {
  if (text.length > MAX_IGNORE_LENGTH)
    throw new Failure('context_invalid', `.dockerignore is longer than ${MAX_IGNORE_LENGTH} characters`)
  const lines = text.replace(/^\uFEFF/, '').split('\n')
  const patterns = lines.flatMap((line, i) => {
    if (line.startsWith('#')) return []
    const written = line.trim()
    if (written === '') return []
    const except = written.startsWith('!')
    const path = except ? written.slice(1).trim() : written
    if (path === '') throw new Failure('context_invalid', `.dockerignore, line ${i + 1}: nothing follows "!"`)
    const cleaned = clean(path)
    const pattern = cleaned.length > 1 && cleaned.startsWith('/') ? cleaned.slice(1) : cleaned
    return [parsePattern(pattern, except, `.dockerignore, line ${i + 1}`)]
  })
  return ignoreOf(patterns)
}

/**
 * The same for patterns that were not read from a file, as those of `COPY --exclude`.
 * @throws Failure context_invalid
 */
export const ignorePatterns = (patterns: readonly string[]): Ignore =>
  ignoreOf(
    patterns.flatMap((written) => {
      if (written.trim() === '') return []
      const pattern = clean(written.trim())
      const except = pattern.startsWith('!')
      return [parsePattern(except ? pattern.slice(1) : pattern, except, JSON.stringify(written))]
    }),
  )

interface Pattern {
  readonly except: boolean
  matches(path: string, spent: (steps: number) => void): boolean
}

/** Steps of matching that one set of patterns may take, a second of them: usual ones need a hundredth per 100,000 files. */
const MAX_STEPS = 20_000_000

function ignoreOf(patterns: readonly Pattern[]): Ignore {
  if (patterns.length > MAX_IGNORE_PATTERNS)
    throw new Failure('context_invalid', `there are more than ${MAX_IGNORE_PATTERNS} patterns to ignore`)
  let left = MAX_STEPS
  const spent = (steps: number) => {
    left -= steps
    if (left < 0) throw new Failure('context_invalid', 'the patterns to ignore take too long to match')
  }
  // A tree is gone through directory by directory: what was found of the last one's is used again.
  let known: { readonly directory: string; readonly by: readonly boolean[] } | undefined
  /** Which patterns a path is matched by, itself or because its directory is. */
  const matchedBy = (path: string): { readonly by: readonly boolean[]; readonly ignored: boolean } => {
    const directory = path.slice(0, Math.max(0, path.lastIndexOf('/')))
    if (directory !== '' && known?.directory !== directory) known = { directory, by: matchedBy(directory).by }
    const above = directory === '' ? [] : (known?.by ?? [])
    let ignored = false
    const by = patterns.map((pattern, i) => {
      // One that could change nothing is not asked, which shows below: it then counts as no match of the directory.
      const matched = above[i] || (pattern.except === ignored && pattern.matches(path, spent))
      if (matched) ignored = !pattern.except
      return matched
    })
    return { by, ignored }
  }
  return {
    hasExceptions: patterns.some(({ except }) => except),
    ignores: (path) => path !== '' && path !== '.' && matchedBy(path).ignored,
  }
}

/** As Go's filepath.Clean: no empty, `.` or `..` component but at the beginning. */
export function clean(path: string): string {
  const parts: string[] = []
  for (const part of path.split('/')) {
    if (part === '' || part === '.') continue
    if (part !== '..') parts.push(part)
    else if (parts.length > 0 && parts.at(-1) !== '..') parts.pop()
    else if (!path.startsWith('/')) parts.push(part)
  }
  return (path.startsWith('/') ? '/' : '') + parts.join('/') || '.'
}

const notSlash = (character: string) => character !== '/'
const notNewline = (character: string) => character !== '\n'

function parsePattern(pattern: string, except: boolean, where: string): Pattern {
  const refuse = (why: string) => new Failure('context_invalid', `${where}: ${JSON.stringify(pattern)} ${why}`)
  if (pattern === '') throw refuse('is no pattern')
  // No path is longer (limits.h, PATH_MAX).
  if (pattern.length > 4096) throw new Failure('context_invalid', `${where}: a pattern has more than 4096 characters`)
  const glob: GlobPart[] = []
  // moby compares what has no other wildcard than `**` at one end as text, which differs from its own expressions.
  let kind: 'text' | 'prefix' | 'suffix' | 'glob' = 'text'
  const characters = [...pattern]
  for (let i = 0; i < characters.length; ) {
    const begin = i
    const c = characters[i++] ?? ''
    if (c === '*' && characters[i] === '*') {
      i++
      if (characters[i] === '/') i++
      if (i < characters.length) {
        glob.push({ kind: 'directories' }, { kind: 'within' })
        kind = 'glob'
      } else {
        glob.push({ kind: 'many', wild: notNewline })
        kind = kind === 'text' ? 'prefix' : 'glob'
      }
      if (begin === 0) kind = 'suffix'
    } else if (c === '*' || c === '?') {
      glob.push({ kind: c === '*' ? 'many' : 'one', wild: notSlash })
      kind = 'glob'
    } else if (c === '[') {
      const end = classEnd(characters, i)
      if (end === undefined) throw refuse('has a "[" that does not end')
      glob.push({ kind: 'one', wild: characterClass(characters.slice(i, end), refuse) })
      kind = 'glob'
      i = end + 1
    } else if (c === '\\') {
      const next = characters[i++]
      if (next === undefined) throw refuse('ends with an escape')
      glob.push(next)
      kind = 'glob'
    } else glob.push(c)
  }
  const needle = longestText(glob)
  const head = pattern.slice(0, -2)
  const tail = pattern.slice(2)
  switch (kind) {
    case 'text':
      return { except, matches: (path) => path === pattern }
    case 'prefix':
      return { except, matches: (path) => path.startsWith(head) }
    case 'suffix':
      return { except, matches: (path) => path.endsWith(tail) || (tail.startsWith('/') && path === tail.slice(1)) }
    case 'glob':
      // Most paths have none of it.
      return {
        except,
        matches: (path, spent) => path.includes(needle) && matches(glob, path, spent),
      }
  }
}

/** The longest text that is in whatever a pattern matches. */
function longestText(glob: Glob): string {
  let longest = ''
  let text = ''
  for (const part of glob) {
    text = typeof part === 'string' ? text + part : ''
    if (text.length > longest.length) longest = text
  }
  return longest
}

/** Where a class that begins at `from`, after its bracket, has its end; a class holds at least one character. */
function classEnd(characters: readonly string[], from: number): number | undefined {
  const first = characters[from] === '^' ? from + 1 : from
  for (let i = first; i < characters.length; i++) {
    if (characters[i] === '\\') i++
    else if (characters[i] === ']') return i > first ? i : undefined
  }
  return undefined
}

/** `a-z_`, with `^` before it for all others. */
function characterClass(written: readonly string[], refuse: (why: string) => Failure): (character: string) => boolean {
  const negated = written[0] === '^'
  const ranges: [number, number][] = []
  for (let i = negated ? 1 : 0; i < written.length; ) {
    const take = (): number => {
      if (written[i] === '\\') i++
      const code = written[i++]?.codePointAt(0)
      if (code === undefined) throw refuse('has a range that does not end')
      return code
    }
    if (written[i] === '-') throw refuse('has a range that does not begin')
    const low = take()
    if (written[i] !== '-') ranges.push([low, low])
    else {
      i++
      const high = take()
      if (high < low) throw refuse('has a range that ends before it begins')
      ranges.push([low, high])
    }
  }
  return (character) => {
    const code = character.codePointAt(0) ?? 0
    return ranges.some(([low, high]) => low <= code && code <= high) !== negated
  }
}
