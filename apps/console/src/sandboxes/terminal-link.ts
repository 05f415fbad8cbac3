// terminal-link.ts: the life of a connection to a terminal, as a state machine on values. The component next to it owns
// the socket, the timers and the screen, tells what happened, and does what it is told.
//
// What makes a reconnect invisible: every byte of output has an offset. The machine counts what was drawn and asks for
// the rest with `since`; the server sends exactly that, or, where it no longer keeps it, the screen as it is, which
// replaces all that was drawn. So nothing is lost and nothing is drawn twice, however often the network goes.
import type { TerminalMessage, TerminalMode, TerminalSize } from '@berth/contracts'
import { retryDelayMs } from '../retry.js'

export type Phase =
  /** A socket is being opened, or was and has not said `ready` yet. */
  | { readonly name: 'connecting' }
  | { readonly name: 'open'; readonly mode: TerminalMode }
  /** The connection was lost; the next try is due in so long. */
  | { readonly name: 'waiting'; readonly retryMs: number }
  | {
      readonly name: 'ended'
      readonly exitCode: number | null
      readonly signal: string | null
      readonly message: string
    }
  /** It makes no sense to try again: revoked, gone, not allowed. */
  | { readonly name: 'refused'; readonly message: string }

export interface Link {
  readonly phase: Phase
  /** Offset of the next byte of output; undefined until something was drawn: then the screen is asked for. */
  readonly offset: number | undefined
  /** Connections lost in a row, without `ready` between. */
  readonly failures: number
  /** The next binary frame draws the screen. */
  readonly screenFrom: number | undefined
  readonly title: string
  /** Id of the ping that was not answered yet. */
  readonly ping: number | undefined
  readonly pings: number
}

export type Happening =
  | { readonly type: 'message'; readonly message: TerminalMessage }
  /** A binary frame of output with so many bytes. */
  | { readonly type: 'output'; readonly bytes: number }
  /** The socket is closed, or could not be opened. */
  | { readonly type: 'closed'; readonly code: number; readonly reason: string }
  /** The wait is over; or the network came back, or somebody pressed the button. */
  | { readonly type: 'retry' }
  /** Somebody wants to try again what was refused. */
  | { readonly type: 'again' }
  /** Every few seconds while it is open. */
  | { readonly type: 'beat' }
  /** The browser knows that there is no network. */
  | { readonly type: 'offline' }
  /** More output came than can be drawn in time: what is left is dropped, and the screen taken instead. */
  | { readonly type: 'behind' }

export type Effect =
  | { readonly do: 'connect'; readonly since: number | undefined }
  | { readonly do: 'disconnect' }
  | { readonly do: 'retryIn'; readonly ms: number }
  | { readonly do: 'send'; readonly ping: number }
  /** Draw the frame that came; on a cleared terminal where it is a screen. */
  | { readonly do: 'draw'; readonly cleared: boolean }
  | { readonly do: 'size'; readonly size: TerminalSize }
  | { readonly do: 'notice'; readonly text: string }

export interface Step {
  readonly link: Link
  readonly effects: readonly Effect[]
}

/** The beginning: connects, and takes the screen as it is. */
export const firstStep: Step = {
  link: {
    phase: { name: 'connecting' },
    offset: undefined,
    failures: 0,
    screenFrom: undefined,
    title: '',
    ping: undefined,
    pings: 0,
  },
  effects: [{ do: 'connect', since: undefined }],
}

// Close codes of the route (see connectTerminal): 4000 and the status of the error; 1008: the upgrade was refused.
const refusals: Readonly<Record<number, string>> = {
  1008: 'The connection was refused.',
  4400: 'The terminal and this page do not understand each other.',
  4401: 'Access was revoked, or has expired.',
  4404: 'The terminal is gone.',
  4429: 'Too many viewers have this terminal open.',
}
const isRefusal = (code: number): boolean => code in refusals || (code >= 4400 && code < 4500)

/** @param random in [0, 1), for the wait before the next try */
export function step(link: Link, happening: Happening, random: number): Step {
  switch (happening.type) {
    case 'message':
      return onMessage(link, happening.message)
    case 'output':
      return onOutput(link, happening.bytes)
    case 'closed':
      return onClosed(link, happening.code, happening.reason, random)
    case 'retry':
      if (link.phase.name !== 'waiting') return { link, effects: [] }
      return { link: { ...link, phase: { name: 'connecting' } }, effects: [{ do: 'connect', since: link.offset }] }
    case 'again':
      return link.phase.name === 'refused' ? firstStep : { link, effects: [] }
    case 'beat':
      return onBeat(link, random)
    case 'offline':
      return isConnected(link) ? lose(link, random, [{ do: 'disconnect' }]) : { link, effects: [] }
    case 'behind': {
      if (link.phase.name !== 'open') return { link, effects: [] }
      const fresh: Link = { ...link, phase: { name: 'connecting' }, offset: undefined, screenFrom: undefined }
      return {
        link: { ...fresh, ping: undefined },
        effects: [{ do: 'disconnect' }, { do: 'connect', since: undefined }],
      }
    }
  }
}

const isConnected = ({ phase }: Link): boolean => phase.name === 'connecting' || phase.name === 'open'

function onMessage(link: Link, message: TerminalMessage): Step {
  switch (message.type) {
    case 'ready': {
      const phase = { name: 'open', mode: message.mode } as const
      const size = { rows: message.rows, columns: message.columns }
      // Without a screen to come, output goes on where it was asked to.
      return { link: { ...link, phase, failures: 0, ping: undefined }, effects: [{ do: 'size', size }] }
    }
    case 'screen': {
      const size = { rows: message.rows, columns: message.columns }
      return { link: { ...link, screenFrom: message.offset }, effects: [{ do: 'size', size }] }
    }
    case 'resize':
      return { link, effects: [{ do: 'size', size: { rows: message.rows, columns: message.columns } }] }
    case 'title':
      return { link: { ...link, title: message.title }, effects: [] }
    case 'notice':
      return { link, effects: [{ do: 'notice', text: message.text }] }
    case 'pong':
      return { link: message.id === link.ping ? { ...link, ping: undefined } : link, effects: [] }
    case 'exit': {
      const { exitCode, signal, message: text } = message
      return { link: { ...link, phase: { name: 'ended', exitCode, signal, message: text ?? '' } }, effects: [] }
    }
    case 'error':
      return { link: { ...link, phase: { name: 'refused', message: message.detail } }, effects: [{ do: 'disconnect' }] }
  }
}

function onOutput(link: Link, bytes: number): Step {
  const { screenFrom, offset } = link
  if (screenFrom !== undefined)
    return { link: { ...link, screenFrom: undefined, offset: screenFrom }, effects: [{ do: 'draw', cleared: true }] }
  return { link: { ...link, offset: (offset ?? 0) + bytes }, effects: [{ do: 'draw', cleared: false }] }
}

function onClosed(link: Link, code: number, reason: string, random: number): Step {
  if (!isConnected(link)) return { link, effects: [] }
  if (!isRefusal(code)) return lose(link, random, [])
  // The reason begins with the code of the error, which is for programs.
  const text = reason.replace(/^[a-z_]+: /, '')
  const message = text ? `${text.charAt(0).toUpperCase()}${text.slice(1)}.` : (refusals[code] ?? 'It was refused.')
  return { link: { ...link, phase: { name: 'refused', message } }, effects: [] }
}

/** A ping that was not answered until the next beat: the connection is dead, though nothing says so. */
function onBeat(link: Link, random: number): Step {
  if (link.phase.name !== 'open') return { link, effects: [] }
  if (link.ping !== undefined) return lose(link, random, [{ do: 'disconnect' }])
  const ping = link.pings + 1
  return { link: { ...link, ping, pings: ping }, effects: [{ do: 'send', ping }] }
}

function lose(link: Link, random: number, effects: readonly Effect[]): Step {
  const failures = link.failures + 1
  const retryMs = retryDelayMs(failures, random)
  const lost = { ...link, failures, ping: undefined, screenFrom: undefined }
  return {
    link: { ...lost, phase: { name: 'waiting', retryMs } },
    effects: [...effects, { do: 'retryIn', ms: retryMs }],
  }
}
