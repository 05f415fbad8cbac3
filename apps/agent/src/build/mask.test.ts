import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { MASK, Mask, patternsOf } from './mask.js'

const secrets = (...texts: string[]) => patternsOf(texts.map((text) => Buffer.from(text)))

/** What comes out of pieces, all in one. */
function masked(patterns: ReturnType<typeof patternsOf>, ...pieces: readonly string[]): string {
  const mask = new Mask(patterns)
  return Buffer.concat([...pieces.map((piece) => mask.push(Buffer.from(piece))), mask.end()]).toString()
}

test('a secret is covered wherever the output is cut', () => {
  const text = 'token=hunter2-hunter3; again hunter2-hunter3hunter2-hunter3.'
  for (let at = 0; at <= text.length; at++)
    expect(masked(secrets('hunter2-hunter3\n'), text.slice(0, at), text.slice(at))).toBe('token=***; again ***.')
})

test('what only begins like a secret is told, at once where it cannot be one any more, else in the end', () => {
  const mask = new Mask(secrets('abcabd'))
  expect(mask.push(Buffer.from('xxabc')).toString()).toBe('xx')
  expect(mask.push(Buffer.from('abcabd')).toString()).toBe(`abc${MASK}`)
  expect(mask.push(Buffer.from('abca')).toString()).toBe('')
  expect(mask.end().toString()).toBe('abca')
})

test('secrets that overlap, or are in each other, are covered whole', () => {
  const patterns = secrets('one-two', 'two-three', 'wo-t')
  expect(masked(patterns, 'a one-two-three b')).toBe('a *** b')
  expect(masked(patterns, 'a one-tw', 'o-thre', 'e b')).toBe('a *** b')
})

test('a long line of a secret is one; what is too short is none', () => {
  const key = '-----BEGIN KEY-----\nQUJDREVGR0hJSktM\nab\n-----END KEY-----\n'
  expect(masked(secrets(key, 'x', ''), 'x QUJDREVGR0hJSktM ab')).toBe('x *** ab')
})

test('no cut lets anything of a secret through, and nothing else is lost', () => {
  const letter = fc.constantFrom('a', 'b')
  const word = fc.array(letter, { minLength: 4, maxLength: 7 }).map((all) => all.join(''))
  fc.assert(
    fc.property(
      fc.array(word, { minLength: 1, maxLength: 3 }),
      fc.array(fc.string({ unit: letter })),
      (words, pieces) => {
        const whole = pieces.join('')
        const covered = new Set<number>()
        for (const one of words)
          for (let at = whole.indexOf(one); at >= 0; at = whole.indexOf(one, at + 1))
            for (let i = at; i < at + one.length; i++) covered.add(i)
        const expected = [...whole]
          .map((letter, i) => (covered.has(i) ? (covered.has(i - 1) ? '' : MASK) : letter))
          .join('')
        expect(masked(secrets(...words), ...pieces)).toBe(expected)
      },
    ),
  )
})
