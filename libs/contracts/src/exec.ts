import { z } from 'zod'
import { ExecId } from './ids.js'
import { InlineStream, OutputStream } from './job.js'
import { AbsolutePath, argumentsProblem, Command, Environment, Group, Signal, TerminalSize, User } from './process.js'
import { Flag, route, Time } from './route.js'
import { sandboxParams } from './sandbox.js'
import { Bytes, DAY, DurationMs, KiB, MINUTE, MiB } from './units.js'

const execFields = z.strictObject({
  id: ExecId.optional().describe('Chosen by the caller: the same request again finds the exec that the first one made'),
  command: Command.describe('Program and arguments; nothing is passed through a shell'),
  env: Environment.default({}).describe("Added to the sandbox's"),
  workingDir: AbsolutePath.optional().describe("Default: the sandbox's"),
  user: User.optional().describe("Default: the sandbox's"),
  groups: z.array(Group).max(64).default([]),
  stdin: z.boolean().default(false).describe('Takes input over the socket or …/input. Default: /dev/null'),
  input: z
    .base64()
    .max(4 * MiB)
    .optional()
    .describe('Whole standard input, base64; closed after it'),
  tty: TerminalSize.nullable().default(null).describe('Runs it on a terminal of this size; all output is stdout'),
  timeoutMs: DurationMs(0, 7 * DAY)
    .prefault(0)
    .describe('SIGTERM, then SIGKILL after `graceMs`; 0: none'),
  graceMs: DurationMs(0, 5 * MINUTE).prefault('2s'),
  outputBytes: Bytes(4 * KiB, 256 * MiB)
    .prefault('16m')
    .describe('The last so many bytes of each stream are kept; readers that are further behind are told of the gap'),
})
export const ExecSpec = execFields.superRefine((spec, context) => {
  const problem = argumentsProblem(spec.command, spec.env)
  if (problem) context.addIssue({ code: 'custom', path: [problem.field], message: problem.message })
  if (spec.input !== undefined && spec.stdin)
    context.addIssue({ code: 'custom', path: ['input'], message: 'is the whole input: leave `stdin` out' })
})
export type ExecSpec = z.infer<typeof ExecSpec>

export const ExecState = z.enum(['running', 'exited', 'failed', 'lost'])
export type ExecState = z.infer<typeof ExecState>

const ExecStream = z.object({
  bytes: z.number().int().describe('Written by the command so far'),
  from: z.number().int().describe('Offset of the first byte that is kept'),
})

/** A command run in a sandbox beside its main process. */
export const Exec = z.object({
  id: ExecId,
  state: ExecState.describe('`failed`: it never ran. `lost`: the sandbox ended, and with it what became of this'),
  spec: execFields.omit({ id: true, env: true, input: true }),
  pid: z.number().int().nullable().describe('In the sandbox'),
  exitCode: z.number().int().nullable().describe('126 and 127 as a shell where it could not be executed'),
  signal: z.string().nullable(),
  timedOut: z.boolean(),
  oomKilled: z.boolean().describe('It was killed while the kernel ended processes of the sandbox for memory'),
  message: z.string().nullable().describe('Why it failed, was ended or is lost'),
  stdout: ExecStream,
  stderr: ExecStream,
  stdinBytes: z.number().int().describe('Input taken so far: where more input goes on'),
  usage: z.object({ wallMs: z.number(), cpuMs: z.number(), peakMemoryBytes: z.number().int() }).nullable(),
  createdAt: Time,
  endedAt: Time.nullable(),
  output: z
    .object({ stdout: InlineStream, stderr: InlineStream })
    .optional()
    .describe('With `output=true`, once it has ended: the last MiB of each stream'),
})
export type Exec = z.infer<typeof Exec>

const waiting = {
  wait: z.enum(['ended']).optional().describe('Answer when it has ended'),
  timeoutMs: DurationMs(0, 7 * DAY)
    .prefault('60s')
    .describe('With `wait`: answer after this long in any case; it runs on, ask again'),
  output: Flag.default(false),
} as const

const execParams = sandboxParams.extend({ exec: ExecId })
const reading = { method: 'GET', rate: 'read', scope: 'sandboxes:read', tag: 'execs' } as const
const writing = { rate: 'write', scope: 'sandboxes:write', tag: 'execs', idempotency: 'none' } as const
const missing = ['sandbox_not_found', 'exec_not_found', 'node_unreachable'] as const
const starting = [
  'invalid_json',
  'body_too_large',
  'sandbox_not_found',
  'wrong_state',
  'id_taken',
  'quota_exceeded',
  'node_unreachable',
] as const

/** One value of an exec's stream. Data is text where it is UTF-8 and was not cut, else base64. */
export const ExecFrame = z.discriminatedUnion('type', [
  z.object({ type: z.literal('started'), exec: ExecId, pid: z.number().int().nullable() }),
  z.object({
    type: OutputStream,
    offset: z.number().int().describe('Of the first byte'),
    data: z.string(),
    encoding: z.enum(['utf8', 'base64']),
  }),
  z.object({ type: z.literal('gap'), stream: OutputStream, offset: z.number().int().describe('Where it goes on') }),
  z.object({ type: z.literal('end'), exec: Exec }),
])
export type ExecFrame = z.infer<typeof ExecFrame>

export const createExec = route({
  ...writing,
  id: 'createExec',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/execs',
  summary: 'Run a command in a sandbox',
  description:
    'Answers once it has started. `wait=ended&output=true` makes it one call from command to output. What it leaves in ' +
    'the background lives on.',
  params: sandboxParams,
  query: z.strictObject(waiting),
  body: ExecSpec,
  bodyLimit: 8 * MiB,
  reply: { 201: Exec },
  errors: starting,
})
export const runExec = route({
  ...writing,
  id: 'runExec',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/execs/stream',
  summary: 'Run a command and stream its output as lines of JSON',
  description: 'It runs on when the caller leaves; go on with its stream.',
  params: sandboxParams,
  body: ExecSpec,
  bodyLimit: 8 * MiB,
  reply: { 200: { kind: 'ndjson', item: ExecFrame } },
  errors: starting,
})
export const listExecs = route({
  ...reading,
  id: 'listExecs',
  path: '/v1/sandboxes/:sandbox/execs',
  summary: 'Execs of a sandbox, newest first',
  description: 'Ended ones are kept for an hour, and at most 1,000 of them.',
  params: sandboxParams,
  query: z.strictObject({ state: ExecState.optional() }),
  reply: { 200: z.object({ items: z.array(Exec) }) },
  errors: ['sandbox_not_found', 'node_unreachable'],
})
export const getExec = route({
  ...reading,
  id: 'getExec',
  path: '/v1/sandboxes/:sandbox/execs/:exec',
  summary: 'Get an exec, or wait for its end',
  params: execParams,
  query: z.strictObject(waiting),
  reply: { 200: Exec },
  errors: missing,
})
export const streamExec = route({
  ...reading,
  id: 'streamExec',
  path: '/v1/sandboxes/:sandbox/execs/:exec/stream',
  summary: 'Both output streams as lines of JSON, live',
  params: execParams,
  query: z.strictObject({
    stdout: z.coerce.number().int().min(0).default(0).describe('Offset of the first byte of stdout wanted'),
    stderr: z.coerce.number().int().min(0).default(0),
    follow: Flag.default(true),
  }),
  reply: { 200: { kind: 'ndjson', item: ExecFrame } },
  errors: missing,
})
export const getExecOutput = route({
  ...reading,
  id: 'getExecOutput',
  path: '/v1/sandboxes/:sandbox/execs/:exec/output/:stream',
  summary: 'One output stream as raw bytes',
  description: 'Begins at the first byte that is kept from `since` on; the header `Berth-Offset` says where that is.',
  params: execParams.extend({ stream: OutputStream }),
  query: z.strictObject({ since: z.coerce.number().int().min(0).default(0), follow: Flag.default(false) }),
  reply: { 200: 'bytes' },
  errors: missing,
})
export const writeExecInput = route({
  ...writing,
  id: 'writeExecInput',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/execs/:exec/input',
  summary: 'Write to the standard input of an exec',
  description:
    'Answers when the command has taken all of it. Bytes below `stdinBytes` are repeats and dropped; a gap is refused.',
  params: execParams,
  query: z.strictObject({
    offset: z.coerce.number().int().min(0).optional().describe('Of the first byte. Default: where the last ended'),
    end: Flag.default(false).describe('Close it after these bytes'),
  }),
  body: 'bytes',
  reply: { 200: z.object({ stdinBytes: z.number().int() }) },
  errors: [...missing, 'wrong_state', 'input_gap'],
})
export const attachExec = route({
  ...reading,
  scope: 'sandboxes:write',
  id: 'attachExec',
  path: '/v1/sandboxes/:sandbox/execs/:exec/socket',
  summary: 'Attach to an exec by WebSocket',
  description:
    'Binary frames: the first byte is 0 for input (from the caller), 1 for stdout, 2 for stderr, the rest are bytes. ' +
    'Text frames are JSON. From the server: `{"type":"started","exec","pid","stdinBytes"}` first, ' +
    '`{"type":"gap","stream","offset"}`, `{"type":"stdinAck","offset"}`, `{"type":"end","exec"}` after the last byte, ' +
    '`{"type":"error","code","detail"}` where something was refused, `{"type":"pong"}`. From the caller: `{"type":"eof"}` half-closes the input, ' +
    '`{"type":"resize","rows","columns"}`, `{"type":"signal","signal"}`, `{"type":"ping"}`. ' +
    'Close codes: 1000 it ended, 1001 the server goes away, 4400 a frame that makes no sense, 4401 the key was revoked, ' +
    '4404 it is gone. Closing ends nothing but the connection.',
  params: execParams,
  query: z.strictObject({
    stdout: z.coerce.number().int().min(0).default(0),
    stderr: z.coerce.number().int().min(0).default(0),
    stdin: z.coerce.number().int().min(0).optional().describe('Offset of the first byte of input. Default: stdinBytes'),
  }),
  reply: { 101: 'socket' },
  errors: [...missing, 'upgrade_required', 'origin_forbidden'],
})
export const signalExec = route({
  ...writing,
  id: 'signalExec',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/execs/:exec/signal',
  summary: 'Send a signal to an exec',
  params: execParams,
  body: z.strictObject({
    signal: Signal,
    group: z.boolean().default(true).describe('To its whole process group'),
  }),
  reply: { 200: Exec },
  errors: [...missing, 'wrong_state'],
})
export const resizeExec = route({
  ...writing,
  id: 'resizeExec',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/execs/:exec/resize',
  summary: 'Change the size of the terminal of an exec',
  params: execParams,
  body: TerminalSize,
  reply: { 200: Exec },
  errors: [...missing, 'wrong_state'],
})
export const deleteExec = route({
  ...writing,
  id: 'deleteExec',
  method: 'DELETE',
  path: '/v1/sandboxes/:sandbox/execs/:exec',
  summary: 'Kill an exec if it runs, and forget it with its output',
  params: execParams,
  reply: { 204: 'empty' },
  errors: missing,
})
