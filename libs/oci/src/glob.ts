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
  let states = reach(glob, new Set([0]))
  let found: number | undefined
  for (let i = from; ; i++) {
    if (states.has(glob.length)) {
      found = i
      if (!longest) return found
    }
    const character = text[i]
    if (character === undefined || states.size === 0) return found
    spent?.(states.size + 1)
    const next = new Set<number>()
    for (const state of states) {
      const part = glob[state]
      if (part === undefined) continue
      if (typeof part === 'string') {
        if (part === character) next.add(state + 1)
      } else if (part.kind === 'within') {
        if (character !== '\n') next.add(state)
        if (character === '/') next.add(state + 1)
      } else if (part.kind !== 'directories' && part.wild(character)) next.add(part.kind === 'many' ? state : state + 1)
    }
    states = reach(glob, next)
  }
}

/** Whether a pattern takes the whole of a text. */
export const matches = (glob: Glob, text: string, spent?: (steps: number) => void): boolean => {
  const characters = [...text]
  return matchEnd(glob, characters, 0, true, spent) === characters.length
}

/** The states that are reached without another character. (A set is gone through with what is added on the way.) */
function reach(glob: Glob, states: Set<number>): Set<number> {
  for (const state of states) {
    const part = glob[state]
    if (part === undefined || typeof part === 'string') continue
    if (part.kind === 'many') states.add(state + 1)
    if (part.kind === 'directories') states.add(state + 1).add(state + 2)
  }
  return states
}
