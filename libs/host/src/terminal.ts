// terminal.ts: a process on a terminal of its own, by node-pty, which is loaded when the first one is asked for: it has
// compiled code, and a node whose sandboxes have a berth-init of their own never needs it.

import { write } from 'node:fs'
import { Readable, Writable } from 'node:stream'
import { setTimeout as pause } from 'node:timers/promises'
import { promisify } from 'node:util'
import { errnoOf, Fault, ignore } from '@berth/contracts'
import type { IPty } from 'node-pty'
import { bareEnvironment } from './run.js'
import type { ProcessEnd, StreamedProcess } from './stream.js'

const writeAsync = promisify(write)

export interface TerminalOptions {
  readonly rows: number
  readonly columns: number
  readonly cwd?: string
  /** The whole environment; see `RunOptions`. */
  readonly env?: Readonly<Record<string, string>>
}

/** A terminal that takes no more input is tried again after this, in milliseconds: the kernel cannot be waited for. */
const FULL_MS = 10

/**
 * Starts a program on a new terminal. All its output is `stdout`, to be read or destroyed as that of `stream`.
 * @throws Fault when node-pty is not there, or the program could not be started
 */
export async function streamOnTerminal(
  argv: readonly [string, ...string[]],
  { rows, columns, cwd = '/', env = bareEnvironment }: TerminalOptions,
): Promise<StreamedProcess> {
  const [program, ...args] = argv
  try {
    const { spawn } = await import('node-pty')
    const options = { rows, cols: columns, cwd, env: { ...env }, encoding: null, name: 'xterm-256color' }
    return streamed(spawn(program, args, options))
  } catch (cause) {
    throw new Fault(`start ${program} on a terminal`, { cause })
  }
}

function streamed(pty: IPty): StreamedProcess {
  let over = false
  const stdout = new Readable({
    read: () => over || pty.resume(),
    destroy: (error, done) => {
      if (!over) pty.resume() // nobody reads it, and nothing may wait for that
      done(error)
    },
  })
  // Typed as text, which it is only with an encoding.
  pty.onData((data: unknown) => {
    const bytes = Buffer.isBuffer(data) ? data : Buffer.from(String(data))
    if (!stdout.destroyed && !stdout.push(bytes)) pty.pause()
  })
  const ended = new Promise<ProcessEnd>((resolve) => {
    pty.onExit(({ exitCode, signal }) => {
      over = true
      stdout.push(null)
      resolve(signal ? { exitCode: undefined, signal } : { exitCode, signal: undefined })
    })
  })
  const resize = (rows: number, columns: number) => {
    // Its size means nothing to one that has just ended.
    if (!over) pty.resize(columns, rows)
  }
  return { pid: pty.pid, stdin: inputOf(pty, () => over), stdout, stderr: undefined, ended, resize }
}

/**
 * Written here, one piece after the other: node-pty keeps any amount, tells nobody when it is taken, and tries again
 * without a pause while the terminal is full.
 */
function inputOf(pty: IPty, over: () => boolean): Writable {
  const fd = 'fd' in pty && typeof pty.fd === 'number' ? pty.fd : undefined
  return new Writable({
    write: (chunk: Buffer, _encoding, done) => {
      if (fd === undefined) done(new Error('the terminal has no descriptor'))
      else void writeWhole(fd, chunk, over).then(() => done(), done)
    },
  })
}

async function writeWhole(fd: number, bytes: Buffer, over: () => boolean): Promise<void> {
  for (let written = 0; written < bytes.length && !over(); ) {
    try {
      written += (await writeAsync(fd, bytes, written, bytes.length - written)).bytesWritten
    } catch (error) {
      if (errnoOf(error) === 'EIO') return // its last process is gone
      ignore(error, 'EAGAIN')
      await pause(FULL_MS)
    }
  }
}
