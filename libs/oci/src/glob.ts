// glob.ts: patterns with wildcards, matched without going back: whoever writes one cannot make it take longer than the
// product of its length and the text's. (A regular expression made of it could be made to take for ever.)

/** What one place of a pattern takes. */
export type GlobPart =
  /** This character. */
  | string
  /** One character, or any number of them, of those that `wild` allows. */
  | { readonly kind: 'one' | 'many'; readonly wild: (character: string) => boolean }
  /** Nothing, or anything with a slash at its end. Stands for two places, of which the second is `within`. */
  | { readonly kind: 'directories' }
  | { readonly kind: 'within' }
export type Glob = readonly GlobPart[]

/**
 * Where a match that begins at `from` ends: the longest, or the shortest; undefined when there is none.
 * @param text characters, as `[...text]` has them
 * @param spent is told of the work that was done, and may throw
 */
export function matchEnd(
  glob: Glob,
  text: readonly string[],
  from: number,
  longest: boolean,
  spent?: (steps: number) => void,
): number | undefined {
  let [states, next] = statesOf(glob)
  states.clear()
  states.add(0)
  let found: number | undefined
  for (let i = from; ; i++) {
    if (states.has(glob.length)) {
      found = i
      if (!longest) return found
    }
    const character = text[i]
    if (character === undefined || states.size === 0) return found
    spent?.(states.size + 1)
    next.clear()
    for (let at = 0; at < states.size; at++) {
      const state = states.list[at] ?? 0
      const part = glob[state]
      if (part === undefined) continue
      if (typeof part === 'string') {
        if (part === character) next.add(state + 1)
      } else if (part.kind === 'within') {
        if (character !== '\n') next.add(state)
        if (character === '/') next.add(state + 1)
      } else if (part.kind !== 'directories' && part.wild(character)) next.add(part.kind === 'many' ? state : state + 1)
    }
    ;[states, next] = [next, states]
  }
}

/** Whether a pattern takes the whole of a text. */
export const matches = (glob: Glob, text: string, spent?: (steps: number) => void): boolean => {
  const characters = [...text]
  return matchEnd(glob, characters, 0, true, spent) === characters.length
}

/** Kept with the pattern, as it is matched at each place of a text: to make them takes as long as the pattern is. */
const kept = new WeakMap<Glob, [States, States]>()

function statesOf(glob: Glob): [States, States] {
  const found = kept.get(glob) ?? [new States(glob), new States(glob)]
  kept.set(glob, found)
  return found
}

/** Places of a pattern, each once, with those that are reached from them without another character. */
class States {
  size = 0
  readonly list: Int32Array
  private readonly marks: Uint32Array
  private mark = 1

  constructor(private readonly glob: Glob) {
    this.list = new Int32Array(glob.length + 1)
    this.marks = new Uint32Array(glob.length + 1)
  }

  has(state: number): boolean {
    return this.marks[state] === this.mark
  }

  clear(): void {
    this.size = 0
    this.mark++
  }

  add(state: number): void {
    // Each "many" leads to the next place, so that they are gone along rather than called for: patterns may be long.
    for (let at = state; !this.has(at); at++) {
      this.marks[at] = this.mark
      this.list[this.size++] = at
      const part = this.glob[at]
      if (part === undefined || typeof part === 'string') return
      if (part.kind === 'directories') this.addWithin(at + 1)
      if (part.kind === 'directories') at++
      else if (part.kind !== 'many') return
    }
  }

  private addWithin(state: number): void {
    if (this.has(state)) return
    this.marks[state] = this.mark
    this.list[this.size++] = state
  }
}
