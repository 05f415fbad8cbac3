// violations.ts: zod's issues as one line each, naming the field as a caller would write it: `jobs[3].command`.
import { InvalidRequest, type Violation } from '@berth/contracts'
import type { z } from 'zod'

type Path = readonly PropertyKey[]

/** `['jobs', 3, 'env', 'A B']` → `jobs[3].env["A B"]`; `root` where the path is empty. */
export function fieldOf(path: Path, root: string): string {
  const text = path
    .map((part) => {
      if (typeof part === 'number') return `[${part}]`
      const name = String(part)
      return /^[\w$/-][\w$./-]*$/.test(name) ? `.${name}` : `[${JSON.stringify(name.slice(0, 100))}]`
    })
    .join('')
  return text.replace(/^\./, '') || root
}

const MAX_VIOLATIONS = 100

/** Everything that is wrong, at most 100 lines. */
export function violationsOf(error: z.ZodError, root: string): Violation[] {
  return error.issues.flatMap((issue) => linesOf(issue, root)).slice(0, MAX_VIOLATIONS)
}

function linesOf(issue: z.core.$ZodIssue, root: string): Violation[] {
  if (issue.code === 'unrecognized_keys')
    return issue.keys.map((key) => ({ field: fieldOf([...issue.path, key], root), message: 'is not a known field' }))
  const nested = issue.code === 'invalid_key' ? issue.issues[0] : undefined
  return [{ field: fieldOf(issue.path, root), message: plain((nested ?? issue).message) }]
}

/** Whatever else is expected: what need not be given is left out, and null only where that means something. */
const ofNull: z.core.$ZodErrorMap = ({ input }) => (input === null ? 'must not be null' : undefined)

const plain = (message: string): string =>
  /received undefined$/.test(message) ? 'is needed' : message.replace(/^Invalid input: /, '')

/**
 * Parses with `schema`. Text that is not Unicode (lone surrogates, which JSON can spell) is refused everywhere: neither
 * Postgres nor a program's argv can hold it.
 * @throws InvalidRequest
 */
export function parseWith<S extends z.ZodType>(schema: S, value: unknown, root: string): z.output<S> {
  const parsed = schema.safeParse(value, { error: ofNull })
  if (!parsed.success) throw new InvalidRequest(violationsOf(parsed.error, root))
  const odd = illFormed(parsed.data, [])
  if (odd) throw new InvalidRequest([{ field: fieldOf(odd, root), message: 'must be Unicode text without NUL' }])
  return parsed.data
}

/** Path of the first text that is not well-formed or holds NUL. Depth is that of the schema, so bounded. */
function illFormed(value: unknown, path: Path): Path | undefined {
  if (typeof value === 'string') return !/\p{Surrogate}/u.test(value) && !value.includes('\0') ? undefined : path
  if (typeof value !== 'object' || value === null) return undefined
  for (const [key, inner] of Object.entries(value)) {
    const found = illFormed(inner, [...path, Array.isArray(value) ? Number(key) : key])
    if (found) return found
  }
  return undefined
}
