// build.ts: `./berth build`: sends a directory, shows what happens, and writes the digest of the image.
import { existsSync } from 'node:fs'
import { readFile, realpath } from 'node:fs/promises'
import { basename, dirname, join, relative, resolve, sep } from 'node:path'
import { text } from 'node:stream/consumers'
import {
  BUILD_SECRET_HEADER,
  type BuildProgress,
  BuildText,
  cancelBuild,
  createBuild,
  DOCKERFILE_HEADER,
  Fault,
  KiB,
} from '@berth/contracts'
import type { Client } from '@berth/sdk'
import { contextEntries, type FoundDockerfile, packContext } from './build-context.js'
import { type BuildInput, readInput } from './build-input.js'
import { BuildScreen } from './build-screen.js'
import { INTERRUPTED, withClient } from './images.js'
import type { Places } from './up/config.js'

export interface BuildOptions {
  readonly file?: string
  readonly tag: readonly string[]
  readonly buildArg: readonly string[]
  readonly label: readonly string[]
  readonly secret: readonly string[]
  readonly target?: string
  readonly platform?: string
  readonly network?: string
  readonly memory?: string
  readonly cpus?: string
  readonly timeout?: string
  /** False with `--no-cache`. */
  readonly cache: boolean
  readonly pull: boolean
  readonly progress: string
}

const [BUILT, FAILED] = [0, 1]
/** What secrets and a Dockerfile may have together in headers, in characters: the API takes 64 KiB of them in all. */
const MAX_HEADERS = 56 * KiB

/**
 * Builds a directory, or with `-` what comes by standard input.
 * @returns exit code: 0 it is built, 1 it failed, 130 it was interrupted
 * @throws Fault for what cannot be read, ApiError for what is refused
 */
export async function build(places: Places, directory: string, options: BuildOptions): Promise<number> {
  const { dockerfile, bytes } = await (directory === '-'
    ? readInput(process.stdin, options.file)
    : readDirectory(directory, options.file))
  const headers = await headersOf(dockerfile, options.secret)
  return withClient(places, async (client) => {
    const stop = new AbortController()
    const query = queryOf(options, dockerfile.path)
    const steps = client.values(createBuild, { query }, { bytes, headers, signal: stop.signal })
    return await show(client, steps, options.progress, stop)
  })
}

async function readDirectory(directory: string, file: string | undefined): Promise<BuildInput> {
  const root = await realpath(directory).catch((cause: unknown) => {
    throw new Fault(`read ${directory}`, { cause })
  })
  const dockerfile = await findDockerfile(root, file)
  return { dockerfile, bytes: packContext(root, contextEntries(root, dockerfile)) }
}

async function show(
  client: Client,
  steps: AsyncIterable<BuildProgress>,
  progress: string,
  stop: AbortController,
): Promise<number> {
  const screen = progress === 'auto' && process.stderr.isTTY ? new BuildScreen(process.stderr) : undefined
  const plain = new BuildText()
  let id: (BuildProgress & { readonly step: 'created' }) | undefined
  const interrupt = () => {
    // The connection's end would do too; this tells why, and is answered when nothing runs any more.
    const canceled = id
      ? client.call(cancelBuild, { params: { build: id.build } })
      : Promise.reject(new Error('none yet'))
    canceled.catch(() => stop.abort(new Fault('build', { cause: 'interrupted' })))
  }
  const signals = ['SIGINT', 'SIGTERM'] as const
  for (const signal of signals) process.once(signal, interrupt)
  try {
    for await (const step of steps) {
      if (step.step === 'created') id = step
      if (screen) screen.add(step)
      else process.stderr.write(plain.add(step))
      if (step.step !== 'done' && step.step !== 'failed') continue
      screen?.end()
      return ended(step)
    }
    throw new Fault('build', { cause: 'the API went away in the middle' })
  } catch (error) {
    screen?.end()
    if (stop.signal.aborted) return INTERRUPTED
    throw error
  } finally {
    for (const signal of signals) process.off(signal, interrupt)
  }
}

function ended(step: BuildProgress & { readonly step: 'done' | 'failed' }): number {
  if (step.step === 'done') {
    process.stdout.write(`${step.image.digest}\n`)
    return BUILT
  }
  return step.code === 'build_canceled' ? INTERRUPTED : FAILED
}

/** @param file as given: from where the caller stands; `-` for standard input */
export async function findDockerfile(root: string, file: string | undefined): Promise<FoundDockerfile> {
  if (file === '-') return { path: null, text: await text(process.stdin), ignoreFile: null, target: null }
  const given = file === undefined ? defaultDockerfile(root) : resolve(file)
  const [content, directory, real] = await Promise.all([
    readFile(given, 'utf8'),
    realpath(dirname(given)),
    realpath(given),
  ]).catch((cause: unknown) => {
    throw new Fault(`read ${given}`, { cause })
  })
  // Its ignore file goes by the name that was given, as with docker, and not by that of what this may be a link to.
  const named = join(directory, basename(given))
  const [path, target] = [relative(root, named), relative(root, real)]
  if (!isOutside(path) && !isOutside(target)) return { path, text: null, ignoreFile: null, target }
  return { path: null, text: content, ignoreFile: `${named}.dockerignore`, target: null }
}

/** `dockerfile` where there is that only, as with docker. */
function defaultDockerfile(root: string): string {
  const [usual = root, other = root] = ['Dockerfile', 'dockerfile'].map((name) => join(root, name))
  return !existsSync(usual) && existsSync(other) ? other : usual
}

const isOutside = (path: string) => path === '..' || path.startsWith(`..${sep}`)

async function headersOf(dockerfile: FoundDockerfile, secrets: readonly string[]): Promise<Record<string, string>> {
  const all = await Promise.all(secrets.map(secretOf))
  const headers = {
    ...(all.length > 0 && { [BUILD_SECRET_HEADER]: all.join(', ') }),
    ...(dockerfile.text !== null && { [DOCKERFILE_HEADER]: Buffer.from(dockerfile.text).toString('base64') }),
  }
  const length = Object.values(headers).reduce((sum, value) => sum + value.length, 0)
  if (length <= MAX_HEADERS) return headers
  throw new Fault('send secrets and Dockerfile', {
    cause: `they are too large together: at most ${MAX_HEADERS} in base64`,
  })
}

/** `id=ID,src=FILE` or `id=ID,env=NAME`; with neither, the variable or else the file of that name, as docker has it. */
async function secretOf(given: string): Promise<string> {
  const fields = new Map(given.split(',').map((part): [string, string] => cutAt(part)))
  const id = fields.get('id')
  const file = fields.get('src') ?? fields.get('source')
  const name = fields.get('env')
  if (!id) throw new Fault(`read --secret ${given}`, { cause: 'it must be id=ID,src=FILE or id=ID,env=NAME' })
  const variable = name ?? (file === undefined ? id : undefined)
  const value = variable === undefined ? undefined : process.env[variable]
  if (value !== undefined) return `${id}=${Buffer.from(value).toString('base64')}`
  if (name !== undefined) throw new Fault(`read secret ${id}`, { cause: `there is no variable ${name}` })
  const bytes = await readFile(file ?? id).catch((cause: unknown) => {
    throw new Fault(`read secret ${id}`, { cause })
  })
  return `${id}=${bytes.toString('base64')}`
}

const cutAt = (text: string): [string, string] => {
  const at = text.indexOf('=')
  return at < 0 ? [text, ''] : [text.slice(0, at), text.slice(at + 1)]
}

/** Arguments without a value have that of the environment, or are not given where it has none. */
export const argumentsOf = (given: readonly string[], env: NodeJS.ProcessEnv): string[] =>
  given.flatMap((text) => {
    if (text.includes('=')) return [text]
    const value = env[text]
    return value === undefined ? [] : [`${text}=${value}`]
  })

function queryOf(options: BuildOptions, dockerfile: string | null) {
  const { tag, label, target, platform, network, memory, cpus, timeout, cache, pull } = options
  return {
    ...{ tag: [...tag], label: label.map((text) => (text.includes('=') ? text : `${text}=`)) },
    arg: argumentsOf(options.buildArg, process.env),
    ...(dockerfile !== null && { dockerfile }),
    ...(target !== undefined && { target }),
    ...(platform !== undefined && { platform }),
    ...(network !== undefined && { network: network === 'none' ? ('none' as const) : ('default' as const) }),
    ...(memory !== undefined && { memoryBytes: memory }),
    ...(cpus !== undefined && { cpus }),
    ...(timeout !== undefined && { timeoutMs: timeout }),
    ...(!cache && { noCache: 'true' as const }),
    ...(pull && { pull: 'true' as const }),
  }
}
