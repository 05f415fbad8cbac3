// turns.ts: so many at a time of one owner; the others wait, in order. What a tenant has under way on nodes is not counted
// against its quota before it is done, so this bounds what it may take there for the moment.
import type { ImageOwner } from '@berth/domain'

const AT_ONCE = 4

interface Turn {
  running: number
  readonly waiting: (() => void)[]
}

export class Turns {
  private readonly owners = new Map<ImageOwner, Turn>()

  constructor(private readonly atOnce = AT_ONCE) {}

  /**
   * Waits for a turn.
   * @param signal ends the waiting; what is thrown is its reason
   * @returns what gives the turn back; to be called once
   */
  async take(owner: ImageOwner, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted()
    const turn = this.owners.get(owner) ?? { running: 0, waiting: [] }
    this.owners.set(owner, turn)
    if (turn.running >= this.atOnce) await this.waited(turn, signal)
    else turn.running++
    return () => this.give(owner, turn)
  }

  /** A turn that is given back goes to whoever waits longest, without being free in between. */
  private give(owner: ImageOwner, turn: Turn): void {
    const next = turn.waiting.shift()
    if (next) next()
    else if (--turn.running === 0) this.owners.delete(owner)
  }

  private waited({ waiting }: Turn, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const gone = () => {
        waiting.splice(waiting.indexOf(go), 1)
        reject(signal.reason)
      }
      const go = () => {
        signal.removeEventListener('abort', gone)
        resolve()
      }
      waiting.push(go)
      signal.addEventListener('abort', gone, { once: true })
    })
  }
}
