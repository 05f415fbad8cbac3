import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { Emulator } from './emulator.js'
import { Flood } from './flood.js'

const reduced = (text: string) => new Flood().reduce(Buffer.from(text)).toString()

test.each([
  ['text and line ends', 'hello\r\nworld\t\b', ''],
  ['moves of the cursor and erasures', 'a\x1b[3;4Hb\x1b[2Jc\x1b[K', ''],
  ['modes, the alternate buffer, scroll regions', '\x1b[?1049hx\x1b[2;5ry\x1b[?25l', '\x1b[?1049h\x1b[2;5r\x1b[?25l'],
  ['character sets and their shifts', 'a\x1b(0b\x0ec\x0f', '\x1b(0\x0e\x0f'],
  ['saved cursors and resets', 'a\x1b7b\x1b8c\x1bc', '\x1b7\x1b8\x1bc'],
  ['titles', 'a\x1b]2;title\x07b\x1b]0;other\x1b\\c', '\x1b]2;title\x07\x1b]0;other\x1b\\'],
  ['a cancelled sequence', 'a\x1b[3\x18b', ''],
])('of %s is kept what outlasts them', (_, text, kept) => expect(reduced(text)).toBe(kept))

test('of colours the last few are kept', () => {
  const colours = Array.from({ length: 100 }, (_, i) => `\x1b[38;5;${i}m`)
  expect(reduced(colours.join('text'))).toBe(colours.slice(-16).join(''))
})

test('a sequence that began before is drawn to its end, one that goes on later up to here', () => {
  const flood = new Flood()
  flood.follow(Buffer.from('drawn\x1b[?10'))
  expect(flood.reduce(Buffer.from('49h text')).toString()).toBe('49h')
  expect(flood.reduce(Buffer.from('text\x1b[?25')).toString()).toBe('\x1b[?25')
  expect(flood.reduce(Buffer.from('l text')).toString()).toBe('l')
})

const piece = fc.constantFrom(
  'some text ',
  '\r\n',
  '\x1b[?1049h',
  '\x1b[?1049l',
  '\x1b[?25l',
  '\x1b[?25h',
  '\x1b[?7l',
  '\x1b[?7h',
  '\x1b[4h',
  '\x1b[4l',
  '\x1b[?1h',
  '\x1b[?1l',
  '\x1b[?2004h',
  '\x1b[?2004l',
  '\x1b[31;1m',
  '\x1b[0m',
  '\x1b[5;5H',
  '\x1b]2;title\x07',
  '\u{1f600}é',
)

test('after a flood the modes are those of the whole output, however it is cut', () => {
  fc.assert(
    fc.property(
      fc.array(piece, { maxLength: 60 }),
      fc.array(fc.nat(7), { minLength: 1, maxLength: 9 }),
      (pieces, cuts) => {
        const whole = new Emulator({ rows: 10, columns: 40 })
        const less = new Emulator({ rows: 10, columns: 40 })
        const flood = new Flood()
        const bytes = Buffer.from(pieces.join(''))
        whole.write(bytes)
        for (let at = 0, i = 0; at < bytes.length; i++) {
          const part = bytes.subarray(at, at + (cuts[i % cuts.length] ?? 0) + 1)
          less.write(flood.reduce(part))
          at += part.length
        }
        expect(less.core.coreService).toMatchObject({
          isCursorHidden: whole.core.coreService.isCursorHidden,
          modes: { insertMode: whole.core.coreService.modes.insertMode },
        })
        const { decPrivateModes } = whole.core.coreService
        expect(less.core.coreService.decPrivateModes).toEqual(decPrivateModes)
        const onAlternate = ({ core }: Emulator) => core.buffers.active === core.buffers.alt
        expect(onAlternate(less)).toBe(onAlternate(whole))
        whole.dispose()
        less.dispose()
      },
    ),
    { numRuns: 60 },
  )
})
