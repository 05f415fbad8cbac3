import { setMaxListeners } from 'node:events'
import { Failure, Fault, type NodeId, type TenantId } from '@berth/contracts'
import type { AdmittedBuild, NewBuild, NotYet } from '@berth/persistence'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { Waiters } from '../jobs/waiters.js'
import { Drain } from '../operations/drain.js'
import { ROOM } from '../scheduling/wakes.js'
import { BuildLine } from './line.js'

const HOUR = 3_600_000
const full = new Failure('no_capacity', 'no node has room')
const overQuota = new Failure('quota_exceeded', 'the tenant has as many as it may')
const node = 'nod_1' as NodeId
const forever = new AbortController().signal
setMaxListeners(0, forever)

/** One node, with so much room; a build's name is its tenant (a letter) and how much room it takes (a digit). */
let room: number
/** As long as it is there, what is tried is held up. */
let held: Promise<void> | undefined
/** What is thrown by what is tried. */
let trouble: Error | undefined
/** What is thrown by a look whether one can ever have room. */
let unseen: Error | undefined
let quotas: Record<string, number>
let going: string[]
let tried: string[]
let now: number
let drain: Drain
let waiters: Waiters
let line: BuildLine

const nameOf = ({ names: [name = ''] }: NewBuild) => name
const sizeOf = (name: string) => Number(name[1])
const goingOf = (tenant: string) => going.filter((name) => name[0] === tenant).length

async function admit(asked: NewBuild, kept: ReadonlySet<NodeId> = new Set()): Promise<AdmittedBuild | NotYet> {
  const name = nameOf(asked)
  tried.push(name)
  await held
  if (trouble) throw trouble
  await check(asked)
  if (goingOf(asked.tenantId) >= (quotas[asked.tenantId] ?? 99)) return { refusal: overQuota, keep: null }
  const isKept = kept.has(node)
  if (isKept || sizeOf(name) > room) return { refusal: full, keep: isKept ? null : node }
  room -= sizeOf(name)
  going.push(name)
  return { build: { names: [name] } } as unknown as AdmittedBuild
}
async function check(asked: NewBuild): Promise<void> {
  if (unseen) throw unseen
  if (sizeOf(nameOf(asked)) === 9) throw new Failure('no_capacity', 'no node is that large')
}
async function running(tenants: readonly TenantId[]) {
  if (trouble) throw trouble
  return new Map(tenants.map((tenant) => [tenant, goingOf(tenant)]))
}

beforeEach(() => {
  ;[room, held, trouble, unseen, quotas, going, tried, now] = [0, undefined, undefined, undefined, {}, [], [], 0]
  drain = new Drain()
  waiters = new Waiters(drain)
  line = new BuildLine({ admit, check, running }, waiters, { now: () => new Date(now) })
})

// Nobody waits on for a test that has failed.
afterEach(() => drain.begin())

/** What becomes of a build. */
function begin(name: string, queueMs = HOUR, signal = forever) {
  const asked = { tenantId: name[0] as TenantId, names: [name] } as unknown as NewBuild
  const seen = { became: 'waits' as string, error: undefined as unknown }
  const done = line.admit(asked, { queueMs, signal }).then(
    () => {
      seen.became = 'goes'
    },
    (error: unknown) => {
      seen.became = 'refused'
      seen.error = error
    },
  )
  return { seen, done }
}

/** A round later, of all that wait now. */
async function round(): Promise<void> {
  tried = []
  waiters.wake([ROOM])
  await until('a round', () => tried.length > 0)
  await new Promise(setImmediate)
}

async function until(what: string, condition: () => boolean): Promise<void> {
  for (let i = 0; i < 2000; i++) {
    if (condition()) return
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  throw new Error(`never: ${what}; going ${going}, tried ${tried}`)
}

function end(name: string): void {
  going.splice(going.indexOf(name), 1)
  room += sizeOf(name)
}

test('builds go on in the order of the line once something ends, and nobody asks for those behind the first', async () => {
  room = 1
  await begin('a1').done
  const waiting = ['a1', 'a1', 'b1', 'b1'].map((name) => begin(name))
  await until('all have come', () => tried.includes('b1'))
  await round()
  expect(tried).toEqual(['b1', 'a1'])
  room = 3
  await round()
  expect(going).toEqual(['a1', 'b1', 'a1', 'b1'])
  expect(waiting.map(({ seen }) => seen.became)).toEqual(['goes', 'waits', 'goes', 'goes'])
  end('a1')
  waiters.wake([ROOM])
  await waiting[1]?.done
  expect(going).toEqual(['b1', 'a1', 'b1', 'a1'])
})

test('a large one is passed by small ones, then has the node kept for it, and neither for ever', async () => {
  room = 1
  const large = begin('a3')
  await until('it was tried', () => tried.length > 0)
  await begin('b1').done
  now = 10_000
  end('b1')
  const small = begin('b1')
  await round()
  expect([small.seen.became, large.seen.became]).toEqual(['waits', 'waits'])
  // Not even one that waits for nothing goes past it.
  const hasty = begin('c1', 0)
  await hasty.done
  expect(hasty.seen.error).toBe(full)
  now = 20_000
  waiters.wake([ROOM])
  await small.done
  now = 30_000
  const next = begin('b1')
  await round()
  room = 3
  waiters.wake([ROOM])
  await large.done
  expect(going).toEqual(['b1', 'a3'])
  expect(next.seen.became).toBe('waits')
  end('a3')
  waiters.wake([ROOM])
  await next.done
})

test('a tenant at its quota holds up nobody', async () => {
  quotas = { a: 1 }
  room = 9
  await begin('a1').done
  const mine = begin('a1')
  await until('it was tried', () => tried.length > 1)
  now = 10_000
  await begin('b1').done
  await round()
  expect([mine.seen.became, going]).toEqual(['waits', ['a1', 'b1']])
  end('a1')
  waiters.wake([ROOM])
  await mine.done
})

test('who goes leaves at once, and what is admitted for it meanwhile is its own to end', async () => {
  const leaving = new AbortController()
  const [first, second] = [begin('a1', HOUR, leaving.signal), begin('a1', HOUR)]
  await until('it was tried', () => tried.length > 0)
  leaving.abort(new Error('left'))
  await first.done
  expect(first.seen.error).toEqual(new Error('left'))
  room = 1
  waiters.wake([ROOM])
  await second.done
  const late = new AbortController()
  let go: () => void = () => undefined
  held = new Promise((resolve) => {
    go = resolve
  })
  room = 1
  tried = []
  const third = begin('a1', HOUR, late.signal)
  await until('it is tried', () => tried.length > 0)
  late.abort(new Error('left'))
  go()
  await third.done
  expect(third.seen.became).toBe('goes')
  const fourth = begin('a1', HOUR, late.signal)
  await fourth.done
  expect(fourth.seen.error).toEqual(new Error('left'))
})

test('so many of a tenant wait, more are refused, and others have theirs', async () => {
  const leaving = new AbortController()
  setMaxListeners(0, leaving.signal)
  const waiting = Array.from({ length: 32 }, () => begin('a1', HOUR, leaving.signal))
  const more = begin('a1', HOUR)
  await more.done
  expect(more.seen.error).toMatchObject({ code: 'rate_limited' })
  const other = begin('b1', HOUR, leaving.signal)
  await until('it was tried', () => tried.includes('b1'))
  leaving.abort(new Error('left'))
  for (const { done, seen } of [...waiting, other]) {
    await done
    expect(seen.error).toEqual(new Error('left'))
  }
  room = 1
  await begin('a1', HOUR).done
})

test('one whose time is over is told what kept it, also from the front of its line', async () => {
  const [first, second, hasty] = [begin('a1', 300), begin('a1', 300), begin('b1', 0)]
  for (const { done, seen } of [first, second, hasty]) {
    await done
    expect(seen.error).toBe(full)
  }
  expect(tried.filter((name) => name === 'b1')).toEqual(['b1'])
})

test('one that can never have room is told so at once, behind others too', async () => {
  const first = begin('a1', 300)
  const never = begin('a9')
  await never.done
  expect([never.seen.error, first.seen.became]).toEqual([
    expect.objectContaining({ message: 'no node is that large' }),
    'waits',
  ])
  await first.done
})

test('a database that is away for a moment ends the wait of those only that it never answered', async () => {
  const first = begin('a1')
  await until('it was tried', () => first.seen.became === 'waits' && tried.length > 0)
  await new Promise(setImmediate)
  trouble = new Fault('ask', { cause: 'away' })
  const second = begin('b1')
  await second.done
  expect([first.seen.became, second.seen.error]).toEqual(['waits', trouble])
  trouble = undefined
  room = 1
  waiters.wake([ROOM])
  await first.done
})

test('one that nobody can tell so, for the moment, is tried when its turn comes', async () => {
  const first = begin('a1')
  await until('it was tried', () => tried.length > 0)
  await new Promise(setImmediate)
  unseen = new Fault('look', { cause: 'away' })
  const second = begin('a1')
  await new Promise(setImmediate)
  unseen = undefined
  expect(second.seen.became).toBe('waits')
  room = 2
  waiters.wake([ROOM])
  await Promise.all([first.done, second.done])
  expect([first.seen.became, second.seen.became]).toEqual(['goes', 'goes'])
})

test('a process that shuts down waits no longer', async () => {
  const first = begin('a1')
  await until('it was tried', () => tried.length > 0)
  drain.begin()
  waiters.wake([ROOM])
  await first.done
  expect(first.seen.error).toBe(full)
})
