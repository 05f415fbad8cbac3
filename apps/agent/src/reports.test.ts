import {
  type AttemptFinished,
  AttemptId,
  type AttemptStarted,
  Fault,
  mintId,
  type NodeReport,
  reportSubject,
  SandboxId,
  type SandboxReport,
} from '@berth/contracts'
import { createLogger } from '@berth/telemetry'
import { describe, expect, test } from '@jest/globals'
import { Reports } from './reports.js'

let serial = 0
const newId = () => AttemptId.parse(mintId('attempt', ++serial, Buffer.alloc(10, serial)))
const nameOf = (report: NodeReport) => `${report.kind} ${reportSubject(report)}`

const started = (attemptId: AttemptId): AttemptStarted => ({
  kind: 'started',
  attemptId,
  generation: 1,
  at: '2026-01-01T00:00:00.000Z',
})
const finished = (attemptId: AttemptId): AttemptFinished => ({
  kind: 'finished',
  attemptId,
  generation: 1,
  outcome: 'succeeded',
  exitCode: 0,
  signal: null,
  oomKilled: false,
  reason: { code: 'completed', message: 'exit code 0', by: 'sandbox' },
  usage: null,
  phases: { placeMs: null, imageMs: null, rootfsMs: null, startMs: null, runMs: null, finishMs: null },
  startedAt: null,
  finishedAt: '2026-01-01T00:00:00.000Z',
  stdout: '',
  stderr: '',
})

const newSandbox = () => SandboxId.parse(mintId('sandbox', ++serial, Buffer.alloc(10, serial)))
const sandbox = (sandboxId: SandboxId, sequence: number): SandboxReport => ({
  ...{ kind: 'sandbox', sandboxId, generation: 1, sequence, state: 'running', phase: 'running', reason: null },
  ...{ run: 1, restarts: 0, startedAt: null, endedAt: null, lastActivityAt: null, endsAt: null, ends: [], notes: [] },
  phases: { placeMs: null, imageMs: null, rootfsMs: null, networkMs: null, startMs: null, readyMs: null },
})

class Poison extends Error {}

/** A receiver that answers as told, and remembers every batch it took. */
function receiver(answer: (reports: readonly NodeReport[]) => Promise<void> = async () => undefined) {
  const taken: string[][] = []
  const sandboxes = new Map<SandboxId, SandboxReport>()
  const stored: number[] = []
  const sent = new Map<string, (() => void)[]>()
  const reports = new Reports({
    send: async (batch) => {
      await answer(batch)
      taken.push(batch.map(nameOf))
      for (const report of batch) for (const tell of sent.get(nameOf(report)) ?? []) tell()
    },
    compose: async (id) => finished(id),
    composeSandbox: (id) => sandboxes.get(id),
    onStored: (report) => void stored.push(report.sequence),
    isFinal: (error) => error instanceof Poison,
    log: createLogger({ name: 'test', level: 'silent' }),
  })
  const until = (what: string) =>
    new Promise<void>((resolve) => sent.set(what, [...(sent.get(what) ?? []), () => resolve()]))
  return { reports, taken, until, sandboxes, stored }
}

describe('reports', () => {
  test('an end is stored, and told so', async () => {
    const { reports, taken } = receiver()
    const id = newId()
    expect(await reports.finished(id)).toBe(true)
    expect(taken).toEqual([[`finished ${id}`]])
  })

  test('a short job is told in one report', async () => {
    const { reports, taken } = receiver()
    const id = newId()
    reports.started(started(id))
    await reports.finished(id)
    expect(taken.flat()).toEqual([`finished ${id}`])
  })

  test('a long one’s start is told by itself, and its end after it', async () => {
    const { reports, taken, until } = receiver()
    const id = newId()
    const told = until(`started ${id}`)
    reports.started(started(id))
    await told
    await reports.finished(id)
    expect(taken.flat()).toEqual([`started ${id}`, `finished ${id}`])
  })

  test('an end waits for the start that is on its way', async () => {
    let arrive: () => void = () => undefined
    let release: () => void = () => undefined
    const arrived = new Promise<void>((resolve) => {
      arrive = resolve
    })
    const gate = new Promise<void>((resolve) => {
      release = resolve
    })
    const { reports, taken } = receiver(async ([first]) => {
      if (first?.kind !== 'started') return
      arrive()
      await gate
    })
    const id = newId()
    reports.started(started(id))
    await arrived
    const stored = reports.finished(id)
    const other = newId()
    await reports.finished(other) // others do not wait
    expect(taken.flat()).toEqual([`finished ${other}`])
    release()
    await stored
    expect(taken.flat()).toEqual([`finished ${other}`, `started ${id}`, `finished ${id}`])
  })

  test('what fails is sent again until it is stored, and nothing twice after that', async () => {
    let failures = 3
    const { reports, taken } = receiver(async () => {
      if (failures-- > 0) throw new Fault('POST', { cause: 'away' })
    })
    const ids = [newId(), newId(), newId()]
    expect(await Promise.all(ids.map((id) => reports.finished(id)))).toEqual([true, true, true])
    expect(taken.flat().sort()).toEqual(ids.map((id) => `finished ${id}`).sort())
  })

  test('many travel together', async () => {
    const { reports, taken } = receiver()
    const ids = Array.from({ length: 500 }, newId)
    await Promise.all(ids.map((id) => reports.finished(id)))
    expect(taken.flat()).toHaveLength(500)
    expect(taken.length).toBeLessThan(20)
    expect(Math.max(...taken.map((batch) => batch.length))).toBeLessThanOrEqual(100)
  })

  test('a report that is refused for good holds up no other', async () => {
    const poison = newId()
    const { reports, taken } = receiver(async (batch) => {
      if (batch.some((report) => reportSubject(report) === poison)) throw new Poison()
    })
    const refused = reports.finished(poison)
    const ids = Array.from({ length: 20 }, newId)
    await Promise.all(ids.map((id) => reports.finished(id)))
    expect(taken.flat()).toHaveLength(20)
    await reports.close(0)
    expect(await refused).toBe(false)
  })

  test('closing leaves to the next agent what could not be stored', async () => {
    const { reports } = receiver(async () => {
      throw new Fault('POST', { cause: 'away' })
    })
    const stored = reports.finished(newId())
    await reports.close(50)
    expect(await stored).toBe(false)
    expect(await reports.finished(newId())).toBe(false)
  })
})

describe('reports of a sandbox', () => {
  const untilTrue = async (condition: () => boolean) => {
    while (!condition()) await new Promise((resolve) => setTimeout(resolve, 1))
  }

  test('tell it as it is when they leave, and what was stored is told', async () => {
    const { reports, taken, sandboxes, stored } = receiver()
    const id = newSandbox()
    sandboxes.set(id, sandbox(id, 1))
    reports.sandbox(id, false)
    sandboxes.set(id, sandbox(id, 2))
    reports.sandbox(id, false)
    await untilTrue(() => stored.length > 0)
    expect(stored).toEqual([2])
    expect(taken.flat()).toEqual([`sandbox ${id}`])
  })

  test('a change while one is on its way is told by the next, after it', async () => {
    let release: () => void = () => undefined
    const gate = new Promise<void>((resolve) => {
      release = resolve
    })
    let first = true
    const { reports, sandboxes, stored } = receiver(async () => {
      if (first) await gate
      first = false
    })
    const id = newSandbox()
    sandboxes.set(id, sandbox(id, 1))
    reports.sandbox(id, true)
    await new Promise((resolve) => setImmediate(resolve))
    sandboxes.set(id, sandbox(id, 2))
    reports.sandbox(id, true)
    reports.sandbox(id, true)
    release()
    await untilTrue(() => stored.length === 2)
    expect(stored).toEqual([1, 2])
  })

  test('one that was not stored is told again, as it is then', async () => {
    let failures = 2
    const { reports, sandboxes, stored } = receiver(async () => {
      if (failures-- > 0) throw new Fault('POST', { cause: 'away' })
    })
    const id = newSandbox()
    sandboxes.set(id, sandbox(id, 1))
    reports.sandbox(id, true)
    await untilTrue(() => failures < 2)
    sandboxes.set(id, sandbox(id, 5))
    await untilTrue(() => stored.length > 0)
    expect(stored).toEqual([5])
  })

  test('of one that is gone there is nothing to tell', async () => {
    const { reports, taken } = receiver()
    reports.sandbox(newSandbox(), true)
    await reports.close(1000)
    expect(taken).toEqual([])
  })

  test('one that is refused for good holds up no other, of whatever kind', async () => {
    const poison = newSandbox()
    const { reports, sandboxes, stored } = receiver(async (batch) => {
      if (batch.some((report) => reportSubject(report) === poison)) throw new Poison()
    })
    sandboxes.set(poison, sandbox(poison, 1))
    reports.sandbox(poison, true)
    const id = newSandbox()
    sandboxes.set(id, sandbox(id, 7))
    reports.sandbox(id, true)
    await reports.finished(newId())
    await untilTrue(() => stored.length > 0)
    expect(stored).toEqual([7])
    await reports.close(0)
  })
})
