// turns.ts: whose turn is next, where of what tenants share only so much can go on at once.
//
// An owner may take a turn only while it has fewer than are free then. Alone it comes to half of all; with others to less;
// and whoever has none yet finds one, unless very many have come before. A turn that is given back goes to whoever has the
// fewest, among equals to who was served longest ago: owners take turns, however many of one wait and whatever theirs take.
// Who comes is as one that was served just then: else those that leave after each turn and come again would always go before
// one that stays in line for its next. Of one owner they go in the order in which they came.

export interface TurnLimits {
  /** Of all owners; Infinity where they do not stand in each other's way. */
  readonly all: number
  /** Of one. */
  readonly each: number
}

/** Whether an owner that has `own` of `taken` turns may take one more. */
export const mayTake = ({ all, each }: TurnLimits, taken: number, own: number): boolean =>
  own < each && own < all - taken

/** An owner that waits. */
export interface InLine {
  /** Turns that it has. */
  readonly own: number
  /** Grows with each turn that anybody is given: when this one was last, or when it came. */
  readonly served: number
}

/** Who gets the next turn; among equals the first. Undefined: nobody now. */
export function whoseTurn<L extends InLine>(limits: TurnLimits, taken: number, line: readonly L[]): L | undefined {
  const may = line.filter(({ own }) => mayTake(limits, taken, own))
  return may.reduce<L | undefined>(
    (best, one) => (best && (best.own - one.own || best.served - one.served) <= 0 ? best : one),
    undefined,
  )
}

interface Owner {
  own: number
  served: number
  readonly waiting: (() => void)[]
}

export class FairTurns {
  /** Those that have a turn or wait for one, in the order in which they came. */
  private readonly owners = new Map<string, Owner>()
  private taken = 0
  private served = 0

  constructor(private readonly limits: TurnLimits) {}

  /**
   * Waits for a turn.
   * @param signal ends the waiting; what is thrown is its reason
   * @returns what gives the turn back; calling it again changes nothing
   */
  async take(name: string, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted()
    const owner = this.owners.get(name) ?? { own: 0, served: this.served, waiting: [] }
    this.owners.set(name, owner)
    await new Promise<void>((resolve, reject) => {
      const leave = () => {
        owner.waiting.splice(owner.waiting.indexOf(go), 1)
        this.forget(name, owner)
        reject(signal.reason)
      }
      const go = () => {
        signal.removeEventListener('abort', leave)
        resolve()
      }
      owner.waiting.push(go)
      signal.addEventListener('abort', leave, { once: true })
      this.serve()
    })
    let isGiven = false
    return () => {
      if (isGiven) return
      isGiven = true
      owner.own--
      this.taken--
      this.forget(name, owner)
      this.serve()
    }
  }

  private serve(): void {
    for (;;) {
      const line = [...this.owners.values()].filter(({ waiting }) => waiting.length > 0)
      const next = whoseTurn(this.limits, this.taken, line)
      const go = next?.waiting.shift()
      if (!next || !go) return
      next.own++
      next.served = ++this.served
      this.taken++
      go()
    }
  }

  private forget(name: string, owner: Owner): void {
    if (owner.own === 0 && owner.waiting.length === 0 && this.owners.get(name) === owner) this.owners.delete(name)
  }
}

/**
 * One turn for what several owners want, of whichever it comes to first: nobody is to wait in the line of another one's
 * own. Whoever makes it awaits `turn`, and has owners stand in line for it.
 */
export class OneTurn {
  /** What gives the turn back. Rejects with the reason of `signal`, unless the turn has come. */
  readonly turn: Promise<() => void>
  private readonly owners = new Set<string>()
  private readonly over = new AbortController()
  private come: (give: () => void) => void = () => undefined
  private fail: (reason: unknown) => void = () => undefined

  constructor(
    private readonly turns: FairTurns,
    private readonly signal: AbortSignal,
  ) {
    this.turn = new Promise((come, fail) => {
      this.come = come
      this.fail = fail
    })
  }

  stand(owner: string): void {
    if (this.over.signal.aborted || this.owners.has(owner)) return
    this.owners.add(owner)
    const signal = AbortSignal.any([this.signal, this.over.signal])
    this.turns.take(owner, signal).then(
      (give) => {
        if (this.over.signal.aborted) return give()
        this.over.abort()
        this.come(give)
      },
      // Where another owner's came, this changes nothing.
      (reason: unknown) => this.fail(reason),
    )
  }
}
