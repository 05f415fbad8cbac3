import type { LogEntry } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { addEntries, MAX_LINES, marked, noLines, shownText } from './log-lines.js'

let offset = 0
const entry = (text: string, stream: LogEntry['stream'] = 'stdout'): LogEntry => ({
  stream,
  at: '2026-01-01T00:00:00Z',
  offset: ++offset,
  text,
})
const texts = (entries: readonly LogEntry[]) => addEntries(noLines, entries).lines.map(({ text }) => text)

test('entries become lines, and parts of a line one line', () => {
  expect(texts([entry('a\nb\n'), entry('c'), entry('d\n'), entry('\n'), entry('e')])).toEqual(['a', 'b', 'cd', '', 'e'])
})

test('a line that one stream left open is not finished by the other', () => {
  expect(texts([entry('out '), entry('err\n', 'stderr'), entry('put\n')])).toEqual(['out put', 'err'])
})

test('ids stay with their lines, and the last offset is where to go on', () => {
  const first = addEntries(noLines, [entry('a\nb')])
  const next = addEntries(first, [entry('c\nd\n')])
  expect(next.lines.map(({ id }) => id)).toEqual([0, 1, 2])
  expect(next.since).toBe(offset)
  expect(addEntries(next, [])).toBe(next)
})

test('lines are bounded in number and in length', () => {
  let lines = noLines
  for (let i = 0; i < 6; i++) lines = addEntries(lines, [entry('x\n'.repeat(1000))])
  expect(lines.lines).toHaveLength(MAX_LINES)
  expect(lines.dropped).toBe(1000)
  const long = addEntries(noLines, [entry('y'.repeat(20_000)), entry('z'.repeat(20_000))])
  expect(long.lines[0]?.text).toHaveLength(10_000)
})

test('the same text gives the same lines however it was cut', () => {
  fc.assert(
    fc.property(fc.array(fc.string({ unit: fc.constantFrom('a', 'b', '\n') })), (parts) => {
      expect(texts(parts.map((part) => entry(part)))).toEqual(texts([entry(parts.join(''))]))
    }),
  )
})

test('colours are not shown', () => {
  const [line] = addEntries(noLines, [entry('\x1b[32mok\x1b[0m\r\n')]).lines
  expect(line && shownText(line)).toBe('ok')
})

test('what was searched for is marked, in any case', () => {
  expect(marked('Error: no error', 'error')).toEqual([
    { text: 'Error', hit: true },
    { text: ': no ', hit: false },
    { text: 'error', hit: true },
  ])
  expect(marked('text', '')).toEqual([{ text: 'text', hit: false }])
  expect(marked('', 'x')).toEqual([{ text: '', hit: false }])
})

test('marking changes no text', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), fc.string({ unit: 'grapheme' }), (text, search) => {
      expect(
        marked(text, search)
          .map((part) => part.text)
          .join(''),
      ).toBe(text)
    }),
  )
})
