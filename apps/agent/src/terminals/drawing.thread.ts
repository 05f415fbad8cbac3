// drawing.thread.ts: the thread of drawing.ts, and how it is started.

import { type MessagePort, parentPort, Worker, workerData } from 'node:worker_threads'
import { KiB, MiB } from '@berth/contracts'
import type { DrawAnswer, DrawingThread, DrawRequest } from './drawing.js'
import { Emulator, scrollbackOf } from './emulator.js'
import { redraw } from './redraw.js'
import type { Step } from './reduce.js'

/** Fits one message of a socket, with what comes before it. */
const TEXT_BYTES = 1 * MiB - 4 * KiB

/** Answers requests; a sheet that is not known was never begun, which is a bug of the other side. */
export class DrawingBoard {
  readonly #sheets = new Map<number, Emulator>()

  answer(request: DrawRequest): DrawAnswer {
    const from = performance.now()
    const { call, sheet, open, steps, read, close } = request
    if (open) this.#sheets.set(sheet, new Emulator(open))
    const emulator = this.#sheets.get(sheet)
    for (const step of steps) step.kind === 'draw' ? emulator?.write(step.bytes) : emulator?.resize(step.size)
    const text =
      read && emulator
        ? Buffer.from(redraw(emulator, { scrollback: scrollbackOf(emulator.columns), limit: TEXT_BYTES }))
        : undefined
    if (close) {
      emulator?.dispose()
      this.#sheets.delete(sheet)
    }
    const cells = close ? 0 : (emulator?.cells ?? 0)
    return { call, ms: performance.now() - from, cells, ...(text ? { text } : {}) }
  }
}

const MARK = 'berth-drawing'

/** A view of a large buffer is sent with all of that buffer. */
const compact = (step: Step): Step => (step.kind === 'draw' ? { ...step, bytes: new Uint8Array(step.bytes) } : step)

export function startThread(): DrawingThread {
  const worker = new Worker(new URL(import.meta.url), {
    name: 'drawing',
    workerData: MARK,
    // xterm.js warns of what it finds slow.
    stdout: true,
    stderr: true,
    // xterm.js holds its cells beside this; a screen full of marks holds some hundred bytes a cell.
    resourceLimits: { maxOldGenerationSizeMb: 384 },
  })
  let failure: Error | undefined
  let started = false
  worker.once('online', () => {
    started = true
  })
  worker.on('error', (error) => {
    failure = error
  })
  worker.stdout.resume()
  worker.stderr.resume()
  // It must not keep an agent alive that has nothing else to do.
  worker.unref()
  return {
    send: (request) => worker.postMessage({ ...request, steps: request.steps.map(compact) }),
    onAnswer: (listener) => void worker.on('message', listener),
    onEnd: (listener) => void worker.on('exit', () => listener(failure, started)),
    end: () => void worker.terminate(),
  }
}

function serve(port: MessagePort): void {
  const board = new DrawingBoard()
  port.on('message', (request: DrawRequest) => port.postMessage(board.answer(request)))
}

if (workerData === MARK && parentPort) serve(parentPort)
