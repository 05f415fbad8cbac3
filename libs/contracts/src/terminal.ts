import { z } from 'zod'
import { ShareId, TerminalId } from './ids.js'
import { AbsolutePath, argumentsProblem, Command, Environment, Signal, TerminalSize, User } from './process.js'
import { Flag, route, Time } from './route.js'
import { sandboxParams } from './sandbox.js'
import { DAY, DurationMs, MINUTE, SECOND } from './units.js'

const terminalFields = z.strictObject({
  id: TerminalId.optional().describe(
    'Chosen by the caller: the same request again finds the terminal of the first one',
  ),
  command: Command.optional().describe("Default: the user's shell as a login shell, else /bin/sh"),
  env: Environment.default({}).describe("Added to the sandbox's; TERM is xterm-256color"),
  workingDir: AbsolutePath.optional().describe("Default: the sandbox's"),
  user: User.optional().describe("Default: the sandbox's"),
  rows: TerminalSize.shape.rows.default(24),
  columns: TerminalSize.shape.columns.default(80),
  record: z.boolean().default(false).describe('Keep a recording (asciicast v2)'),
})
export const TerminalSpec = terminalFields.superRefine((spec, context) => {
  const problem = argumentsProblem(spec.command ?? ['sh'], spec.env)
  if (problem) context.addIssue({ code: 'custom', path: [problem.field], message: problem.message })
})
export type TerminalSpec = z.infer<typeof TerminalSpec>

export const TerminalMode = z.enum(['write', 'read'])
export type TerminalMode = z.infer<typeof TerminalMode>

/** A shell, or another program, on a terminal whose screen is kept on the node. */
export const Terminal = z.object({
  id: TerminalId,
  state: z.enum(['open', 'ended']),
  spec: terminalFields.omit({ id: true, env: true }).extend({ command: Command }),
  rows: z.number().int(),
  columns: z.number().int(),
  title: z.string().describe('As the program set it'),
  bytes: z.number().int().describe('Output so far; `since` counts in these'),
  from: z.number().int().describe('Offset of the first byte of output that is kept'),
  viewers: z.object({ writers: z.number().int(), readers: z.number().int() }),
  exitCode: z.number().int().nullable(),
  signal: z.string().nullable(),
  message: z.string().nullable().describe('Why it never ran, or is lost'),
  createdAt: Time,
  lastActivityAt: Time,
  endedAt: Time.nullable(),
})
export type Terminal = z.infer<typeof Terminal>

/** Lets one WebSocket be opened without a key: good once, for a minute. */
export const TerminalTicket = z.object({ ticket: z.string(), expiresAt: Time, mode: TerminalMode })
export type TerminalTicket = z.infer<typeof TerminalTicket>

export const TerminalShare = z.object({
  id: ShareId,
  mode: TerminalMode,
  createdAt: Time,
  expiresAt: Time,
  createdBy: z.string(),
})
export type TerminalShare = z.infer<typeof TerminalShare>

const terminalParams = sandboxParams.extend({ terminal: TerminalId })
const reading = { method: 'GET', rate: 'read', scope: 'sandboxes:read', tag: 'terminals' } as const
const writing = { rate: 'write', scope: 'sandboxes:write', tag: 'terminals', idempotency: 'none' } as const
const missing = ['sandbox_not_found', 'terminal_not_found', 'node_unreachable'] as const

const socketText =
  'Binary frames: the first byte is 0 for input (from the viewer), 1 for output, the rest are bytes. Text frames are ' +
  'JSON. From the server: `{"type":"ready","terminal","mode","rows","columns","offset"}` first, then ' +
  '`{"type":"screen","rows","columns","offset"}` followed by one binary frame that draws the screen as it is at ' +
  '`offset` on a cleared terminal (also later, where the viewer was too slow: it replaces everything before), ' +
  '`{"type":"resize","rows","columns"}`, `{"type":"title","title"}`, `{"type":"notice","text"}`, `{"type":"pong","id"}`, ' +
  '`{"type":"exit","exitCode","signal","message"}` after the last byte, `{"type":"error","code","detail"}`. From the viewer: ' +
  '`{"type":"resize","rows","columns"}`, `{"type":"signal","signal"}`, `{"type":"ping","id"}`. The size follows the ' +
  'writer that typed or resized last. Close codes: 1000 it ended, 1001 the server goes away, 4400 a frame that makes no ' +
  'sense, 4401 key or share revoked or expired, 4404 it is gone, 4429 too many viewers. Closing ends nothing but the ' +
  'connection.'

/** Text frames of a terminal's socket to the viewer; see `connectTerminal`. */
export const TerminalMessage = z.discriminatedUnion('type', [
  z.object({
    type: z.literal('ready'),
    terminal: TerminalId,
    mode: TerminalMode,
    rows: z.number().int(),
    columns: z.number().int(),
    offset: z.number().int().describe('Of the first byte of output that comes, where no `screen` comes first'),
  }),
  z.object({
    type: z.literal('screen'),
    rows: z.number().int(),
    columns: z.number().int(),
    offset: z.number().int().describe('Of the first byte of output after the frame that draws the screen'),
  }),
  z.object({ type: z.literal('resize'), rows: z.number().int(), columns: z.number().int() }),
  z.object({ type: z.literal('title'), title: z.string() }),
  z.object({ type: z.literal('notice'), text: z.string() }),
  z.object({ type: z.literal('pong'), id: z.number().int() }),
  z.object({
    type: z.literal('exit'),
    exitCode: z.number().int().nullable(),
    signal: z.string().nullable(),
    message: z.string().nullable(),
  }),
  z.object({ type: z.literal('error'), code: z.string(), detail: z.string() }),
])
export type TerminalMessage = z.infer<typeof TerminalMessage>

/** Text frames from the viewer. */
export const ViewerMessage = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('resize'), ...TerminalSize.shape }),
  z.strictObject({ type: z.literal('signal'), signal: Signal }),
  z.strictObject({ type: z.literal('ping'), id: z.number().int() }),
])
export type ViewerMessage = z.infer<typeof ViewerMessage>

const socketQuery = {
  since: z.coerce
    .number()
    .int()
    .min(0)
    .optional()
    .describe('Raw bytes from this offset on instead of the screen, where they are still kept'),
} as const

export const createTerminal = route({
  ...writing,
  id: 'createTerminal',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/terminals',
  summary: 'Open a terminal',
  params: sandboxParams,
  body: TerminalSpec,
  bodyLimit: 4 * 1024 * 1024,
  reply: { 201: Terminal.extend({ ticket: TerminalTicket }) },
  errors: [
    'invalid_json',
    'body_too_large',
    'sandbox_not_found',
    'wrong_state',
    'id_taken',
    'quota_exceeded',
    'node_unreachable',
  ],
})
export const listTerminals = route({
  ...reading,
  id: 'listTerminals',
  path: '/v1/sandboxes/:sandbox/terminals',
  summary: 'Terminals of a sandbox, newest first',
  description: 'Ended ones are kept for ten minutes.',
  params: sandboxParams,
  reply: { 200: z.object({ items: z.array(Terminal) }) },
  errors: ['sandbox_not_found', 'node_unreachable'],
})
export const getTerminal = route({
  ...reading,
  id: 'getTerminal',
  path: '/v1/sandboxes/:sandbox/terminals/:terminal',
  summary: 'Get a terminal',
  params: terminalParams,
  reply: { 200: Terminal },
  errors: missing,
})
export const closeTerminal = route({
  ...writing,
  id: 'closeTerminal',
  method: 'DELETE',
  path: '/v1/sandboxes/:sandbox/terminals/:terminal',
  summary: 'Close a terminal: SIGHUP to its session, then SIGKILL',
  params: terminalParams,
  reply: { 204: 'empty' },
  errors: missing,
})
export const resizeTerminal = route({
  ...writing,
  id: 'resizeTerminal',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/terminals/:terminal/resize',
  summary: 'Change the size of a terminal',
  params: terminalParams,
  body: TerminalSize,
  reply: { 200: Terminal },
  errors: [...missing, 'wrong_state'],
})
export const signalTerminal = route({
  ...writing,
  id: 'signalTerminal',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/terminals/:terminal/signal',
  summary: "Send a signal to the terminal's program",
  params: terminalParams,
  body: z.strictObject({ signal: Signal }),
  reply: { 200: Terminal },
  errors: [...missing, 'wrong_state'],
})
export const createTerminalTicket = route({
  ...writing,
  id: 'createTerminalTicket',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/terminals/:terminal/tickets',
  summary: 'Get a ticket for one connection of a browser',
  params: terminalParams,
  body: z.strictObject({ mode: TerminalMode.default('write') }).prefault({}),
  reply: { 201: TerminalTicket },
  errors: missing,
})
export const connectTerminal = route({
  id: 'connectTerminal',
  method: 'GET',
  path: '/v1/sandboxes/:sandbox/terminals/:terminal/socket',
  scope: 'public',
  rate: 'none',
  tag: 'terminals',
  summary: 'Connect to a terminal by WebSocket',
  description: `With a key (Authorization), the session of the console, or \`ticket=\`. ${socketText}`,
  params: terminalParams,
  query: z.strictObject({
    ...socketQuery,
    ticket: z.string().max(200).optional(),
    mode: TerminalMode.default('write').describe('With a key or a session; a ticket has its own'),
  }),
  reply: { 101: 'socket' },
  errors: [...missing, 'ticket_invalid', 'upgrade_required', 'origin_forbidden'],
})
export const createTerminalShare = route({
  ...writing,
  id: 'createTerminalShare',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/terminals/:terminal/shares',
  summary: 'Make a link to a terminal that expires',
  description: 'The token is shown in this answer and never again.',
  params: terminalParams,
  body: z
    .strictObject({
      mode: TerminalMode.default('read'),
      validForMs: DurationMs(10 * SECOND, 7 * DAY).prefault(30 * MINUTE),
    })
    .prefault({}),
  reply: { 201: TerminalShare.extend({ token: z.string(), path: z.string().describe('Of the page that shows it') }) },
  errors: missing,
})
export const listTerminalShares = route({
  ...reading,
  id: 'listTerminalShares',
  path: '/v1/sandboxes/:sandbox/terminals/:terminal/shares',
  summary: 'Links to a terminal that have not expired',
  params: terminalParams,
  reply: { 200: z.object({ items: z.array(TerminalShare) }) },
  errors: missing,
})
export const revokeTerminalShare = route({
  ...writing,
  id: 'revokeTerminalShare',
  method: 'DELETE',
  path: '/v1/sandboxes/:sandbox/terminals/:terminal/shares/:share',
  summary: 'Revoke a link; who uses it is cut off within a second',
  params: terminalParams.extend({ share: ShareId }),
  reply: { 204: 'empty' },
  errors: [...missing, 'share_not_found'],
})
export const connectShare = route({
  id: 'connectShare',
  method: 'GET',
  path: '/v1/shares/:token/socket',
  scope: 'public',
  rate: 'none',
  tag: 'terminals',
  summary: 'Connect to a shared terminal by WebSocket',
  description: `${socketText} A page (\`Origin\`) whose token is none is let in, and told so by the close code 4404.`,
  params: z.object({ token: z.string().max(200) }),
  query: z.strictObject(socketQuery),
  reply: { 101: 'socket' },
  errors: ['share_not_found', 'terminal_not_found', 'node_unreachable', 'upgrade_required'],
})
export const getTerminalRecording = route({
  ...reading,
  id: 'getTerminalRecording',
  path: '/v1/sandboxes/:sandbox/terminals/:terminal/recording',
  summary: 'The recording as asciicast v2',
  params: terminalParams,
  query: z.strictObject({ follow: Flag.default(false) }),
  reply: { 200: 'bytes' },
  errors: [...missing, 'output_gone'],
})
