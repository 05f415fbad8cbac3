import { z } from 'zod'
import { KiB, MiB } from './units.js'

/** Largest argv and environment together: what Linux takes with the usual 8 MiB stack is 2 MiB (execve(2)). */
export const MAX_ARGS_BYTES = 1 * MiB
/** Largest single argument or variable: MAX_ARG_STRLEN, 32 pages less the NUL (execve(2)). */
export const MAX_ARG_BYTES = 128 * KiB - 1

const byteLength = (text: string) => new TextEncoder().encode(text).length
const noNul = (text: string) => !text.includes('\0')

export const Argument = z
  .string()
  .refine(noNul, 'must not contain NUL bytes')
  .refine((text) => byteLength(text) <= MAX_ARG_BYTES, `must be at most ${MAX_ARG_BYTES} bytes`)

/** Program and arguments; nothing is passed through a shell. */
export const Command = z.array(Argument).min(1).max(4096)

export const Environment = z
  .record(
    z.string().regex(/^[A-Za-z_][A-Za-z0-9_.-]{0,255}$/, 'must be a variable name'),
    z.string().refine(noNul, 'must not contain NUL bytes'),
  )
  .superRefine((env, context) => {
    for (const [name, value] of Object.entries(env))
      if (byteLength(name) + byteLength(value) + 1 > MAX_ARG_BYTES)
        context.addIssue({ code: 'custom', path: [name], message: `must be at most ${MAX_ARG_BYTES} bytes` })
  })

/** A path in a sandbox: at most PATH_MAX less its NUL, each part at most NAME_MAX (path_resolution(7)). */
export const AbsolutePath = z
  .string()
  .refine(noNul, 'must not contain NUL bytes')
  .refine((path) => path.startsWith('/'), 'must be an absolute path')
  .refine((path) => byteLength(path) <= 4095, 'must be at most 4095 bytes')
  .refine((path) => path.split('/').every((part) => byteLength(part) <= 255), 'must have parts of at most 255 bytes')

/** `user[:group]`, by name or number. */
export const User = z
  .string()
  .regex(/^(\d{1,5}|[a-z_][a-z0-9_-]{0,31})(:(\d{1,5}|[a-z_][a-z0-9_-]{0,31}))?$/, 'must be user[:group]')

/** A group, by name or number. */
export const Group = z.string().regex(/^(\d{1,5}|[a-z_][a-z0-9_-]{0,31})$/, 'must be a group')

export const Hostname = z
  .string()
  .regex(/^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$/, 'must be a host name of up to 63 characters')

/** Signals that may be sent, by name; real-time signals by number. */
export const signalNames = [
  ...['SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGILL', 'SIGTRAP', 'SIGABRT', 'SIGBUS', 'SIGFPE', 'SIGKILL', 'SIGUSR1'],
  ...['SIGSEGV', 'SIGUSR2', 'SIGPIPE', 'SIGALRM', 'SIGTERM', 'SIGSTKFLT', 'SIGCHLD', 'SIGCONT', 'SIGSTOP', 'SIGTSTP'],
  ...['SIGTTIN', 'SIGTTOU', 'SIGURG', 'SIGXCPU', 'SIGXFSZ', 'SIGVTALRM', 'SIGPROF', 'SIGWINCH', 'SIGIO', 'SIGPWR'],
  'SIGSYS',
] as const

const numbers: ReadonlyMap<string, number> = new Map(signalNames.map((name, i) => [name, i + 1]))

/** Number of a signal from its name, with or without `SIG` (signal(7), x86 and arm), or from its number. */
export function signalNumber(text: string): number | undefined {
  if (/^\d{1,2}$/.test(text)) return Number(text) >= 1 && Number(text) <= 64 ? Number(text) : undefined
  return numbers.get(text.toUpperCase().replace(/^(SIG)?/, 'SIG'))
}

/** A signal by name (`SIGTERM`, `TERM`) or number; becomes its number. */
export const Signal = z.union([z.number().int(), z.string().max(16)]).transform((value, context) => {
  const number = signalNumber(String(value))
  if (number !== undefined) return number
  context.addIssue({ code: 'custom', message: 'must be a signal such as "SIGTERM" or 15' })
  return z.NEVER
})

/** What is wrong with argv and environment taken together; undefined where they fit. */
export function argumentsProblem(
  command: readonly string[],
  env: Readonly<Record<string, string>>,
): { readonly field: 'command' | 'env'; readonly message: string } | undefined {
  const args = command.reduce((sum, arg) => sum + byteLength(arg) + 1, 0)
  const variables = Object.entries(env).reduce((sum, [k, v]) => sum + byteLength(k) + byteLength(v) + 2, 0)
  if (args + variables <= MAX_ARGS_BYTES) return undefined
  const message = `command and env together must be at most ${MAX_ARGS_BYTES} bytes, are ${args + variables}`
  return { field: variables > args ? 'env' : 'command', message }
}

/** Size of a terminal in character cells. */
export const TerminalSize = z.strictObject({
  rows: z.number().int().min(1).max(1000),
  columns: z.number().int().min(1).max(1000),
})
export type TerminalSize = z.infer<typeof TerminalSize>
