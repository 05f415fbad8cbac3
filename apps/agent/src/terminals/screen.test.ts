import { setTimeout as pause } from 'node:timers/promises'
import type { TerminalSize } from '@berth/contracts'
import { createLogger } from '@berth/telemetry'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { Threads } from './drawing.fixture.js'
import { Emulator } from './emulator.js'
import type { Cut } from './reduce.js'
import { dump, flood, pieces, runs, size } from './screen.fixture.js'
import { type Base, type Event, Screen, type ScreenStore } from './screen.js'

const log = createLogger({ name: 'agent', level: 'silent' })
const KEEP = 65_536
const limits = { drawAbove: 4096, full: 8192, cost: 1024, grain: { piece: 256, cut: 1024, mark: 256 } }

/** What would be on disk, and the output that a spool would hold. */
class Store implements ScreenStore {
  base: Base
  cut: Cut | undefined
  saved = 0
  unreadable = false
  readonly events: { readonly at: number; readonly event: Event }[] = []
  end = 0
  #text: Buffer = Buffer.from('\x1bc')

  constructor(size: TerminalSize) {
    this.base = { offset: 0, size, title: '' }
  }

  save(base: Base, text: Buffer): void {
    this.base = base
    this.#text = text
    this.saved += 1
  }

  saveCut(cut: Cut): void {
    this.cut = cut
  }

  text(): Buffer {
    return this.#text
  }

  add(event: Event): void {
    this.events.push({ at: this.end, event })
    if (event.kind === 'output') this.end += event.bytes.length
  }

  async *since(offset: number): AsyncIterable<Event> {
    if (this.unreadable) throw new Error('no such file')
    for (let i = 0; i < this.events.length; i++) {
      const { at, event } = this.events[i] ?? {}
      if (at === undefined || event === undefined) return
      if (event.kind === 'resize' && at >= offset) yield event
      if (event.kind !== 'output' || at + event.bytes.length <= offset) continue
      // As a spool does, it takes a moment now and then.
      if (i % 3 === 0) await Promise.resolve()
      const skipped = Math.max(0, offset - at)
      yield { kind: 'output', offset: at + skipped, bytes: event.bytes.subarray(skipped) }
    }
  }
}

class Terminal {
  readonly store: Store
  readonly titles: string[] = []
  screen: Screen
  #rooms = 0

  constructor(
    readonly threads: Threads,
    size: TerminalSize,
    readonly keepBytes = KEEP,
    store = new Store(size),
  ) {
    this.store = store
    this.screen = this.#open()
  }

  #open(): Screen {
    const { base, cut } = this.store
    return new Screen({
      drawing: this.threads.drawing,
      store: this.store,
      base,
      cut,
      log,
      onTitle: (title) => this.titles.push(title),
      onRoom: () => {
        this.#rooms += 1
      },
      keepBytes: this.keepBytes,
      limits,
    })
  }

  /** Output that is in the spool when the agent is killed, before the screen has it. */
  unseen(bytes: Buffer): void {
    this.store.add({ kind: 'output', offset: this.store.end, bytes })
  }

  /** As the agent does: output goes to the spool, then to the screen, and waits while that is full. */
  async output(bytes: Buffer): Promise<void> {
    const offset = this.store.end
    this.store.add({ kind: 'output', offset, bytes })
    this.screen.feed(offset, bytes)
    for (const seen = this.#rooms; this.screen.full && seen === this.#rooms; ) await pause(1)
    // What is needed to make it anew must be there.
    expect(this.store.end - this.screen.needs).toBeLessThanOrEqual(this.keepBytes)
  }

  resize(size: TerminalSize): void {
    this.store.add({ kind: 'resize', size })
    this.screen.resize(size)
  }

  /** The agent is killed, and another goes on. */
  restart(): Promise<void> {
    this.screen.close()
    this.screen = this.#open()
    return this.screen.restore()
  }
}

/** The screen that a viewer would see now. */
async function seen(terminal: Terminal): Promise<Emulator> {
  const view = await terminal.screen.view()
  const emulator = new Emulator(view.size)
  emulator.write(view.text)
  for (const { at, event } of terminal.store.events) {
    if (event.kind === 'resize' && at >= view.offset) emulator.resize(event.size)
    if (event.kind === 'output' && at + event.bytes.length > view.offset)
      emulator.write(event.bytes.subarray(Math.max(0, view.offset - at)))
  }
  return emulator
}

let threads: Threads
beforeEach(() => {
  threads = new Threads()
})
afterEach(() => {
  threads.drawing.close()
})

const happening = fc.oneof(
  { weight: 6, arbitrary: fc.record({ do: fc.constant('output' as const), pieces }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('flood' as const), text: flood }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('resize' as const), size }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('view' as const), wait: fc.boolean() }) },
  { weight: 1, arbitrary: fc.constant({ do: 'kill' as const }) },
  { weight: 1, arbitrary: fc.constant({ do: 'restart' as const }) },
)

test('whatever happens to threads and agents, a viewer sees the screen of all output', async () => {
  await fc.assert(
    fc.asyncProperty(size, fc.array(happening, { minLength: 1, maxLength: 15 }), async (size, happenings) => {
      const terminal = new Terminal(threads, size)
      const whole = new Emulator(size)
      const output = async (text: string) => {
        // Whole writes of a program; only between them may another emulator be resized.
        const bytes = Buffer.from(`${text}\x18`)
        whole.write(bytes)
        await terminal.output(bytes)
      }
      for (const happened of happenings) {
        switch (happened.do) {
          case 'output':
            await output(happened.pieces.join(''))
            break
          case 'flood':
            for (let i = 0; i < 4; i++) await output(happened.text.repeat(3))
            break
          case 'resize':
            whole.resize(happened.size)
            terminal.resize(happened.size)
            break
          case 'view': {
            // Unless it is closed before.
            const view = terminal.screen.view().catch(() => undefined)
            if (happened.wait) await view
            break
          }
          case 'kill':
            threads.kill()
            break
          case 'restart':
            await terminal.restart()
        }
      }
      expect(dump(await seen(terminal))).toEqual(dump(whole))
      terminal.screen.close()
    }),
    runs(25),
  )
})

test('what ends the thread again and again is given up, and the terminal goes on', async () => {
  const terminal = new Terminal(threads, { rows: 3, columns: 20 })
  await terminal.output(Buffer.from('before'))
  threads.deadly = 3
  await terminal.screen.view()
  expect(threads.started).toBe(4)
  expect(dump(await seen(terminal)).normal.lines).toEqual(['', '', ''])
  await terminal.output(Buffer.from('after'))
  expect(dump(await seen(terminal)).normal.lines).toEqual(['after', '', ''])
})

test('a screen that did not change is not drawn to be seen', async () => {
  const terminal = new Terminal(threads, { rows: 3, columns: 20 })
  await terminal.output(Buffer.from('\x1b]0;title\x07hello'))
  const first = await terminal.screen.view()
  threads.kill()
  expect(await terminal.screen.view()).toEqual(first)
  expect(threads.started).toBe(1)
  expect(terminal.titles).toEqual(['title'])
  await terminal.restart()
  expect(await terminal.screen.view()).toEqual(first)
  expect(terminal.screen.title).toBe('title')
})

test('of a flood the place to go on from moves along, though nothing is drawn', async () => {
  const terminal = new Terminal(threads, { rows: 3, columns: 20 }, 16 * 65_536)
  await terminal.output(Buffer.from('a prompt\x1b[3G'))
  await terminal.screen.view()
  const drawn = terminal.store.saved
  for (let i = 0; i < 40; i++) await terminal.output(Buffer.from('y\r\n'.repeat(20_000)))
  expect(terminal.store.saved).toBeLessThanOrEqual(drawn + 1)
  expect(terminal.store.end - terminal.screen.needs).toBeLessThan(8 * 65_536)
  await terminal.restart()
  expect(dump(await seen(terminal)).normal.lines.slice(-3)).toEqual(['y', 'y', ''])
})

/** Of this nothing can be cut: each line shows, or is in the scrollback. */
const lines = (count: number) =>
  Buffer.from(Array.from({ length: count }, (_, i) => `\x1b[3${i % 8}m${i}\r\n`).join(''))

test('while a screen is restored, output waits that would push out of the spool what another restart needs', async () => {
  const terminal = new Terminal(threads, { rows: 3, columns: 20 })
  terminal.unseen(lines(4000))
  expect(terminal.store.end).toBeGreaterThan(KEEP / 2)
  const restored = terminal.restart()
  for (let i = 0; i < 60; i++) await terminal.output(lines(100))
  await restored
  for (let i = 0; i < 60; i++) await terminal.output(lines(100))
})

test('a screen that was restored is saved where another restart would have much to read', async () => {
  const terminal = new Terminal(threads, { rows: 3, columns: 20 })
  terminal.unseen(lines(4000))
  await terminal.restart()
  for (let i = 0; i < 1000 && terminal.store.saved === 0; i++) await pause(1)
  expect(terminal.store.end - terminal.screen.needs).toBeLessThan(KEEP / 4)
})

test('where drawing was closed a screen says so once, and stays as it was kept', async () => {
  const terminal = new Terminal(threads, { rows: 3, columns: 20 })
  await terminal.output(Buffer.from('kept'))
  await terminal.screen.view()
  const { saved } = terminal.store
  threads.drawing.close()
  await terminal.output(Buffer.from(' and seen'))
  await expect(terminal.screen.view()).rejects.toThrow('draw a screen')
  await expect(terminal.screen.view()).rejects.toThrow('draw a screen')
  expect(terminal.store.saved).toBe(saved)
  terminal.screen.close()
  threads = new Threads()
  const next = new Terminal(threads, { rows: 3, columns: 20 }, KEEP, terminal.store)
  await next.screen.restore()
  expect(dump(await seen(next)).normal.lines[0]).toBe('kept and seen')
})

test('where the thread cannot start for a moment, nothing is lost', async () => {
  const terminal = new Terminal(threads, { rows: 3, columns: 20 })
  await terminal.output(Buffer.from('before'))
  threads.unstartable = 4
  expect(dump(await seen(terminal)).normal.lines[0]).toBe('before')
  expect(threads.started).toBe(5)
})

test('where the thread cannot start, whoever looks is told, and nothing is lost when it can', async () => {
  const terminal = new Terminal(threads, { rows: 3, columns: 20 })
  await terminal.output(Buffer.from('before'))
  threads.unstartable = Number.POSITIVE_INFINITY
  await expect(terminal.screen.view()).rejects.toThrow('draw a screen')
  await expect(terminal.screen.view()).rejects.toThrow('draw a screen')
  terminal.resize({ rows: 4, columns: 20 })
  await terminal.output(Buffer.from(' and after'))
  threads.unstartable = 0
  expect(dump(await seen(terminal)).normal.lines).toEqual(['before and after', '', '', ''])
})

test('where nothing can be drawn output goes on, and the screen with what comes when it can', async () => {
  const terminal = new Terminal(threads, { rows: 3, columns: 20 })
  threads.unstartable = Number.POSITIVE_INFINITY
  for (let i = 0; i < 100; i++) await terminal.output(lines(200))
  await expect(terminal.screen.view()).rejects.toThrow('draw a screen')
  threads.unstartable = 0
  await terminal.output(Buffer.from('the last'))
  expect(dump(await seen(terminal)).normal.lines).toContain('the last')
  expect(terminal.screen.broken).toBe(false)
})

test('a store that cannot be read ends in a screen that says so, and that nothing waits for', async () => {
  const terminal = new Terminal(threads, { rows: 3, columns: 20 })
  await terminal.output(Buffer.from('before'))
  terminal.store.unreadable = true
  threads.unstartable = 1
  await expect(terminal.screen.view()).rejects.toThrow('keep a screen')
  expect([terminal.screen.broken, terminal.screen.full]).toEqual([true, false])
})
