// lifecycle.ts: which state follows which. These tables are the only place that says no to a change of state; SQL
// elsewhere repeats a state only as the guard of an optimistic update that one of these tables has allowed.
import {
  type AttemptState,
  type BuildState,
  buildStates,
  Failure,
  type JobState,
  type SandboxState,
  sandboxStates,
} from '@berth/contracts'

export interface Lifecycle<State extends string, Event extends string> {
  /** The state after `event`. @throws Failure `wrong_state`, naming the states in which the event is allowed */
  next(state: State, event: Event, subject?: string): State
  allowed(state: State, event: Event): boolean
  /** States in which `event` is allowed, in the table's order. */
  allowedFrom(event: Event): readonly State[]
  isFinal(state: State): boolean
  readonly states: readonly State[]
}

type Transitions<State extends string, Event extends string> = Readonly<
  Record<State, Readonly<Partial<Record<Event, State>>>>
>

/** Builds a lifecycle from its table: state → event → next state. A state without events is final. */
export function lifecycle<State extends string, Event extends string>(
  states: readonly State[],
  table: Transitions<State, Event>,
): Lifecycle<State, Event> {
  const after = (state: State, event: Event): State | undefined => table[state][event]
  const allowedFrom = (event: Event) => states.filter((state) => after(state, event) !== undefined)
  return {
    states,
    allowedFrom,
    allowed: (state, event) => after(state, event) !== undefined,
    isFinal: (state) => Object.keys(table[state]).length === 0,
    next(state, event, subject = 'this') {
      const to = after(state, event)
      if (to !== undefined) return to
      const needed = allowedFrom(event)
      throw new Failure('wrong_state', `${subject} is ${state}; ${event} needs ${needed.join(' or ')}`, {
        state,
        event,
        allowedFrom: needed,
      })
    },
  }
}

/** `retry`: the attempt ended in a way that the policy answers with another one. */
export type JobEvent = 'place' | 'start' | 'succeed' | 'fail' | 'time_out' | 'cancel' | 'retry'

export const jobLifecycle = lifecycle<JobState, JobEvent>(
  ['queued', 'placed', 'running', 'succeeded', 'failed', 'timed_out', 'canceled'],
  {
    queued: { place: 'placed', time_out: 'timed_out', cancel: 'canceled' },
    placed: {
      start: 'running',
      succeed: 'succeeded',
      fail: 'failed',
      time_out: 'timed_out',
      cancel: 'canceled',
      retry: 'queued',
    },
    running: { succeed: 'succeeded', fail: 'failed', time_out: 'timed_out', cancel: 'canceled', retry: 'queued' },
    succeeded: {},
    failed: {},
    timed_out: {},
    canceled: {},
  },
)

export type AttemptEvent = 'start' | 'succeed' | 'fail' | 'time_out' | 'cancel' | 'lose'

export const attemptLifecycle = lifecycle<AttemptState, AttemptEvent>(
  ['placed', 'running', 'succeeded', 'failed', 'timed_out', 'canceled', 'lost'],
  {
    placed: {
      start: 'running',
      succeed: 'succeeded',
      fail: 'failed',
      time_out: 'timed_out',
      cancel: 'canceled',
      lose: 'lost',
    },
    running: { succeed: 'succeeded', fail: 'failed', time_out: 'timed_out', cancel: 'canceled', lose: 'lost' },
    succeeded: {},
    failed: {},
    timed_out: {},
    canceled: {},
    lost: {},
  },
)

export type BuildEvent = 'succeed' | 'fail' | 'cancel'

export const buildLifecycle = lifecycle<BuildState, BuildEvent>(buildStates, {
  running: { succeed: 'succeeded', fail: 'failed', cancel: 'canceled' },
  succeeded: {},
  failed: {},
  canceled: {},
})

/**
 * What may be asked of a sandbox. `signal` is any signal but SIGKILL; `resize` a change of limits, `edit` of anything
 * else; `force_delete` a deletion that does not mind that it runs.
 */
export const sandboxRequests = [
  ...(['start', 'stop', 'kill', 'signal', 'restart', 'pause', 'resume', 'resize', 'edit'] as const),
  ...(['delete', 'force_delete'] as const),
] as const
export type SandboxRequestKind = (typeof sandboxRequests)[number]

/**
 * Which requests a sandbox takes in which state, and the state it has right after. A node then makes true what is
 * wanted and reports; what it may report is not decided here, because what has happened cannot be refused.
 */
export const sandboxLifecycle = lifecycle<SandboxState, SandboxRequestKind>(sandboxStates, {
  creating: {
    start: 'creating',
    stop: 'creating',
    kill: 'creating',
    restart: 'creating',
    resize: 'creating',
    edit: 'creating',
    force_delete: 'deleted',
  },
  running: {
    start: 'running',
    stop: 'running',
    kill: 'running',
    signal: 'running',
    restart: 'creating',
    pause: 'running',
    resume: 'running',
    resize: 'running',
    edit: 'running',
    force_delete: 'deleted',
  },
  paused: {
    stop: 'paused',
    kill: 'paused',
    signal: 'paused',
    restart: 'creating',
    pause: 'paused',
    resume: 'paused',
    resize: 'paused',
    edit: 'paused',
    force_delete: 'deleted',
  },
  stopped: {
    start: 'creating',
    stop: 'stopped',
    restart: 'creating',
    resize: 'stopped',
    edit: 'stopped',
    delete: 'deleted',
    force_delete: 'deleted',
  },
  failed: {
    start: 'creating',
    stop: 'failed',
    restart: 'creating',
    resize: 'failed',
    edit: 'failed',
    delete: 'deleted',
    force_delete: 'deleted',
  },
  lost: { stop: 'lost', edit: 'lost', delete: 'deleted', force_delete: 'deleted' },
  deleted: { delete: 'deleted', force_delete: 'deleted' },
})
