import { afterEach, expect, test } from '@jest/globals'
import { Emulator } from './emulator.js'
import { Easel, LiveScreen } from './live-screen.js'

const size = { rows: 10, columns: 40 }
const screens: LiveScreen[] = []
afterEach(() => {
  for (const screen of screens.splice(0)) screen.close()
})

function fed(...texts: readonly string[]): LiveScreen {
  const screen = new LiveScreen(new Easel(), size, 0)
  screens.push(screen)
  let offset = 0
  for (const text of texts) {
    const bytes = Buffer.from(text)
    screen.feed(offset, bytes)
    offset += bytes.length
  }
  return screen
}

/** What a screen shows, drawn anew from its text. */
async function shown(screen: LiveScreen): Promise<readonly string[]> {
  const { text, rows, columns } = await screen.view()
  const emulator = new Emulator({ rows, columns })
  emulator.write(text)
  const { active } = emulator.core.buffers
  const cell = emulator.cell()
  const lines = Array.from({ length: rows }, (_, row) => {
    const line = active.lines.get(active.ybase + row)
    const chars = Array.from({ length: columns }, (_, i) => line?.loadCell(i, cell).getChars() || ' ')
    return chars.join('').trimEnd()
  })
  emulator.dispose()
  return lines
}

test('a screen is what was written, cut anywhere', async () => {
  const screen = fed('hello \x1b[3', '1mred\x1b[0m\r\nsecond', ' line')
  expect((await shown(screen)).slice(0, 2)).toEqual(['hello red', 'second line'])
  expect(await screen.view()).toMatchObject({ offset: 31, rows: 10, columns: 40 })
})

test('after a flood the end is there, and nothing of the flood was waited for', async () => {
  const lines = Array.from({ length: 200_000 }, (_, i) => `line ${i}\r\n`)
  const screen = fed(
    ...Array.from({ length: 20 }, (_, i) => lines.slice(i * 10_000, (i + 1) * 10_000).join('')),
    'prompt$ ',
  )
  const seen = await shown(screen)
  expect(seen.slice(-3)).toEqual(['line 199998', 'line 199999', 'prompt$'])
})

test('a mode that was set in the middle of a flood holds after it', async () => {
  const flood = 'x'.repeat(39).concat('\r\n').repeat(20_000)
  const screen = fed(flood, '\x1b[?1049h\x1b[2J', flood, '\x1b[2J\x1b[Halternate')
  expect((await shown(screen))[0]).toBe('alternate')
  const { text } = await screen.view()
  expect(text.toString('latin1')).toContain('\x1b[?47h')
})

test('titles are found where they are cut, and hold no control characters', () => {
  const screen = fed('\x1b]2;a ti', 'tle\x07text\x1b]0;ot', 'her\x1b', '\\')
  expect(screen.title).toBe('other')
})

test('a size between two pieces of output counts where it was', async () => {
  const screen = fed('before\r\n')
  screen.resize({ rows: 5, columns: 20 })
  screen.feed(8, Buffer.from('after'))
  expect(await screen.view()).toMatchObject({ rows: 5, columns: 20 })
  expect((await shown(screen)).slice(0, 2)).toEqual(['before', 'after'])
})
