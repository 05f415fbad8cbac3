import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Fault } from '@berth/contracts'
import { expectSuccess, run } from '@berth/host'

/** Where this machine gets its distribution's packages from: images are built from the same place. */
export interface AptSources {
  /** `debian`, `ubuntu`. */
  readonly distribution: string
  /** Code name, e.g. the one of os-release(5). */
  readonly suite: string
  /** Text of a deb822 sources file. */
  readonly sources: string
  /** apt options of this machine about fetching (proxies, checks), one `Name "value";` each. */
  readonly options: readonly string[]
  /** Unix seconds of the newest release file: no package is newer, so it is the time of the image too. */
  readonly releaseS: number
}

/** Reads the sources through apt itself, refreshing its lists where it has none. @throws Fault when there are none */
export async function readAptSources(): Promise<AptSources> {
  const release = parseOsRelease(await readFile('/etc/os-release', 'utf8'))
  const distribution = release.ID ?? ''
  const suite = release.VERSION_CODENAME ?? ''
  const listed = async () => selectSources(await indexTargets(), distribution, suite)
  let entries = await listed()
  if (entries.length === 0) {
    expectSuccess(await run(['apt-get', '-q', 'update'], { timeoutMs: 300_000, env: fetchEnvironment() }))
    entries = await listed()
  }
  if (entries.length === 0)
    throw new Fault('find package sources', { cause: new Error(`apt has none of ${distribution} ${suite}`) })
  const options = fetchOptions((await expectOutput(['apt-config', 'dump'])).split('\n'))
  return { distribution, suite, sources: formatSources(entries), options, releaseS: await newestRelease() }
}

/** Environment of a program that fetches packages: nothing but the path and the machine's proxies. */
export function fetchEnvironment(): Readonly<Record<string, string>> {
  const proxies = Object.entries(process.env).filter(([name]) => /^(https?|ftp|no|all)_proxy$/i.test(name))
  const path = { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' }
  return { ...path, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive', ...Object.fromEntries(proxies) }
}

const expectOutput = async (argv: readonly [string, ...string[]]) =>
  expectSuccess(await run(argv, { maxOutputBytes: 8 * 1024 * 1024 })).stdout

const indexTargets = () => expectOutput(['apt-get', 'indextargets', 'Created-By: Packages'])

/** Parses `KEY=value` and `KEY="value"` lines of os-release(5). */
export function parseOsRelease(text: string): Readonly<Record<string, string>> {
  const pairs = [...text.matchAll(/^([A-Z_]+)="?([^"\n]*)"?$/gm)].map(([, key, value]) => [key ?? '', value ?? ''])
  return Object.fromEntries(pairs)
}

export interface Source {
  readonly uri: string
  readonly suite: string
  readonly component: string
  readonly signedBy: string
}

/**
 * The distribution's own sources (its origin, and a suite of its release) among what apt uses: third-party archives
 * have no place in a base image.
 * @param targets output of `apt-get indextargets`: paragraphs of `Key: value` lines
 */
export function selectSources(targets: string, distribution: string, suite: string): readonly Source[] {
  const paragraphs = targets.split(/\n\n+/).map((paragraph) => {
    const pairs = [...paragraph.matchAll(/^([A-Za-z-]+): (.*)$/gm)].map(([, key, value]) => [key ?? '', value ?? ''])
    const field: Readonly<Record<string, string>> = Object.fromEntries(pairs)
    return field
  })
  return paragraphs.flatMap((field) => {
    const own = field.Origin?.toLowerCase() === distribution.toLowerCase()
    const [uri, release, component] = [field['Repo-URI'], field.Release, field.Component]
    if (!own || !uri || !component || !release?.startsWith(suite)) return []
    return [{ uri, suite: release, component, signedBy: field['Signed-By'] ?? '' }]
  })
}

/**
 * Sources in deb822 form (sources.list(5)).
 * @throws Fault when an address holds a password: the file stays in the image, where every tenant could read it
 */
export function formatSources(sources: readonly Source[]): string {
  const paragraphs = sources.map(({ uri, suite, component, signedBy }) => {
    if (/\/\/[^/]*@/.test(uri))
      throw new Fault('write package sources', {
        cause: new Error(
          `the address of ${suite} holds a password; move it to /etc/apt/auth.conf.d (apt_auth.conf(5))`,
        ),
      })
    const signed = signedBy.startsWith('/') ? `Signed-By: ${signedBy}\n` : ''
    return `Types: deb\nURIs: ${uri}\nSuites: ${suite}\nComponents: ${component}\n${signed}`
  })
  return [...new Set(paragraphs)].sort().join('\n')
}

/** Lines of `apt-config dump` that say how to fetch. */
export function fetchOptions(lines: readonly string[]): readonly string[] {
  return lines.filter((line) => /^Acquire::(https?|Check-|ForceIPv|Retries)\S* ".+";$/.test(line))
}

async function newestRelease(): Promise<number> {
  const directory = '/var/lib/apt/lists'
  const files = (await readdir(directory)).filter((name) => /(In)?Release$/.test(name))
  const dates = await Promise.all(
    files.map(async (name) => {
      const date = /^Date: (.+)$/m.exec(await readFile(join(directory, name), 'utf8'))?.[1]
      return date ? Date.parse(date) / 1000 : 0
    }),
  )
  const newest = Math.max(0, ...dates.filter((seconds) => Number.isFinite(seconds)))
  if (newest === 0) throw new Fault(`read the release dates in ${directory}`, { cause: new Error('there are none') })
  return newest
}
