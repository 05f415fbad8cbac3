// biome-ignore-all lint/suspicious/noTemplateCurlyInString: they are variables of Dockerfiles
import { Failure } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { Budget, processWord } from './shell-words.js'

const variables = new Map(
  Object.entries({
    a: 'A',
    empty: '',
    path: '/usr/lib/x.tar.gz',
    two: 'x  y',
    star: 'a*b?c',
    ü: 'U',
    '1': 'one',
    nl: 'p\nq',
  }),
)
const options = () => ({ escape: '\\' as const, budget: new Budget() })
const word = (text: string) => processWord(text, variables, options()).word

test.each([
  // quotes and escapes
  ['', ''],
  ['a b', 'a b'],
  ["'a $a'", 'a $a'],
  ['"a $a"', 'a A'],
  ['a"b"\'c\'', 'abc'],
  ['\\$a', '$a'],
  ['\\a', 'a'],
  ['\\\\', '\\'],
  ['"\\a\\"\\$a\\\\"', '\\a"$a\\'],
  ['a\\', 'a'],
  ["'\\'", '\\'],
  // variables
  ['$a', 'A'],
  ['${a}b', 'Ab'],
  ['$ab', ''],
  ['$a$a', 'AA'],
  ['$a.b', 'A.b'],
  ['$', '$'],
  ['$.', '$.'],
  ['a$', 'a$'],
  ['$1x', 'onex'],
  ['${1}', 'one'],
  ['$@x', 'x'],
  ['$ü', 'U'],
  ['$two', 'x  y'],
  // with words
  ['${a:-b}', 'A'],
  ['${empty:-b}', 'b'],
  ['${empty-b}', ''],
  ['${no-b}', 'b'],
  ['${no:-$a}', 'A'],
  ['${no:-${no2:-${a}}}', 'A'],
  ['${no:-"b }"}', 'b }'],
  ["${no:-'$a'}", '$a'],
  ['${no:-a\\}b}', 'a}b'],
  ['${a:+b}', 'b'],
  ['${empty:+b}', ''],
  ['${empty+b}', 'b'],
  ['${no+b}', ''],
  ['${a:?no}', 'A'],
  ['${empty?no}', ''],
  // patterns
  ['${path#*/}', 'usr/lib/x.tar.gz'],
  ['${path##*/}', 'x.tar.gz'],
  ['${path%.*}', '/usr/lib/x.tar'],
  ['${path%%.*}', '/usr/lib/x'],
  ['${path#x}', '/usr/lib/x.tar.gz'],
  ['${path%/x.tar.g?}', '/usr/lib'],
  ['${path#$no/usr}', '/lib/x.tar.gz'],
  ['${star#a\\*}', 'b?c'],
  ['${star%\\?c}', 'a*b'],
  ['${path/lib/LIB}', '/usr/LIB/x.tar.gz'],
  ['${path//\\//_}', '_usr_lib_x.tar.gz'],
  ['${path/r*x/R}', '/usR.tar.gz'],
  ['${path//?/a}', 'a'.repeat(17)],
  ['${path/no/a}', '/usr/lib/x.tar.gz'],
  ['${path//./}', '/usr/lib/xtargz'],
  ['${path/x/$a}', '/usr/lib/A.tar.gz'],
  ['${nl#*}', 'p\nq'],
  ['${nl##*}', '\nq'],
  ['${no#*}', ''],
  ['${empty//*/x}', 'x'],
  ['${path//\\//\\/}', '\\/usr\\/lib\\/x.tar.gz'],
  ['${path/$empty/x}', 'x/usr/lib/x.tar.gz'],
  ['${star%%\\**}', 'a'],
  ['${star#a\\*b\\?}', 'c'],
  ['\\${}a', '${}a'],
  ['${a}}', 'A}'],
  ['${no:-b {c}', 'b {c'],
  ['$@@@', '@@'],
  ['${@:+b}', ''],
])('%j → %j', (text, expected) => expect(word(text)).toBe(expected))

test.each([
  ["'a", /single quote does not end/],
  ['"a', /double quote does not end/],
  ['${a', /there is no }/],
  ['${', /there is no }/],
  ['${}', /bad substitution/],
  ['${:a}', /bad substitution/],
  ['${a:b}', /unsupported modifier \(:b\)/],
  ['${a:#b}', /unsupported modifier \(:#\)/],
  ['${a=b}', /unsupported modifier \(=\)/],
  ['${.}', /unsupported modifier/],
  ['${@@}', /unsupported modifier/],
  ['${a^}', /unsupported modifier \(\^\)/],
  ['${a/b}', /there is no \//],
  ['${a:-b', /there is no }/],
  ['${no:?}', /no: is not allowed to be unset/],
  ['${empty:?}', /empty: is not allowed to be empty/],
  ['${no?give it}', /no: give it/],
  ['${a#\\x}', /invalid escape/],
])('refuses %j', (text, message) => {
  expect(() => word(text)).toThrow(message)
  expect(() => word(text)).toThrow(Failure)
})

test('words split at blanks that were not quoted, those of values included', () => {
  const words = (text: string) => processWord(text, variables, options()).words
  expect(words('a  b\tc')).toEqual(['a', 'b', 'c'])
  expect(words('$two')).toEqual(['x', 'y'])
  expect(words('"$two" \'p q\'')).toEqual(['x  y', 'p q'])
  expect(words('a\\ b')).toEqual(['a b'])
  expect(words('$empty')).toEqual([])
})

test('another escape', () => {
  const windows = { ...options(), escape: '`' as const }
  expect(processWord('c:\\a`$a\\$a', variables, windows).word).toBe('c:\\a$a\\A')
})

test('a heredoc has quotes like any other text, and escapes', () => {
  const heredoc = { ...options(), noQuotes: true }
  expect(processWord("\"$a\" '$a' \\$a \\\\ it's", variables, heredoc).word).toBe("\"A\" 'A' $a \\ it's")
})

test('what is not set can stay as it was written', () => {
  const keeping = { ...options(), keepUnset: true }
  const text = '$no ${no} ${no:-b} ${no#x*} ${no/a/b} ${no:?x} $a'
  expect(processWord(text, variables, keeping).word).toBe(text.replace('$a', 'A'))
})

test('tells which variables are not set, but those for which something else was said', () => {
  const { unset } = processWord('$a $no ${x#y} ${no2:-$also} ${no3+b} $empty', variables, options())
  expect([...unset]).toEqual(['no', 'x', 'also'])
})

describe('whatever is written', () => {
  const part = fc.constantFrom(
    '$',
    '{',
    '}',
    'a',
    'no',
    'path',
    ':',
    '-',
    '+',
    '?',
    '#',
    '%',
    '/',
    '\\',
    '"',
    "'",
    '*',
    ' ',
    '\n',
    'ü',
    '1',
  )
  const text = fc.array(part, { maxLength: 30 }).map((parts) => parts.join(''))

  test('there is a word or a failure', () => {
    fc.assert(
      fc.property(text, fc.boolean(), fc.boolean(), fc.boolean(), (written, raw, noQuotes, keepUnset) => {
        try {
          processWord(written, variables, { ...options(), raw, noQuotes, keepUnset })
        } catch (error) {
          expect(error).toBeInstanceOf(Failure)
        }
      }),
      { numRuns: 1000 },
    )
  })

  test('text in single quotes is that text', () => {
    fc.assert(
      fc.property(text, (written) => {
        const plain = written.replaceAll("'", '')
        expect(word(`'${plain}'`)).toBe(plain)
      }),
    )
  })

  test('what is cut off or replaced is what the pattern says', () => {
    const value = fc.stringMatching(/^[ab]{0,12}$/)
    const pattern = fc.stringMatching(/^[ab*?]{0,6}$/)
    fc.assert(
      fc.property(value, pattern, (of, glob) => {
        const form = glob.replaceAll('*', '.*').replaceAll('?', '.')
        const cut = (operator: string) => processWord(`\${v${operator}${glob}}`, new Map([['v', of]]), options()).word
        const cuts = Array.from({ length: of.length + 1 }, (_, i) => i)
        const heads = cuts.filter((i) => new RegExp(`^(${form})$`).test(of.slice(0, i)))
        const tails = cuts.filter((i) => new RegExp(`^(${form})$`).test(of.slice(i)))
        expect(cut('#')).toBe(of.slice(heads[0] ?? 0))
        expect(cut('##')).toBe(of.slice(heads.at(-1) ?? 0))
        expect(cut('%')).toBe(of.slice(0, tails.at(-1) ?? of.length))
        expect(cut('%%')).toBe(of.slice(0, tails[0] ?? of.length))
        if (/[^*]/.test(glob)) {
          const replaced = processWord(`\${v//${glob}/X}`, new Map([['v', of]]), options()).word
          expect(replaced).toBe(of.replace(new RegExp(form, 'g'), 'X'))
        }
      }),
    )
  })
})
