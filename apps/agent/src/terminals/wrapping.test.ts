import { expect, test } from '@jest/globals'
import { Wrapping } from './wrapping.js'

const after = (...texts: readonly string[]): Wrapping => {
  const wrapping = new Wrapping(10)
  for (const text of texts) wrapping.text(Buffer.from(text), 0, Buffer.byteLength(text))
  return wrapping
}

test.each<[readonly string[], number | undefined, number]>([
  [['abc'], 3, 0],
  [['abcdefghij'], undefined, 0], // beyond the last column
  [['abcdefghij', 'k'], 1, 1],
  [['x'.repeat(25)], 5, 2],
  [['x'.repeat(25), '\r\nab'], 2, 2],
  [['é', 'abc'], undefined, 0],
  [['é', 'abc\rde'], 2, 0],
  [['ab\ncd'], undefined, 0],
  [['x'.repeat(11), 'é', 'x'.repeat(100)], undefined, 1],
  ...['\0', '\x1f', '\x7f', '\x80', '\t'].map((other): [readonly string[], undefined, number] => [
    ['x'.repeat(25), `${'x'.repeat(101)}${other}${'x'.repeat(100)}`],
    undefined,
    2,
  ]),
  [['\r', ' ~'.repeat(100)], undefined, 19],
  [['\r', ' ~'.repeat(99)], 8, 19],
])('after %j it is in column %p, and has begun %i lines', (texts, column, lines) => {
  const wrapping = after(...texts)
  expect([wrapping.column, wrapping.lines]).toEqual([column, lines])
})

test('nothing is known while text does not wrap, or inserts', () => {
  for (const [key, off] of [
    ['?7', false],
    ['insert', true],
  ] as const) {
    const wrapping = after('x'.repeat(25))
    wrapping.set(key, off)
    wrapping.text(Buffer.from(`\r\n${'x'.repeat(25)}`), 0, 27)
    expect([wrapping.column, wrapping.lines]).toEqual([undefined, 2])
    wrapping.reset()
    wrapping.text(Buffer.from('\rabc'), 0, 4)
    expect(wrapping.column).toBe(3)
  }
})
