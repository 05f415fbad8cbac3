// dockerfile.ts: the text of a Dockerfile → instructions with their lines, as BuildKit's parser does it
// (moby/buildkit, frontend/dockerfile/parser): directives, comments, continued lines, heredocs, flags, JSON forms.
// What an instruction means is decided in build-plan.ts and build-stage.ts.
import { Failure, MAX_DOCKERFILE_BYTES } from '@berth/contracts'
import { type Command, commandOf, type Heredoc, type Keyword, keywords, type Written } from './dockerfile-commands.js'
import { didYouMean, invalidDockerfile, type Place } from './dockerfile-error.js'
import { Budget, heredocWord, processWord } from './shell-words.js'

/** Most instructions in a Dockerfile. */
const MAX_INSTRUCTIONS = 1000

export interface Instruction extends Written {
  readonly command: Command
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
    throw invalidDockerfile(`the Dockerfile is longer than ${MAX_DOCKERFILE_BYTES} bytes`)
  const zero = text.indexOf('\0')
  if (zero >= 0) throw invalidDockerfile('there is a zero byte', { line: text.slice(0, zero).split('\n').length })
  const lines = text.replace(/^\uFEFF/, '').split(/(?<=\n)/)
  const { token, warnings } = directives(lines)
  const instructions: Instruction[] = []
  const source = new Lines(lines, token)
  for (let found = source.next(); found; found = source.next()) {
    if (instructions.length >= MAX_INSTRUCTIONS)
      throw invalidDockerfile(`there are more than ${MAX_INSTRUCTIONS} instructions`, { line: found.line })
    if (found.gap)
      warnings.push({ message: 'an empty line in a continued instruction will be an error one day', line: found.line })
    instructions.push(instruction(found.text, found.line, source))
  }
  if (instructions.length === 0) throw invalidDockerfile('the Dockerfile has no instructions')
  return { escape: token, instructions, warnings }
}

/** Most triggers that an image may have, and most characters of all of them: each build with it parses them. */
const MAX_TRIGGERS = 100
const MAX_TRIGGER_LENGTH = 128 * 1024

/** @throws Failure dockerfile_invalid for more triggers, or longer ones, than an image may have */
export function checkTriggers(texts: readonly string[], at: Place): void {
  const length = texts.reduce((sum, text) => sum + text.length, 0)
  if (texts.length > MAX_TRIGGERS || length > MAX_TRIGGER_LENGTH)
    throw invalidDockerfile('there are more ONBUILD triggers, or longer ones, than are carried out', at)
}

/**
 * What an image wants done by a build that begins with it (`OnBuild` of its configuration).
 * @param line where the build begins with it
 * @throws Failure dockerfile_invalid
 */
export function parseTriggers(texts: readonly string[], line: number): Instruction[] {
  checkTriggers(texts, { line })
  return texts.map((text) => {
    const at = { line, text, keyword: 'ONBUILD of the base' }
    const { instructions } = parsed(text, at)
    const [only] = instructions
    if (!only || instructions.length > 1) throw invalidDockerfile('a trigger must be one instruction', at)
    if (['ONBUILD', 'FROM', 'MAINTAINER'].includes(only.keyword))
      throw invalidDockerfile(`${only.keyword} is not allowed as a trigger`, at)
    return { ...only, line }
  })
}

/** Tells of an error in a trigger at the line where it is triggered: its own lines are in no file. */
function parsed(text: string, at: Place): Dockerfile {
  try {
    return parseDockerfile(text)
  } catch (error) {
    if (error instanceof Failure) throw invalidDockerfile(error.message, at)
    throw error
  }
}

const directiveForm = /^\s*#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(\S.*)$/s

/**
 * The escape character, from the `# name=value` lines before anything else. `syntax` names another parser, and there is
 * none but this; `check` is about advice that is not given.
 */
function directives(lines: readonly string[]): { token: '\\' | '`'; warnings: DockerfileWarning[] } {
  const warnings: DockerfileWarning[] = []
  const seen = new Map<string, string>()
  for (const [i, text] of lines.entries()) {
    const [, written = '', found = ''] = directiveForm.exec(text) ?? []
    const name = written.toLowerCase()
    const value = found.trimEnd()
    if (!['escape', 'syntax', 'check'].includes(name)) break
    if (seen.has(name)) throw invalidDockerfile(`only one ${name} directive can be used`, { line: i + 1, text })
    seen.set(name, value)
    if (name === 'syntax' && !/(^|\/)docker\/dockerfile(-upstream)?([:@]|$)/.test(value))
      warnings.push({
        message: `syntax=${value.slice(0, 200)} is not used: this parses Dockerfiles itself`,
        line: i + 1,
      })
    if (name === 'escape' && value !== '\\' && value !== '`')
      throw invalidDockerfile(`escape must be \\ or \`, not ${JSON.stringify(value)}`, { line: i + 1, text })
  }
  return { token: seen.get('escape') === '`' ? '`' : '\\', warnings }
}

function trimNewline(line: string): string {
  let end = line.length
  while (line[end - 1] === '\n' || line[end - 1] === '\r') end--
  return line.slice(0, end)
}
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

  /** The lines to a heredoc's name, or undefined where it does not come: then nothing is taken. */
  heredoc(name: string, chomp: boolean): string | undefined {
    const content: string[] = []
    const begin = this.at
    while (this.at < this.lines.length) {
      const written = this.lines[this.at++] ?? ''
      const line = trimNewline(written)
      if ((chomp ? line.replace(/^\t+/, '') : line) === name) return content.join('')
      content.push(written)
    }
    this.at = begin
    return undefined
  }

  private joined(line: string): { text: string; more: boolean } {
    const more = this.continued.test(line)
    return { text: more ? line.replace(this.continued, '$1') : line, more }
  }
}

const heredocForms: ReadonlySet<Keyword> = new Set(['ADD', 'COPY', 'RUN'])
const isKeyword = (word: string): word is Keyword => (keywords as readonly string[]).includes(word)

function instruction(joined: string, line: number, source: Lines): Instruction {
  const written = take(joined, line, source)
  const command = commandOf(written, source.token)
  // What a trigger says is checked now; it is carried out by the build that begins with this image.
  if (command.kind === 'onbuild') commandOf({ ...take(written.rest, line), heredocs: written.heredocs }, source.token)
  return { ...written, command }
}

/** @param source what heredocs are taken from; without it they are left alone */
function take(joined: string, line: number, source?: Lines): Written {
  const text = joined.trim()
  const [, word = '', args = ''] = /^(\S+)[\t\v\f\r ]*(.*)$/s.exec(text) ?? []
  const keyword = word.toUpperCase()
  if (!isKeyword(keyword)) {
    const hint = didYouMean(keyword, keywords)
    throw invalidDockerfile(`unknown instruction ${JSON.stringify(word.slice(0, 100))}${hint}`, { line, text })
  }
  const { flags, rest } = takeFlags(args)
  const at = { keyword, line, text, flags, rest }
  const [trigger = ''] = rest.split(/\s/)
  const inner = keyword === 'ONBUILD' ? trigger.toUpperCase() : keyword
  const mayHave = isKeyword(inner) && heredocForms.has(inner) && text.includes('<<')
  return { ...at, heredocs: source && mayHave ? heredocsOf(text, source, at) : [] }
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
      else if (c === '\\') flag += rest[++i] ?? ''
      else flag += c
    }
    rest = rest.slice(i).trim()
    if (flag === '--') break
    flags.push(flag)
  }
  return { flags, rest }
}

function heredocsOf(text: string, source: Lines, at: Place): Heredoc[] {
  const words = wordsOf(text)
  // A blank may come before the name; but `1 << 2` is for the shell. The lines to come are looked through for one only.
  let mayBeApart = at.keyword === 'RUN'
  return words.flatMap((word, i) => {
    const isApart = mayBeApart && /^\d*<<-?$/.test(word)
    const begun = heredocWord(isApart ? word + (words[i + 1] ?? '') : word)
    if (!begun) return []
    const written = source.heredoc(begun.name, begun.chomp)
    if (written === undefined && isApart) {
      mayBeApart = false
      return []
    }
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
