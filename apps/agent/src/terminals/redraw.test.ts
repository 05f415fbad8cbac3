import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import type { Emulator } from './emulator.js'
import { redraw } from './redraw.js'
import { drawn, dump, pieces, runs, size } from './screen.fixture.js'

const everything = { scrollback: 1000, limit: Number.POSITIVE_INFINITY }

test('drawing a screen again gives the same screen', () => {
  fc.assert(
    fc.property(size, pieces, (size, pieces) => {
      const original = drawn(size, ...pieces, '\x18')
      fc.pre(!charsetOfNoLevel(original))
      const again = drawn(size, redraw(original, everything))
      expect(dump(again)).toEqual(dump(original))
    }),
    runs(200),
  )
})

test('what does not fit is left out: the oldest scrollback first, then colours', () => {
  const size = { rows: 5, columns: 20 }
  const original = drawn(size, ...Array.from({ length: 300 }, (_, i) => `\x1b[3${i % 8}mline ${i}\r\n`))
  const whole = redraw(original, everything)
  const part = redraw(original, { ...everything, limit: whole.length / 2 })
  expect(part.length).toBeLessThan(whole.length / 2)
  const lines = dump(drawn(size, part)).normal.lines
  expect(lines.slice(-60)).toEqual(dump(original).normal.lines.slice(-60))
  const plain = dump(drawn(size, redraw(original, { ...everything, limit: 10 }))).normal.lines
  expect(plain).toEqual(['line 296', 'line 297', 'line 298', 'line 299', ''])
})

/** A set that was in use when the cursor of the other buffer was saved, and that no level holds: it does not come back. */
function charsetOfNoLevel({ core }: Emulator): boolean {
  const { charset, glevel, _charsets } = core._charsetService
  return charset !== _charsets[glevel] && charset !== core.buffers.active.savedCharset
}
