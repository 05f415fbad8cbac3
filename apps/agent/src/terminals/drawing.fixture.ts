import { createLogger } from '@berth/telemetry'
import { Drawing, type DrawingThread } from './drawing.js'
import { DrawingBoard } from './drawing.thread.js'

const log = createLogger({ name: 'agent', level: 'silent' })

/** A thread in this one, that can be killed. */
export class Threads {
  #kill: (() => void) | undefined
  started = 0
  /** So many requests kill their thread. */
  deadly = 0
  /** So many threads cannot be started: the half of them says so at once, the others end. */
  unstartable = 0
  readonly drawing = new Drawing({ start: () => this.#start(), log, retryMs: 1 })

  kill(): void {
    this.#kill?.()
  }

  #start(): DrawingThread {
    this.started += 1
    const starts = this.unstartable === 0
    if (!starts) this.unstartable -= 1
    if (!starts && this.started % 2 === 0) throw new Error('no thread')
    const board = new DrawingBoard()
    let alive = true
    let answer: Parameters<DrawingThread['onAnswer']>[0] = () => undefined
    let ended: Parameters<DrawingThread['onEnd']>[0] = () => undefined
    const end = () => {
      if (!alive) return
      alive = false
      setImmediate(() => ended(new Error('killed'), starts))
    }
    this.#kill = end
    if (!starts) end()
    return {
      send: (request) =>
        void setImmediate(() => {
          if (!alive) return
          // Its time does not count, so that no test waits for a share of the CPU.
          if (this.deadly === 0) answer({ ...board.answer(request), ms: 0 })
          else {
            this.deadly -= 1
            end()
          }
        }),
      onAnswer: (listener) => {
        answer = listener
      },
      onEnd: (listener) => {
        ended = listener
      },
      end,
    }
  }
}
