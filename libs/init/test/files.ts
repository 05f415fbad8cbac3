// files.ts: berth-files run as a plain process for its tests, with what it says taken apart by code of its own that
// follows README.md, not the product's.
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, copyFileSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll } from '@jest/globals'
import { build } from './agent.js'

/** Where every user may execute it, whereever it was built. */
const home = mkdtempSync(join(tmpdir(), 'berth-files-program-'))
chmodSync(home, 0o755)
export const program = join(home, 'berth-files')
copyFileSync(join(build, 'berth-files'), program)
afterAll(() => rmSync(home, { recursive: true, force: true }))

export interface Entry {
  readonly kind: string
  readonly size: number
  readonly mode: string
  readonly uid: number
  readonly gid: number
  readonly links: number
  readonly mtime: string
  readonly name: Buffer
  readonly target: Buffer
}
export interface Outcome {
  readonly code: number | null
  readonly signal: string | null
  readonly out: Buffer
  /** `word number path`, and the text after them. */
  readonly failure: string
  readonly why: string
}
export interface How {
  readonly stdin?: Buffer | string
  /** A user that owns nothing here. */
  readonly uid?: number
}

export const NOBODY = 65534

export function start(args: readonly string[], how: How = {}): ChildProcessWithoutNullStreams {
  return spawn(program, args, { cwd: '/', ...(how.uid === undefined ? {} : { uid: how.uid, gid: how.uid }) })
}

export async function finish(child: ChildProcessWithoutNullStreams): Promise<Outcome> {
  const out: Buffer[] = []
  const err: Buffer[] = []
  child.stdout.on('data', (chunk: Buffer) => out.push(chunk))
  child.stderr.on('data', (chunk: Buffer) => err.push(chunk))
  const [code, signal]: [number | null, string | null] = await once(child, 'close').then(([c, s]) => [c, s])
  const [, failure = '', why = ''] = /^(\S+ -?\d+ \S*) ?(.*)\n$/s.exec(Buffer.concat(err).toString()) ?? []
  return { code, signal, out: Buffer.concat(out), failure, why }
}

export async function files(args: readonly string[], how: How = {}): Promise<Outcome> {
  const child = start(args, how)
  // It may end, with what it has to say, before all of its input is taken.
  child.stdin.on('error', () => undefined)
  child.stdin.end(how.stdin ?? '')
  return finish(child)
}

/** Output of an operation that must succeed. */
export async function ok(args: readonly string[], how: How = {}): Promise<Buffer> {
  const { code, out, failure, why } = await files(args, how)
  if (code !== 0) throw new Error(`${args.join(' ')}: exit ${code}: ${failure} ${why}`)
  return out
}

export function entries(out: Buffer): readonly Entry[] {
  const all: Entry[] = []
  for (let at = 0; at < out.length; ) {
    const end = out.indexOf(10, at)
    const [word, kind = '', size, mode = '', uid, gid, links, mtime = '', name, target] = out
      .toString('latin1', at, end)
      .split(' ')
    if (word !== 'stat') throw new Error(`no stat: ${out.toString('latin1', at, end)}`)
    const middle = end + 1 + Number(name)
    const next = middle + Number(target)
    const numbers = { size: Number(size), uid: Number(uid), gid: Number(gid), links: Number(links) }
    all.push({ kind, mode, mtime, ...numbers, name: out.subarray(end + 1, middle), target: out.subarray(middle, next) })
    at = next
  }
  return all
}

export async function stat(path: string, follow = false): Promise<Entry> {
  const [entry] = entries(await ok(['stat', path, follow ? 'follow' : 'nofollow']))
  if (!entry) throw new Error(`no entry of ${path}`)
  return entry
}

export interface Event {
  readonly type: string
  readonly directory: boolean
  readonly path: string
  readonly from: string
}

/** A watch that is running; `until` waits for an event and fails, with those there were, when the watch ends. */
export class Watch {
  readonly events: Event[] = []
  readonly outcome: Promise<Outcome>
  readonly #child: ChildProcessWithoutNullStreams
  #rest: Buffer = Buffer.alloc(0)
  #wake: () => void = () => undefined
  #ended = false

  constructor(path: string, recursive: boolean, how: How = {}) {
    this.#child = start(['watch', path, recursive ? 'recursive' : '-'], how)
    this.#child.stdout.on('data', (chunk: Buffer) => this.#receive(chunk))
    this.outcome = finish(this.#child)
    void this.outcome.then(() => {
      this.#ended = true
      this.#wake()
    })
  }

  pause(): void {
    this.#child.stdout.pause()
  }
  resume(): void {
    this.#child.stdout.resume()
  }

  async until(what: string, matches: (event: Event) => boolean): Promise<Event> {
    for (;;) {
      const found = this.events.find(matches)
      if (found) return found
      if (this.#ended) throw new Error(`${what}: the watch ended; ${JSON.stringify(this.events.slice(-20))}`)
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  on(type: string, path: string): Promise<Event> {
    return this.until(`${type} ${path}`, (event) => event.type === type && event.path === path)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.outcome
  }

  #receive(chunk: Buffer): void {
    this.#rest = Buffer.concat([this.#rest, chunk])
    for (let end = this.#rest.indexOf(10); end >= 0; end = this.#rest.indexOf(10)) {
      const [type = '', directory, path, from] = this.#rest.toString('latin1', 0, end).split(' ')
      const middle = end + 1 + Number(path)
      const next = middle + Number(from)
      if (this.#rest.length < next) break
      const text = (a: number, b: number) => this.#rest.toString('utf8', a, b)
      this.events.push({ type, directory: directory === '1', path: text(end + 1, middle), from: text(middle, next) })
      this.#rest = this.#rest.subarray(next)
    }
    this.#wake()
  }
}

/** A directory of its own that anybody may pass. */
export class Scratch {
  readonly path = mkdtempSync(join(tmpdir(), 'berth-files-'))
  constructor() {
    chmodSync(this.path, 0o755)
  }
  at(...parts: readonly string[]): string {
    return join(this.path, ...parts)
  }
  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true })
  }
}
