// shell-words.ts: quotes, escapes and variables in the words of a Dockerfile, as moby's shell.Lex takes them
// (moby/buildkit, frontend/dockerfile/shell/lex.go): like sh, but for what is said at each place.
import { invalidDockerfile, type Place } from './dockerfile-error.js'
import { type Glob, type GlobPart, matchEnd } from './glob.js'

/** What evaluating a Dockerfile may cost in all: a few lines can ask for more than any memory holds. */
export class Budget {
  private characters = 8 * 1024 * 1024
  private steps = 5_000_000
  private entries = 500_000

  /** @throws Failure dockerfile_invalid when it is used up */
  made(characters: number, at?: Place): void {
    this.characters -= characters
    if (this.characters < 0) throw invalidDockerfile('variables make too much text', at)
  }

  compared(steps: number, at?: Place): void {
    this.steps -= steps
    if (this.steps < 0) throw invalidDockerfile('substituting variables takes too long', at)
  }

  /** Variables, labels, ports and the like that a step has a copy of. */
  kept(entries: number, at?: Place): void {
    this.entries -= entries
    if (this.entries < 0) throw invalidDockerfile('there are too many variables, labels, ports or volumes', at)
  }
}

/** Longest word after substitution: a kernel takes no longer argument or variable (execve(2), MAX_ARG_STRLEN). */
const MAX_WORD = 128 * 1024
const MAX_DEPTH = 50

export interface WordOptions {
  readonly escape: '\\' | '`'
  readonly budget: Budget
  readonly at?: Place
  /** Quotes and escapes stay, as they were written. */
  readonly raw?: boolean
  /** Quotes are nothing special, as in a heredoc. */
  readonly noQuotes?: boolean
  /** Variables that are not set stay as they were written. */
  readonly keepUnset?: boolean
}

export interface Words {
  readonly word: string
  /** `word` where it is split at blanks that were not quoted, those of values included. */
  readonly words: readonly string[]
  /** Names that are not set, and for which nothing else was said. */
  readonly unset: ReadonlySet<string>
}

/**
 * Substitutes variables and takes quotes and escapes off.
 * @throws Failure dockerfile_invalid for what does not end, is no substitution, is longer than any word may be, or
 * `${name:?message}` of what is not set
 */
export function processWord(source: string, variables: ReadonlyMap<string, string>, options: WordOptions): Words {
  return new Lexer(source, variables, options).all()
}

const isSpace = (c: string) => /\s/.test(c)

/** Words while they are gathered. */
class Gathered {
  readonly words: string[] = []
  private word = ''

  /** Text that splits at blanks. */
  add(text: string): void {
    for (const c of text) {
      if (!isSpace(c)) this.word += c
      else this.end()
    }
  }

  addWhole(text: string): void {
    this.word += text
  }

  end(): void {
    if (this.word !== '') this.words.push(this.word)
    this.word = ''
  }
}

class Lexer {
  private readonly source: readonly string[]
  private at = 0
  private depth = 0
  private readonly unset = new Set<string>()

  constructor(
    private readonly written: string,
    private readonly variables: ReadonlyMap<string, string>,
    private readonly options: WordOptions,
  ) {
    this.source = [...written]
  }

  all(): Words {
    const { text, words } = this.until(undefined, this.options.raw === true)
    return { word: text, words, unset: this.unset }
  }

  private fail(message: string): never {
    const shown = this.written.length > 100 ? `${this.written.slice(0, 100)}…` : this.written
    throw invalidDockerfile(`${message} in ${JSON.stringify(shown)}`, this.options.at)
  }

  /** What is not substituted is no longer than the text is: that of a heredoc may be long. */
  private bounded(length: number): void {
    if (length > MAX_WORD && length > this.written.length)
      this.fail(`a word becomes longer than ${MAX_WORD} characters`)
  }

  private until(stop: string | undefined, rawEscapes: boolean): { text: string; words: readonly string[] } {
    if (++this.depth > MAX_DEPTH) this.fail('substitutions are nested too deep')
    const parts: string[] = []
    let length = 0
    const gathered = new Gathered()
    const take = (text: string, whole: boolean) => {
      length += text.length
      this.options.budget.made(text.length, this.options.at)
      this.bounded(length)
      parts.push(text)
      if (whole) gathered.addWhole(text)
      else gathered.add(text)
    }
    for (;;) {
      const c = this.source[this.at]
      if (c === stop) {
        this.at++
        break
      }
      if (c === undefined) this.fail(`there is no ${stop}`)
      if (c === '$') take(this.dollar(), false)
      else if (c === "'" && !this.options.noQuotes) take(this.single(), true)
      else if (c === '"' && !this.options.noQuotes) take(this.double(rawEscapes), true)
      else if (c === this.options.escape) {
        const next = this.source[this.at + 1]
        this.at += 2
        if (rawEscapes) take(c, true)
        if (next !== undefined) take(next, true)
      } else {
        this.at++
        take(c, false)
      }
    }
    this.depth--
    gathered.end()
    return { text: parts.join(''), words: gathered.words }
  }

  /** Everything to the next single quote is as it is. */
  private single(): string {
    const end = this.source.indexOf("'", this.at + 1)
    if (end < 0) this.fail('a single quote does not end')
    const text = this.source.slice(this.at + 1, end).join('')
    this.at = end + 1
    return this.options.raw ? `'${text}'` : text
  }

  /** Variables are substituted; an escape is one only before `"`, `$` and itself. */
  private double(rawEscapes: boolean): string {
    const { escape: token, raw } = this.options
    const parts = [raw ? '"' : '']
    let length = 0
    this.at++
    for (;;) {
      const c = this.source[this.at]
      if (c === undefined) return this.fail('a double quote does not end')
      if (c === '$') {
        const value = this.dollar()
        length += value.length
        this.options.budget.made(value.length, this.options.at)
        this.bounded(length)
        parts.push(value)
        continue
      }
      this.at++
      if (c === '"') break
      const next = this.source[this.at]
      if (c !== token || next === undefined) parts.push(c)
      else if (next === '"' || next === '$' || next === token) {
        this.at++
        parts.push(rawEscapes ? c + next : next)
      } else parts.push(rawEscapes ? c + c : c)
    }
    return `${parts.join('')}${raw ? '"' : ''}`
  }

  private lookUp(name: string, hasOther: boolean): string | undefined {
    const value = this.variables.get(name)
    if (value === undefined && !hasOther) this.unset.add(name)
    return value
  }

  private dollar(): string {
    this.at++
    if (this.source[this.at] !== '{') {
      const name = this.name()
      if (name === '') return '$'
      return this.lookUp(name, false) ?? (this.options.keepUnset ? `$${name}` : '')
    }
    this.at++
    const first = this.source[this.at]
    if (first === undefined) this.fail('there is no }')
    if (first === '{' || first === '}' || first === ':') this.fail('bad substitution')
    const begin = this.at
    const name = this.name()
    const value = this.lookUp(name, /[:+?-]/.test(this.source[this.at] ?? ''))
    const text = this.braced(name, value)
    if (value !== undefined || !this.options.keepUnset) return text
    return `\${${this.source.slice(begin, this.at).join('')}`
  }

  /** What follows the name in `${name…}`. */
  private braced(name: string, value: string | undefined): string {
    let operator = this.source[this.at++]
    if (operator === '}') return value ?? ''
    if (operator === '/') return this.replaced(value ?? '')
    const emptyIsUnset = operator === ':'
    if (emptyIsUnset) operator = this.source[this.at++]
    const missing = value === undefined || (emptyIsUnset && value === '')
    switch (operator) {
      case '-':
      case '+':
      case '?': {
        const { text } = this.until('}', false)
        if (operator === '-') return missing ? text : value
        if (operator === '+') return missing ? '' : text
        if (!missing || this.options.keepUnset) return value ?? ''
        return this.fail(
          `${name}: ${text || (value === undefined ? 'is not allowed to be unset' : 'is not allowed to be empty')}`,
        )
      }
      case '#':
      case '%': {
        if (emptyIsUnset) this.fail(`unsupported modifier (:${operator})`)
        const greedy = this.source[this.at] === operator
        if (greedy) this.at++
        const { text } = this.until('}', true)
        return this.trimmed(value ?? '', text, operator === '%', greedy)
      }
      case undefined:
        return this.fail('there is no }')
      default:
        return this.fail(`unsupported modifier (${emptyIsUnset ? ':' : ''}${operator})`)
    }
  }

  private name(): string {
    const first = this.source[this.at]
    if (first === undefined) return ''
    const begin = this.at
    const more = /\d/.test(first) ? /\d/ : /[\p{L}\p{Nd}_]/u
    if (/[@*#?\-$!]/.test(first)) this.at++
    else while (more.test(this.source[this.at] ?? '')) this.at++
    return this.source.slice(begin, this.at).join('')
  }

  private trimmed(value: string, pattern: string, atEnd: boolean, greedy: boolean): string {
    const glob = this.glob(pattern)
    const text = [...value]
    const found = atEnd
      ? this.match(glob.toReversed(), text.toReversed(), 0, greedy)
      : this.match(glob, text, 0, greedy)
    if (found === undefined) return value
    return (atEnd ? text.slice(0, text.length - found) : text.slice(found)).join('')
  }

  private replaced(value: string): string {
    const everywhere = this.source[this.at] === '/'
    if (everywhere) this.at++
    const glob = this.glob(this.until('/', true).text)
    const { text: replacement } = this.until('}', true)
    const text = [...value]
    const parts: string[] = []
    let length = 0
    let last = -1
    for (let i = 0; i <= text.length; ) {
      const end = this.match(glob, text, i, true)
      if (end === undefined || (end === i && i === last)) {
        parts.push(text[i++] ?? '')
        continue
      }
      parts.push(replacement)
      length += replacement.length
      this.bounded(length)
      last = end
      if (!everywhere) {
        parts.push(...text.slice(end))
        break
      }
      if (end === i) parts.push(text[i] ?? '')
      i = Math.max(end, i + 1)
    }
    return parts.join('')
  }

  /** `*` and `?` are wild; a backslash takes that from them, and is needed before `}` and `/`. */
  private glob(pattern: string): Glob {
    const glob: GlobPart[] = []
    const characters = [...pattern]
    for (let i = 0; i < characters.length; i++) {
      const c = characters[i] ?? ''
      const next = characters[i + 1] ?? ''
      if (c === '*') glob.push(star)
      else if (c === '?') glob.push(one)
      else if (c !== '\\') glob.push(c)
      else if (next !== '' && '*?\\}/'.includes(next)) {
        glob.push(next)
        i++
      } else this.fail(`invalid escape \\${next} in a pattern`)
    }
    return glob
  }

  private match(glob: Glob, text: readonly string[], from: number, longest: boolean): number | undefined {
    return matchEnd(glob, text, from, longest, (steps) => this.options.budget.compared(steps, this.options.at))
  }
}

const notNewline = (character: string) => character !== '\n'
const star: GlobPart = { kind: 'many', wild: notNewline }
const one: GlobPart = { kind: 'one', wild: notNewline }

/** Words with their quotes and escapes, which go when variables are substituted. */
export function quotedWords(text: string, escapeCharacter: '\\' | '`'): string[] {
  const words: string[] = []
  let word = ''
  let quote = ''
  let begun = false
  const characters = [...text]
  for (let i = 0; i < characters.length; i++) {
    const c = characters[i] ?? ''
    if (quote === '' && /\s/.test(c)) {
      if (begun) words.push(word)
      word = ''
      begun = false
      continue
    }
    // An escape at the end is left out.
    if (c === escapeCharacter && quote !== "'") {
      const next = characters[++i]
      if (next !== undefined) {
        word += c + next
        begun = true
      }
      continue
    }
    if (quote === '' && (c === '"' || c === "'")) quote = c
    else if (c === quote) quote = ''
    word += c
    begun = true
  }
  if (begun) words.push(word)
  return words
}

const heredocStart = /^\d*<<(-?)([^<]+)$/

/** The heredoc that a word begins, without content. @throws Failure dockerfile_invalid for quotes that do not end */
export function heredocWord(word: string): { name: string; expand: boolean; chomp: boolean } | undefined {
  const [, dash, rest = ''] = heredocStart.exec(word) ?? []
  if (dash === undefined) return undefined
  const { words } = processWord(rest, new Map(), { escape: '\\', keepUnset: true, budget: new Budget() })
  const [name] = words
  if (name === undefined || words.length > 1) return undefined
  // Quoted in any part of it is quoted.
  const quotes = (text: string) => text.replace(/[^'"]/g, '').length
  return { name, expand: quotes(name) === quotes(rest), chomp: dash === '-' }
}
