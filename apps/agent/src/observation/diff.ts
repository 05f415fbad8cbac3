// diff.ts: which paths a sandbox made different from its image. berth-diff (libs/init/diff.c) walks its writable layer;
// here it is started, read as fast as its reader takes what it finds, and ended with it.

import { existsSync } from 'node:fs'
import { posix } from 'node:path'
import { Fault, KiB, type SandboxChange } from '@berth/contracts'
import { FairTurns } from '@berth/domain'
import { sendSignal, stream } from '@berth/host'
import type { LiveSandbox } from '../sandbox/live.js'

const kinds: Readonly<Record<string, SandboxChange['kind']>> = { A: 'added', C: 'changed', D: 'deleted' }

/** Where something is mounted in every sandbox, and files that the host puts there: none of it is the sandbox's doing. */
const hostMade = ['/dev', '/proc', '/sys', '/etc/hosts', '/etc/hostname', '/etc/resolv.conf'] as const
/** Longer than any path that berth-diff can come to. */
const MAX_PATH = 512 * KiB
/** Walks at once: each reads as much of the disk as it can, or waits for its reader. One tenant has two of them at most. */
const AT_ONCE = { all: 3, each: Number.POSITIVE_INFINITY }
const MAX_SAID = 2000
const SIGKILL = 9

type Walked = Pick<LiveSandbox, 'id' | 'tenantId' | 'upper' | 'image' | 'ids' | 'spec'>

export class Diffs {
  readonly #program: string
  readonly #turns = new FairTurns(AT_ONCE)

  /** @param program path of berth-diff */
  constructor(program: string) {
    this.#program = program
  }

  /** Sorted. Of a sandbox that was never started: nothing. @throws Fault when the layer cannot be read */
  async *of(live: Walked, signal: AbortSignal): AsyncGenerator<SandboxChange> {
    if (!live.image || !existsSync(live.upper)) return
    const give = await this.#turns.take(live.tenantId, signal)
    try {
      yield* this.#walk(live, live.image.layers, signal)
    } finally {
      give()
    }
  }

  async *#walk({ id, upper, ids, spec }: Walked, layers: readonly string[], signal: AbortSignal) {
    const skipped = [...hostMade, ...spec.tmpfs.map(({ path }) => normal(path))].flatMap((path) => ['--skip', path])
    const walk = await stream([this.#program, String(ids.base), upper, ...skipped, ...layers])
    const kill = () => sendSignal(walk.pid, SIGKILL, true)
    let said = ''
    walk.stderr?.on('data', (text) => {
      said = (said + text).slice(0, MAX_SAID)
    })
    signal.addEventListener('abort', kill, { once: true })
    if (signal.aborted) kill()
    let whole = false
    try {
      yield* parseChanges(walk.stdout)
      whole = true
    } finally {
      signal.removeEventListener('abort', kill)
      if (!whole) kill()
      await walk.ended
    }
    const { exitCode } = await walk.ended
    if (exitCode !== 0 && !signal.aborted)
      throw new Fault(`walk the layer of ${id}`, { cause: said || `exit ${exitCode}` })
  }
}

/** As `AbsolutePath` lets tenants write it, and as berth-diff does. */
const normal = (path: string): string => posix.normalize(path).replace(/(.)\/$/, '$1')

/** Records of berth-diff: a letter, a path, a NUL. What is not UTF-8 in a path shows as U+FFFD. */
export async function* parseChanges(chunks: AsyncIterable<Buffer>): AsyncGenerator<SandboxChange> {
  let rest: Buffer = Buffer.alloc(0)
  for await (const chunk of chunks) {
    const bytes = rest.length > 0 ? Buffer.concat([rest, chunk]) : chunk
    let from = 0
    for (let end = bytes.indexOf(0); end >= 0; end = bytes.indexOf(0, from)) {
      const kind = kinds[String.fromCharCode(bytes[from] ?? 0)]
      if (!kind) throw new Fault('read what berth-diff found', { cause: `a record of kind ${bytes[from]}` })
      yield { kind, path: bytes.toString('utf8', from + 1, end) }
      from = end + 1
    }
    rest = bytes.subarray(from)
    if (rest.length > MAX_PATH) throw new Fault('read what berth-diff found', { cause: 'a record without an end' })
  }
}
