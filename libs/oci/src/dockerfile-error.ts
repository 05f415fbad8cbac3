import { Failure } from '@berth/contracts'

/** Where in a Dockerfile something is: the instruction that is told of in an error. */
export interface Place {
  /** From 1. */
  readonly line: number
  readonly text?: string
  readonly keyword?: string
}

/** What is wrong with a Dockerfile, and where; without a place it is about the whole. */
export function invalidDockerfile(message: string, at?: Place): Failure {
  // What is quoted in it may be as long as the file.
  const shown = message.length > 2000 ? `${message.slice(0, 2000)}…` : message
  const where = at ? `line ${at.line}${at.keyword === undefined ? '' : `, ${at.keyword}`}: ` : ''
  return new Failure('dockerfile_invalid', where + shown, {
    line: at?.line ?? null,
    instruction: at?.text?.trimEnd().slice(0, 4096) ?? null,
  })
}

/** `(did you mean X?)` with a blank before it, when one of the words is at most two letters off. */
export function didYouMean(word: string, of: readonly string[]): string {
  const [best] = of
    .map((candidate) => ({ candidate, far: distance(word.slice(0, 32), candidate) }))
    .filter(({ candidate, far }) => far <= Math.min(2, candidate.length - 2))
    .sort((a, b) => a.far - b.far)
  return best ? ` (did you mean ${best.candidate}?)` : ''
}

/** Levenshtein's distance. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const replaced = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min((row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1, replaced))
    }
    row = next
  }
  return row[b.length] ?? 0
}
