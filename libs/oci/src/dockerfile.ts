// dockerfile.ts: the text of a Dockerfile → instructions with their lines, as BuildKit's parser does it
// (moby/buildkit, frontend/dockerfile/parser): directives, comments, continued lines, heredocs, flags, JSON forms.
// What an instruction means is decided in build-plan.ts and build-stage.ts.
import { Failure } from '@berth/contracts'
import { didYouMean, invalidDockerfile, type Place } from './dockerfile-error.js'
import { Budget, processWord } from './shell-words.js'

/** Longest text that is parsed, in bytes: BuildKit's own limit is 2 MiB for all of it, and 64 KiB for a line. */
export const MAX_DOCKERFILE_BYTES = 1024 * 1024
/** Most instructions in a Dockerfile, those of heredocs not counted. */
export const MAX_INSTRUCTIONS = 2000

export const keywords = [
  'ADD',
  'ARG',
  'CMD',
  'COPY',
  'ENTRYPOINT',
  'ENV',
  'EXPOSE',
  'FROM',
  'HEALTHCHECK',
  'LABEL',
  'MAINTAINER',
  'ONBUILD',
  'RUN',
  'SHELL',
  'STOPSIGNAL',
  'USER',
  'VOLUME',
  'WORKDIR',
] as const
export type Keyword = (typeof keywords)[number]

export interface Heredoc {
  readonly name: string
  /** Variables in it are substituted: its name was not quoted. */
  readonly expand: boolean
  /** Without leading tabs where it began with `<<-`. */
  readonly content: string
  /** `content` as it was written. */
  readonly written: string
}

export interface Instruction {
  readonly keyword: Keyword
  /** Number of its first line, from 1. */
  readonly line: number
  readonly endLine: number
  /** Continued lines joined, as history tells of it; heredocs are not in it. */
  readonly text: string
  /** `--name` or `--name=value` each, quotes taken off. */
  readonly flags: readonly string[]
  /** What follows keyword and flags, without blanks around it. */
  readonly rest: string
  /** The words of the JSON form, where `rest` is one and the instruction has it. */
  readonly json: readonly string[] | undefined
  readonly heredocs: readonly Heredoc[]
  /** What ONBUILD is about. */
  readonly trigger: Instruction | undefined
}

export interface DockerfileWarning {
  readonly message: string
  readonly line: number | null
}

export interface Dockerfile {
  readonly escape: '\\' | '`'
  readonly instructions: readonly Instruction[]
  readonly warnings: readonly DockerfileWarning[]
}

/**
 * @throws Failure dockerfile_invalid, with `line` (null when it is about the whole) and `instruction` in its data
 */
export function parseDockerfile(text: string): Dockerfile {
  if (Buffer.byteLength(text) > MAX_DOCKERFILE_BYTES)
    throw invalidDockerfile(`the Dockerfile is longer than ${MAX_DOCKERFILE_BYTES} bytes`, undefined)
  const zero = text.indexOf('\0')
  if (zero >= 0) throw invalidDockerfile('there is a zero byte', { line: text.slice(0, zero).split('\n').length })
  const lines = text.replace(/^\uFEFF/, '').split(/(?<=\n)/)
  const { token, ignored } = directives(lines)
  const warnings: DockerfileWarning[] = ignored.map((message, i) => ({ message, line: i + 1 }))
  const instructions: Instruction[] = []
  const source = new Lines(lines, token)
  for (let found = source.next(); found; found = source.next()) {
    if (instructions.length >= MAX_INSTRUCTIONS)
      throw invalidDockerfile(`there are more than ${MAX_INSTRUCTIONS} instructions`, { line: found.line })
    if (found.gap)
      warnings.push({ message: 'an empty line in a continued instruction will be an error one day', line: found.line })
    instructions.push(instruction(found.text, found.line, source, true))
  }
  if (instructions.length === 0) throw invalidDockerfile('the Dockerfile has no instructions', undefined)
  return { escape: token, instructions, warnings }
}

/** An ONBUILD trigger of an image: one instruction, heredocs included. @throws Failure dockerfile_invalid */
export function parseTrigger(text: string, line: number): Dockerfile {
  const file = parseDockerfile(text)
  return {
    ...file,
    instructions: file.instructions.map((one) => ({ ...one, line, endLine: line })),
  }
}

const known = new Set(['escape', 'syntax', 'check'])

/** `# name=value` lines before anything else. `syntax` names another parser, and there is none but this. */
function directives(lines: readonly string[]): { token: '\\' | '`'; ignored: string[] } {
  const seen = new Map<string, string>()
  const ignored: string[] = []
  for (const [i, line] of lines.entries()) {
    const [, written = '', value = ''] = /^\s*#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$/.exec(line) ?? []
    const name = written.toLowerCase()
    if (!known.has(name)) break
    if (seen.has(name)) throw invalidDockerfile(`only one ${name} directive can be used`, { line: i + 1, text: line })
    seen.set(name, value)
    if (name === 'escape' && value !== '\\' && value !== '`')
      throw invalidDockerfile(`escape must be \\ or \`, not ${JSON.stringify(value)}`, { line: i + 1, text: line })
  }
  return { token: seen.get('escape') === '`' ? '`' : '\\', ignored }
}

const trimNewline = (line: string) => line.replace(/\r?\n$/, '')
const isComment = (line: string) => /^\s*#/.test(line)

/** The lines of a text, taken as whole instructions and as heredocs. */
class Lines {
  private at = 0
  private readonly continued: RegExp

  constructor(
    private readonly lines: readonly string[],
    readonly token: '\\' | '`',
  ) {
    // Two escape characters are one that is escaped.
    this.continued = token === '`' ? /(^|[^`])`[ \t]*$/ : /(^|[^\\])\\[ \t]*$/
  }

  /** The next instruction with the lines that continue it; comments between them are not part of it. */
  next(): { text: string; line: number; gap: boolean } | undefined {
    while (this.at < this.lines.length) {
      const first = trimNewline(this.lines[this.at++] ?? '').trimStart()
      const line = this.at
      if (first === '' || isComment(first)) continue
      let { text, more } = this.joined(first)
      let gap = false
      while (more && this.at < this.lines.length) {
        const written = trimNewline(this.lines[this.at++] ?? '')
        if (isComment(written)) continue
        if (written.trim() === '') {
          gap = this.at < this.lines.length || gap
          continue
        }
        const next = this.joined(written)
        text += next.text
        more = next.more
      }
      if (text.trim() !== '') return { text, line, gap }
    }
    return undefined
  }

  get line(): number {
    return this.at
  }

  /** The lines to a heredoc's name, or undefined where it does not come. */
  heredoc(name: string, chomp: boolean): string | undefined {
    const content: string[] = []
    while (this.at < this.lines.length) {
      const written = this.lines[this.at++] ?? ''
      const line = trimNewline(written)
      if ((chomp ? line.replace(/^\t+/, '') : line) === name) return content.join('')
      content.push(written)
    }
    return undefined
  }

  private joined(line: string): { text: string; more: boolean } {
    const more = this.continued.test(line)
    return { text: more ? line.replace(this.continued, '$1') : line, more }
  }
}

const jsonForms: ReadonlySet<Keyword> = new Set(['ADD', 'COPY', 'CMD', 'ENTRYPOINT', 'RUN', 'SHELL', 'VOLUME'])
const heredocForms: ReadonlySet<Keyword> = new Set(['ADD', 'COPY', 'RUN'])
const isKeyword = (word: string): word is Keyword => (keywords as readonly string[]).includes(word)

function instruction(written: string, line: number, source: Lines, outermost: boolean): Instruction {
  const text = written.trim()
  const [, word = '', args = ''] = /^(\S+)[\t\v\f\r ]*([\s\S]*)$/.exec(text) ?? []
  const keyword = word.toUpperCase()
  if (!isKeyword(keyword)) {
    const hint = didYouMean(keyword, keywords)
    throw invalidDockerfile(`unknown instruction ${JSON.stringify(word.slice(0, 100))}${hint}`, { line, text })
  }
  const at = { line, text, keyword }
  const { flags, rest } = takeFlags(args)
  const trigger = keyword === 'ONBUILD' && outermost && rest !== '' ? instruction(rest, line, source, false) : undefined
  const heredocs = heredocForms.has(keyword) && text.includes('<<') ? heredocsOf(text, source, at) : []
  const json = jsonForms.has(keyword) ? jsonOf(rest, at) : undefined
  return { keyword, line, endLine: source.line, text, flags, rest, json, heredocs, trigger }
}

/** `--flag`s before anything else, quotes and escapes taken off; `--` alone ends them. */
function takeFlags(args: string): { flags: string[]; rest: string } {
  const flags: string[] = []
  let rest = args.trim()
  while (rest.startsWith('--')) {
    let flag = ''
    let quote = ''
    let i = 0
    for (; i < rest.length; i++) {
      const c = rest[i] ?? ''
      if (quote === '' && /\s/.test(c)) break
      if (quote === '' && (c === '"' || c === "'")) quote = c
      else if (c === quote) quote = ''
      else if (c === '\\' && quote !== "'") flag += rest[++i] ?? ''
      else flag += c
    }
    rest = rest.slice(i).trim()
    if (flag === '--') break
    flags.push(flag)
  }
  return { flags, rest }
}

/** Words of a JSON array of strings; what is no JSON is the shell form, without a word about it, as with Docker. */
function jsonOf(rest: string, at: Place): string[] | undefined {
  if (!rest.startsWith('[')) return undefined
  let value: unknown
  try {
    value = JSON.parse(rest)
  } catch {
    return undefined
  }
  if (!Array.isArray(value)) return undefined
  return value.map((word: unknown) => {
    if (typeof word === 'string') return word
    throw invalidDockerfile('the JSON form may hold strings only', at)
  })
}

const heredocStart = /^\d*<<(-?)([^<]+)$/

/** The heredoc that a word begins, without content. */
export function heredocWord(word: string): { name: string; expand: boolean; chomp: boolean } | undefined {
  const [, dash, rest = ''] = heredocStart.exec(word) ?? []
  if (dash === undefined) return undefined
  const budget = new Budget()
  const { words } = processWord(rest, new Map(), { escape: '\\', keepUnset: true, budget })
  const [name] = words
  if (name === undefined || words.length > 1) return undefined
  // Quoted in any part of it is quoted.
  const quotes = (text: string) => text.replace(/[^'"]/g, '').length
  return { name, expand: quotes(name) === quotes(rest.replace(/\\./g, '')), chomp: dash === '-' }
}

function heredocsOf(text: string, source: Lines, at: Place): Heredoc[] {
  return wordsOf(text).flatMap((word) => {
    const begun = heredocWord(word)
    if (!begun) return []
    const written = source.heredoc(begun.name, begun.chomp)
    if (written === undefined) throw invalidDockerfile(`the heredoc ${begun.name} does not end`, at)
    const content = begun.chomp ? written.replace(/^\t+/gm, '') : written
    return [{ name: begun.name, expand: begun.expand, content, written }]
  })
}

/** What is no sentence to us may well be one to the shell: then there is no heredoc in it. */
function wordsOf(text: string): readonly string[] {
  try {
    return processWord(text, new Map(), { escape: '\\', raw: true, keepUnset: true, budget: new Budget() }).words
  } catch (error) {
    if (error instanceof Failure) return []
    throw error
  }
}
