import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TerminalSize } from '@berth/contracts'
import { createLogger } from '@berth/telemetry'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { Spool } from '../logs/spool.js'
import { Threads } from './drawing.fixture.js'
import { Emulator } from './emulator.js'
import { KeptScreen } from './kept-screen.js'
import { drawn, dump } from './screen.fixture.js'

const log = createLogger({ name: 'agent', level: 'silent' })
const keepBytes = 1024 * 1024
const size = { rows: 5, columns: 40 }

/** A terminal's spool and screen on disk, for one agent after the other. */
class Agent {
  readonly titles: string[] = []
  readonly spool: Spool
  readonly screen: KeptScreen

  constructor(
    readonly directory: string,
    readonly threads: Threads,
    over = false,
  ) {
    this.spool = Spool.resume({ directory, name: 'output', keepBytes })
    this.screen = new KeptScreen({
      ...{ directory, spool: this.spool, keepBytes, size, over, log },
      drawing: threads.drawing,
      onTitle: (title) => this.titles.push(title),
    })
  }

  async output(text: string): Promise<void> {
    this.spool.append(this.spool.total, Buffer.from(text), () => undefined)
    await this.spool.settled()
    while (this.screen.behind) await new Promise((resolve) => setTimeout(resolve, 1))
  }

  /** As a kill: nothing is saved that was not saved. */
  async leave(): Promise<void> {
    await this.screen.close()
    await this.spool.close()
  }

  async seen(): Promise<ReturnType<typeof dump>> {
    const { rows, columns, text } = await this.screen.view()
    return dump(drawn({ rows, columns }, text))
  }
}

const whole = (...parts: readonly (string | TerminalSize)[]) => {
  const emulator = new Emulator(size)
  for (const part of parts) typeof part === 'string' ? emulator.write(Buffer.from(part)) : emulator.resize(part)
  return dump(emulator)
}

let directory: string
let threads: Threads
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-kept-'))
  threads = new Threads()
})
afterEach(() => {
  threads.drawing.close()
  rmSync(directory, { recursive: true })
})

test('another agent makes the same screen, with what came and changed since it was drawn', async () => {
  const parts = [
    '\x1b]0;vi\x07$ vi\r\n\x1b[?1049h\x1b[2;4r\x1b[31mtext',
    { rows: 7, columns: 30 },
    '\x1b[7;1H-- INSERT --',
  ] as const
  const first = new Agent(directory, threads)
  await first.output(parts[0])
  await first.screen.view()
  first.screen.resize(parts[1])
  await first.output(parts[2])
  await first.leave()

  const second = new Agent(directory, threads)
  expect(await second.seen()).toEqual(whole(...parts))
  await second.output('\x1b[?1049l$ ')
  expect(await second.seen()).toEqual(whole(...parts, '\x1b[?1049l$ '))
  expect(second.screen.title).toBe('vi')
  await second.leave()
})

test('after a flood that the spool has long forgotten, another agent still has its colours and modes', async () => {
  const flood = `${'drwxr-xr-x root '.repeat(2)}\r\n`.repeat(500)
  const first = new Agent(directory, threads)
  await first.output('\x1b[?2004h\x1b[3G\x1b[32m\x1b[?25l')
  for (let i = 0; i < 300; i++) await first.output(flood)
  expect(first.spool.from).toBeGreaterThan(1_000_000)
  await first.leave()
  const second = new Agent(directory, threads)
  const seen = await second.seen()
  expect(seen.modes.bracketedPasteMode).toBe(true)
  expect(seen.cursor.hidden).toBe(true)
  expect(seen).toEqual(whole('\x1b[?2004h\x1b[3G\x1b[32m\x1b[?25l', ...Array.from({ length: 4 }, () => flood)))
  await second.leave()
})

test('the last screen of a terminal that has ended is there without drawing it', async () => {
  const first = new Agent(directory, threads)
  await first.output('bye\r\n')
  await first.spool.end()
  await first.screen.end()
  expect(await first.seen()).toEqual(whole('bye\r\n'))
  await first.leave()
  threads.kill()
  const started = threads.started
  const second = new Agent(directory, threads, true)
  expect(await second.seen()).toEqual(whole('bye\r\n'))
  expect(threads.started).toBe(started)
  await second.leave()
})

test('a second kill while the screen is restored loses nothing that a third agent needs', async () => {
  const flood = Array.from({ length: 1000 }, (_, i) => `\x1b[3${i % 8}mline ${i} of many\r\n`).join('')
  const first = new Agent(directory, threads)
  await first.output('\x1b[?2004h\x1b[?25l')
  await first.screen.view()
  await first.leave()
  // What the first agent stored, and did not come to feed to the screen.
  const stored = Spool.resume({ directory, name: 'output', keepBytes })
  stored.append(stored.total, Buffer.from(flood.repeat(30)), () => undefined)
  await stored.close()

  const second = new Agent(directory, threads)
  for (let i = 0; i < 30; i++) await second.output(flood)
  await second.leave()
  const third = new Agent(directory, threads)
  expect(third.spool.total).toBeGreaterThan(keepBytes)
  expect(await third.seen()).toEqual(whole('\x1b[?2004h\x1b[?25l', ...Array.from({ length: 60 }, () => flood)))
  await third.leave()
})
