// instruction-values.ts: what words of instructions mean, and how history tells of them.
import type { RunOp } from './build-plan.js'
import type { CommandLine, HealthTest, Written } from './dockerfile-commands.js'
import { invalidDockerfile, type Place } from './dockerfile-error.js'
import { clean } from './dockerignore.js'
import { heredocWord } from './shell-words.js'

/** Most ports that a stage exposes. */
export const MAX_PORTS = 16_384

/** As Go prints a list of strings (`%q`). */
export const quoted = (words: readonly string[] | null | undefined) =>
  `[${(words ?? []).map((word) => JSON.stringify(word)).join(' ')}]`

/** An absolute path, without `.` and `..`; a slash at its end, or what means the same, stays where it is wanted. */
export function resolved(directory: string, path: string, keepSlash: boolean): string {
  const absolute = clean(path.startsWith('/') ? path : `/${directory}/${path}`)
  return keepSlash && absolute !== '/' && /(^|\/)\.?$/.test(path) ? `${absolute}/` : absolute
}

/** `80`, `8000-8010/udp`; what Docker takes of a port of the host, it does not use. */
export function portsOf(word: string, at: Place): string[] {
  const [, range = '', written = 'tcp'] = /^(?:[^/]*:)?([^/:]*)(?:\/(.*))?$/.exec(word) ?? []
  const protocol = written.toLowerCase() || 'tcp'
  if (!['tcp', 'udp', 'sctp'].includes(protocol))
    throw invalidDockerfile(`${JSON.stringify(protocol)} is no protocol: tcp, udp and sctp are`, at)
  const [, begin = '', end = begin] = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(range) ?? []
  const [first, last] = [Number(begin), Number(end)]
  if (begin === '' || last > 65_535 || last < first) throw invalidDockerfile(`${JSON.stringify(word)} is no port`, at)
  if (last - first >= MAX_PORTS) throw invalidDockerfile(`more than ${MAX_PORTS} ports are exposed`, at)
  return Array.from({ length: last - first + 1 }, (_, i) => `${first + i}/${protocol}`)
}

export function healthcheck({ test, interval, timeout, startPeriod, startInterval, retries }: HealthTest) {
  return {
    Test: [...test],
    ...(interval === 0 ? {} : { Interval: interval }),
    ...(timeout === 0 ? {} : { Timeout: timeout }),
    ...(startPeriod === 0 ? {} : { StartPeriod: startPeriod }),
    ...(startInterval === 0 ? {} : { StartInterval: startInterval }),
    ...(retries === 0 ? {} : { Retries: retries }),
  }
}

export const healthText = ({ test, interval, timeout, startPeriod, startInterval, retries }: HealthTest) =>
  `{Test:[${test.join(' ')}] Interval:${durationText(interval)} Timeout:${durationText(timeout)} ` +
  `StartPeriod:${durationText(startPeriod)} StartInterval:${durationText(startInterval)} Retries:${retries}}`

/** As Go writes it: `1m30s`, `1.5s`, `250ms`. */
function durationText(nanoseconds: number): string {
  if (nanoseconds === 0) return '0s'
  if (nanoseconds < 1e9) return `${nanoseconds / 1e6}ms`
  const minutes = Math.floor(nanoseconds / 60e9)
  const seconds = `${(nanoseconds - minutes * 60e9) / 1e9}s`
  if (minutes === 0) return seconds
  const hours = Math.floor(minutes / 60)
  return `${hours > 0 ? `${hours}h` : ''}${minutes % 60}m${seconds}`
}

export const isRemote = (source: string) => /^(https?|git|ssh):\/\//i.test(source) || /^[\w.-]+@[\w.-]+:/.test(source)

export const refusedRemote = (source: string, add: boolean) =>
  add
    ? `${JSON.stringify(source.slice(0, 200))} is not fetched: nothing is downloaded but images; put it into the context, or let a RUN get it`
    : `the source cannot be a URL: ${JSON.stringify(source.slice(0, 200))}`

/** Of chmod(1), octal up to 7777, or symbolic. */
export const isMode = (mode: string) =>
  mode.length <= 256 &&
  (/^0*[0-7]{1,4}$/.test(mode) || /^[ugoa]*([-+=]([rwxXst]+|[ugo])?)+(,[ugoa]*([-+=]([rwxXst]+|[ugo])?)+)*$/.test(mode))

/** What a shell is given of a RUN with heredocs. */
export function withHeredocs(line: CommandLine, at: Written): { line: CommandLine; script: RunOp['script'] } {
  const [first] = at.heredocs
  if ('words' in line || !first) return { line, script: null }
  // Nothing but a heredoc: its content is the command, or the script.
  if (heredocWord(line.shell)) {
    if (!first.content.startsWith('#!')) return { line: { shell: first.content }, script: null }
    if (first.name.includes('/') || first.name === '.' || first.name === '..')
      throw invalidDockerfile(`the heredoc ${JSON.stringify(first.name)} is no name of a script`, at)
    const path = `/dev/pipes/${first.name}`
    return { line: { shell: path }, script: { path, data: first.content } }
  }
  const shell = [line.shell, ...at.heredocs.map(({ written, name }) => `${written}${name}`)].join('\n')
  return { line: { shell }, script: null }
}
