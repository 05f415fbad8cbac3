// dockerfile-commands.ts: what each instruction says, before variables are substituted in it, as BuildKit's
// frontend/dockerfile/instructions has it. All that can be refused without knowing a value is refused here.
import { didYouMean, invalidDockerfile, type Place } from './dockerfile-error.js'
import { type Mount, parseMount } from './dockerfile-mounts.js'
import { heredocWord, quotedWords } from './shell-words.js'

export type Keyword = (typeof keywords)[number]
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

export interface Heredoc {
  readonly name: string
  /** Variables in it are substituted: its name was not quoted. */
  readonly expand: boolean
  /** Without leading tabs where it began with `<<-`. */
  readonly content: string
  /** `content` as it was written. */
  readonly written: string
}

/** An instruction as it is written, taken apart. */
export interface Written extends Place {
  readonly keyword: Keyword
  /** Continued lines joined, as history tells of it; heredocs are not in it. */
  readonly text: string
  /** `--name` or `--name=value` each, quotes taken off. */
  readonly flags: readonly string[]
  /** What follows keyword and flags, without blanks around it. */
  readonly rest: string
  readonly heredocs: readonly Heredoc[]
}

/** What is run: words, or text for a shell. */
export type CommandLine = { readonly words: readonly string[] } | { readonly shell: string }

/** Times in nanoseconds, 0 where nothing is said, as an image's configuration has them. */
export interface HealthTest {
  readonly test: readonly string[]
  readonly interval: number
  readonly timeout: number
  readonly startPeriod: number
  readonly startInterval: number
  readonly retries: number
}

type Pairs = readonly (readonly [name: string, value: string])[]

export type Command =
  | { readonly kind: 'from'; readonly base: string; readonly name: string | null; readonly platform: string | null }
  | { readonly kind: 'arg'; readonly args: readonly (readonly [name: string, value: string | null])[] }
  | { readonly kind: 'env' | 'label'; readonly pairs: Pairs }
  | {
      readonly kind: 'run'
      readonly line: CommandLine
      readonly mounts: readonly Mount[]
      readonly network: 'default' | 'none'
    }
  | {
      readonly kind: 'copy'
      readonly add: boolean
      readonly from: string | null
      readonly sources: readonly string[]
      readonly inline: readonly Heredoc[]
      readonly destination: string
      readonly chown: string
      readonly chmod: string
      readonly link: boolean
      readonly parents: boolean
      readonly unpack: boolean
      readonly exclude: readonly string[]
    }
  | { readonly kind: 'workdir' | 'user' | 'stopsignal' | 'maintainer'; readonly value: string }
  | { readonly kind: 'volume' | 'expose' | 'shell'; readonly words: readonly string[] }
  | { readonly kind: 'cmd' | 'entrypoint'; readonly line: CommandLine }
  | { readonly kind: 'healthcheck'; readonly health: HealthTest }
  /** `trigger` is its text, heredocs included; what it says is checked by the parser. */
  | { readonly kind: 'onbuild'; readonly trigger: string }

/** @throws Failure dockerfile_invalid */
export function commandOf(written: Written, escapeCharacter: '\\' | '`'): Command {
  const { keyword, rest } = written
  const refuse = (message: string) => invalidDockerfile(message, written)
  const noFlags = () => flagsOf(written, {})
  const oneValue = () => {
    noFlags()
    if (rest === '') throw refuse('exactly one argument is needed')
    return rest
  }
  switch (keyword) {
    case 'FROM':
      return fromOf(written)
    case 'ARG': {
      noFlags()
      const args = quotedWords(rest, escapeCharacter).map((word) => {
        const [name, value] = cut(word)
        if (name === '') throw refuse('names cannot be empty')
        return [name, value] as const
      })
      if (args.length === 0) throw refuse('at least one argument is needed')
      return { kind: 'arg', args }
    }
    case 'ENV':
    case 'LABEL':
      noFlags()
      return { kind: keyword === 'ENV' ? 'env' : 'label', pairs: pairsOf(written, escapeCharacter) }
    case 'RUN':
      return runOf(written)
    case 'COPY':
    case 'ADD':
      return copyOf(written)
    case 'WORKDIR':
      return { kind: 'workdir', value: oneValue() }
    case 'USER':
      return { kind: 'user', value: oneValue() }
    case 'STOPSIGNAL':
      return { kind: 'stopsignal', value: oneValue() }
    case 'MAINTAINER':
      return { kind: 'maintainer', value: oneValue() }
    case 'VOLUME': {
      noFlags()
      const words = (jsonWords(written) ?? blankWords(rest)).map((word) => word.trim())
      if (words.length === 0) throw refuse('at least one argument is needed')
      if (words.includes('')) throw refuse('a path cannot be empty')
      return { kind: 'volume', words }
    }
    case 'EXPOSE':
      noFlags()
      if (rest === '') throw refuse('at least one argument is needed')
      return { kind: 'expose', words: blankWords(rest).toSorted() }
    case 'SHELL': {
      noFlags()
      const words = jsonWords(written)
      if (!words) throw refuse('the arguments must be in JSON form, as SHELL ["/bin/bash", "-c"]')
      if (words.length === 0) throw refuse('at least one argument is needed')
      return { kind: 'shell', words }
    }
    case 'CMD':
    case 'ENTRYPOINT':
      noFlags()
      return { kind: keyword === 'CMD' ? 'cmd' : 'entrypoint', line: lineOf(written) }
    case 'HEALTHCHECK':
      return { kind: 'healthcheck', health: healthOf(written) }
    case 'ONBUILD':
      noFlags()
      return { kind: 'onbuild', trigger: triggerOf(written) }
  }
}

const blankWords = (text: string) => (text === '' ? [] : text.split(/[\t\v\f\r ]+/))

function cut(word: string): [string, string | null] {
  const at = word.indexOf('=')
  return at < 0 ? [word, null] : [word.slice(0, at), word.slice(at + 1)]
}

/** Words of a JSON array of strings; what is no JSON is the other form, without a word about it, as with Docker. */
function jsonWords(at: Written, text = at.rest): string[] | undefined {
  if (!text.startsWith('[')) return undefined
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    return undefined
  }
  if (!Array.isArray(value)) return undefined
  return value.map((word: unknown) => {
    if (typeof word !== 'string') throw invalidDockerfile('the JSON form may hold strings only', at)
    if (word.includes('\0')) throw invalidDockerfile('there is a zero byte', at)
    return word
  })
}

function lineOf(written: Written): CommandLine {
  const words = jsonWords(written)
  if (words) return { words }
  if (written.rest === '') throw invalidDockerfile('a command is needed', written)
  return { shell: written.rest }
}

type Flags = Readonly<Record<string, 'text' | 'texts' | 'switch'>>

/** The flags by name; a switch that is on is `['true']`, and what is not there is an empty list. */
function flagsOf<T extends Flags>(at: Written, known: T): Record<keyof T, readonly string[]> {
  const found: Record<string, string[]> = Object.fromEntries(Object.keys(known).map((name) => [name, []]))
  for (const flag of at.flags) {
    const [name, value] = cut(flag.slice(2))
    const kind = Object.hasOwn(known, name) ? known[name] : undefined
    const values = found[name]
    if (kind === undefined || values === undefined)
      throw invalidDockerfile(`unknown flag --${name.slice(0, 100)}${didYouMean(name, Object.keys(known))}`, at)
    if (values.length > 0 && kind !== 'texts') throw invalidDockerfile(`--${name} is there twice`, at)
    if (kind !== 'switch') {
      if (value === null) throw invalidDockerfile(`--${name} needs a value`, at)
      values.push(value)
    } else {
      const on = value === null ? 'true' : value.toLowerCase()
      if (on !== 'true' && on !== 'false') throw invalidDockerfile(`--${name} must be true or false`, at)
      values.push(on)
    }
  }
  return found as Record<keyof T, readonly string[]>
}

const isOn = (flag: readonly string[]) => flag[0] === 'true'

function fromOf(written: Written): Command {
  const [platform = null] = flagsOf(written, { platform: 'text' }).platform
  const [base, as, name, ...more] = blankWords(written.rest)
  if (base === undefined || (as !== undefined && (as.toUpperCase() !== 'AS' || name === undefined || more.length > 0)))
    throw invalidDockerfile('needs a base, or a base and "AS name"', written)
  if (name === undefined) return { kind: 'from', base, name: null, platform }
  if (!/^[a-z][a-z0-9-_.]{0,127}$/i.test(name))
    throw invalidDockerfile(
      `invalid name of a stage: ${JSON.stringify(name)} must begin with a letter, and have letters, digits, "-", "_" and "."`,
      written,
    )
  // It means nothing at all wherever a stage could be named.
  if (name.toLowerCase() === 'scratch') throw invalidDockerfile(`a stage cannot be named ${name}`, written)
  return { kind: 'from', base, name: name.toLowerCase(), platform }
}

function pairsOf(written: Written, escapeCharacter: '\\' | '`'): Pairs {
  const words = quotedWords(written.rest, escapeCharacter)
  const [first] = words
  if (first === undefined) throw invalidDockerfile('at least one argument is needed', written)
  if (!first.includes('=')) {
    const [, name = '', value] = /^([^\t\v\f\r ]+)[\t\v\f\r ]+(.*)$/s.exec(written.rest) ?? []
    if (value === undefined) throw invalidDockerfile('a name and a value are needed', written)
    return [[name, value]]
  }
  return words.map((word) => {
    const [name, value] = cut(word)
    if (value === null) throw invalidDockerfile(`${JSON.stringify(word.slice(0, 100))} has no "="`, written)
    if (name === '') throw invalidDockerfile('names cannot be empty', written)
    return [name, value]
  })
}

function runOf(written: Written): Command {
  const flags = flagsOf(written, { mount: 'texts', network: 'text', security: 'text', device: 'texts' })
  const [network = 'default'] = flags.network
  if (network === 'host') throw invalidDockerfile("--network=host is refused: a build never sees the node's", written)
  if (network !== 'default' && network !== 'none')
    throw invalidDockerfile(`--network must be default or none, not ${JSON.stringify(network)}`, written)
  const [security = 'sandbox'] = flags.security
  if (security === 'insecure') throw invalidDockerfile('--security=insecure is refused', written)
  if (security !== 'sandbox') throw invalidDockerfile('--security must be sandbox', written)
  if (flags.device.length > 0) throw invalidDockerfile('--device is refused: there are no devices to give', written)
  if (flags.mount.length > 32) throw invalidDockerfile('there are more than 32 mounts', written)
  const mounts = flags.mount.map((text) => parseMount(text, written))
  const line = lineOf(written)
  if ('words' in line && written.heredocs.length > 0) throw invalidDockerfile('the JSON form takes no heredoc', written)
  return { kind: 'run', line, mounts, network }
}

function copyOf(written: Written): Command {
  const { keyword, rest } = written
  const add = keyword === 'ADD'
  const common = { chown: 'text', chmod: 'text', link: 'switch', exclude: 'texts' } as const
  const only = add
    ? ({ 'keep-git-dir': 'switch', checksum: 'text', unpack: 'switch' } as const)
    : ({ from: 'text', parents: 'switch' } as const)
  const flags: Readonly<Record<string, readonly string[]>> = flagsOf<Flags>(written, { ...common, ...only })
  const flag = (name: string) => flags[name] ?? []
  if (flag('checksum').length > 0)
    throw invalidDockerfile('--checksum is for what is downloaded, and nothing is', written)
  if (flag('keep-git-dir').length > 0)
    throw invalidDockerfile('--keep-git-dir is for repositories, and none is fetched', written)
  const words = jsonWords(written) ?? blankWords(rest)
  const destination = words.at(-1)
  if (destination === undefined || words.length < 2)
    throw invalidDockerfile('at least two arguments are needed: what is copied, and where to', written)
  const sources: string[] = []
  const inline: Heredoc[] = []
  const heredocs = new Map(written.heredocs.map((heredoc) => [heredoc.name, heredoc]))
  for (const word of words.slice(0, -1)) {
    const begun = heredocWord(word)
    const heredoc = begun && heredocs.get(begun.name)
    if (heredoc) inline.push(heredoc)
    else sources.push(word)
  }
  if (heredocWord(destination)) throw invalidDockerfile('the destination cannot be a heredoc', written)
  const [from = null] = flag('from')
  if (from === '') throw invalidDockerfile('--from needs a value', written)
  if (from?.includes('$'))
    throw invalidDockerfile(
      '--from takes no variable: begin a stage with "FROM $variable AS name", and name that',
      written,
    )
  return {
    kind: 'copy',
    add,
    from,
    sources,
    inline,
    destination,
    chown: flag('chown')[0] ?? '',
    chmod: flag('chmod')[0] ?? '',
    link: isOn(flag('link')),
    parents: isOn(flag('parents')),
    unpack: flag('unpack').length > 0 ? isOn(flag('unpack')) : add,
    exclude: flag('exclude'),
  }
}

function healthOf(written: Written): HealthTest {
  const [, how = '', rest = ''] = /^(\S*)\s*(.*)$/s.exec(written.rest) ?? []
  const none = { interval: 0, timeout: 0, startPeriod: 0, startInterval: 0, retries: 0 }
  if (how === '') throw invalidDockerfile('at least one argument is needed: NONE, or CMD and a command', written)
  if (how.toUpperCase() === 'NONE') {
    flagsOf(written, {})
    if (rest !== '') throw invalidDockerfile('NONE takes no arguments', written)
    return { test: ['NONE'], ...none }
  }
  if (how.toUpperCase() !== 'CMD')
    throw invalidDockerfile(`${JSON.stringify(how.slice(0, 100))} is neither CMD nor NONE`, written)
  const text = 'text' as const
  const flags = flagsOf(written, {
    interval: text,
    timeout: text,
    'start-period': text,
    'start-interval': text,
    retries: text,
  })
  const words = jsonWords(written, rest)
  if (words?.length === 0 || (!words && rest === '')) throw invalidDockerfile('CMD needs a command', written)
  const [retries = '0'] = flags.retries
  if (!/^\d{1,9}$/.test(retries)) throw invalidDockerfile('--retries must be a number', written)
  const time = (name: 'interval' | 'timeout' | 'start-period' | 'start-interval') => {
    const [value = ''] = flags[name]
    const nanoseconds = value === '' ? 0 : duration(value)
    if (nanoseconds === undefined)
      throw invalidDockerfile(`--${name} must be a time such as 1m30s, not ${JSON.stringify(value)}`, written)
    if (nanoseconds !== 0 && nanoseconds < 1e6) throw invalidDockerfile(`--${name} must be at least 1ms`, written)
    return nanoseconds
  }
  return {
    test: words ? ['CMD', ...words] : ['CMD-SHELL', rest],
    interval: time('interval'),
    timeout: time('timeout'),
    startPeriod: time('start-period'),
    startInterval: time('start-interval'),
    retries: Number(retries),
  }
}

const units: Readonly<Record<string, number>> = {
  ns: 1,
  us: 1e3,
  µs: 1e3,
  μs: 1e3,
  ms: 1e6,
  s: 1e9,
  m: 60e9,
  h: 3600e9,
}

/** Nanoseconds of a Go duration that is not negative (time.ParseDuration). */
function duration(text: string): number | undefined {
  if (text === '0') return 0
  if (text.length > 64 || !/^\+?((\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h))+$/.test(text)) return undefined
  let sum = 0
  for (const [, count, unit] of text.matchAll(/(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)/g))
    sum += Number(count) * (units[unit ?? ''] ?? 0)
  // More than an image can say: 64 bits.
  return sum <= Number.MAX_SAFE_INTEGER ? Math.round(sum) : undefined
}

function triggerOf(written: Written): string {
  const trigger = written.text.replace(/^\S+\s*/, '')
  const [word = ''] = written.rest.split(/\s+/)
  const keyword = word.toUpperCase()
  if (keyword === '') throw invalidDockerfile('an instruction is needed', written)
  if (keyword === 'ONBUILD') throw invalidDockerfile('ONBUILD ONBUILD is not allowed', written)
  if (keyword === 'FROM' || keyword === 'MAINTAINER')
    throw invalidDockerfile(`${keyword} is not allowed as a trigger`, written)
  return [trigger, ...written.heredocs.map(({ written, name }) => `${written}${name}`)].join('\n')
}
