import { Failure } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { clean, ignorePatterns, parseIgnore } from './dockerignore.js'

/** Those of the paths that are left out. */
const ignored = (text: string, paths: readonly string[]) => paths.filter((path) => parseIgnore(text).ignores(path))

describe('one pattern', () => {
  // As moby's own tests have them: pattern, path, whether it is left out.
  test.each<[string, string, boolean]>([
    ['*', 'file.go', true],
    ['*.go', 'file.go', true],
    ['**', 'dir/file', true],
    ['**/', 'file', true],
    ['**/**', 'dir/file', true],
    ['dir/**', 'dir/file', true],
    ['dir/**', 'dir/a/b', true],
    ['dir/**', 'dir', false],
    ['**/dir', 'dir', true],
    ['**/dir', 'dir/file', true],
    ['**/dir', 'a/b/dir/file', true],
    ['**/dir', 'mydir', false],
    ['**/d2/*', 'd1/d2/file', true],
    ['**/d2/**', 'd1/d2/d3/file', true],
    ['**file', 'dir/file', true],
    ['**file', 'dir/my-file', true],
    ['**/file*', 'dir/dir/file.txt', true],
    ['**/file*.txt*', 'dir/file.txt', true],
    ['**/**/*.txt', 'file.txt', true],
    ['**/**/*.txt2', 'dir/file.txt', false],
    ['a**/*.txt', 'a/dir/dir/file.txt', true],
    ['a/*.txt', 'a/dir/file.txt', false],
    ['a/*.txt**', 'a/file.txt', true],
    ['a[b-d]e', 'ace', true],
    ['a[b-d]e', 'aae', false],
    ['a[^b-d]e', 'aze', true],
    ['[\\]a]', ']', true],
    ['[x\\-]', '-', true],
    ['.*', 'foo', false],
    ['.*', '.foo', true],
    ['abc.def', 'abcZdef', false],
    ['abc?def', 'abcZdef', true],
    ['a?b', 'a/b', false],
    ['a?b', 'a☺b', true],
    ['a???b', 'a☺b', false],
    ['[a-ζ]*', 'α', true],
    ['a\\*b', 'a*b', true],
    ['a\\*b', 'axb', false],
    ['a\\\\', 'a\\', true],
    ['a(b)c/d', 'a(b)c/d', true],
    ['a.|)$(}+{bc', 'a.|)$(}+{bc', true],
    ['dist/*.whl', 'dist/p-2.4.0rc3.dev36+g08-none.whl', true],
    ['a*b*c*d*e*/f', 'axbxcxdxexxx/f', true],
    ['a*b?c*x', 'abxbbxdbxebxczzy', false],
    // Slashes around it and dots in it are nothing.
    ['/foo', 'foo', true],
    ['foo/', 'foo/bar', true],
    ['./foo//bar/', 'foo/bar', true],
    ['a/../b', 'b', true],
    ['../b', 'b', false],
    // Only the root's, unlike .gitignore.
    ['foo', 'a/foo', false],
    ['*.md', 'docs/a.md', false],
    ['/', 'a', false],
    ['.', 'a', false],
    ['*', '.', false],
  ])('%j on %j: %j', (pattern, path, expected) => expect(parseIgnore(pattern).ignores(path)).toBe(expected))
})

describe('a file', () => {
  test.each<[string, string, readonly string[], readonly string[]]>([
    ['the last that matches decides', '*.md\n!README.md', ['README.md', 'a.md'], ['a.md']],
    ['their order counts', '!a.go\n*.go', ['a.go'], ['a.go']],
    [
      'an exception below what is ignored',
      'docs\n!docs/a.md',
      ['docs', 'docs/a.md', 'docs/b.md'],
      ['docs', 'docs/b.md'],
    ],
    ['everything but', '**\n!src\nsrc/x', ['a', 'src', 'src/a', 'src/x', 'src/x/y'], ['a', 'src/x', 'src/x/y']],
    ['comments, blanks and empty lines', '# a\n\n  b  \n#c\n!  b/d \n', ['a', 'b', 'b/d', '#c'], ['b']],
    ['a mark of the byte order', '\uFEFFa', ['a'], ['a']],
    ['lines of Windows', 'a\r\nb\r\n', ['a', 'b', 'c'], ['a', 'b']],
    ['a comment is one at the beginning of its line only', ' #a', ['#a'], ['#a']],
    ['nothing', '', ['a'], []],
  ])('%s', (_, text, paths, expected) => expect(ignored(text, paths)).toEqual(expected))

  test('siblings in any order are told the same', () => {
    const { ignores } = parseIgnore('**/tmp\n!a/tmp/keep')
    const paths = ['a/tmp/x', 'b/tmp/x', 'a/tmp/keep/y', 'a/b', 'b/tmp', 'a/tmp/keep']
    const expected = [true, true, false, false, true, false]
    expect(paths.map(ignores)).toEqual(expected)
    expect(paths.toReversed().map(ignores)).toEqual(expected.toReversed())
  })

  test('says whether it has exceptions', () => {
    expect(parseIgnore('a\n!b').hasExceptions).toBe(true)
    expect(ignorePatterns(['a', ' ', '']).hasExceptions).toBe(false)
  })

  test.each(['[', 'a[', '[]a]', '[-]', '[x-]', '[a-b-c]', '[^', '[z-a]', '\\', '!', '! '])('refuses %j', (pattern) => {
    expect(() => parseIgnore(`ok\n${pattern}`)).toThrow(Failure)
    expect(() => parseIgnore(`ok\n${pattern}`)).toThrow(/line 2/)
  })

  test('patterns that are made to take long do not', () => {
    const { ignores } = parseIgnore(`${'*a'.repeat(60)}\n${'**/a/'.repeat(60)}b\n${'?*'.repeat(60)}c`)
    expect(ignores('a'.repeat(255))).toBe(true)
    expect(ignores(`${'a/'.repeat(120)}c`)).toBe(false)
    expect(ignores('b'.repeat(255))).toBe(false)
    const dear = parseIgnore(`${'?*'.repeat(2000)}\n`.repeat(60))
    expect(() => {
      for (let i = 0; i < 5000; i++) dear.ignores(`${'x'.repeat(200)}${i}`)
    }).toThrow(/too long/)
  })

  test('whatever is written, there is an answer or a failure', () => {
    const part = fc.constantFrom(
      '*',
      '**',
      '/',
      'a',
      'b',
      '?',
      '[',
      ']',
      '^',
      '-',
      '\\',
      '!',
      '.',
      '..',
      '\n',
      '#',
      ' ',
    )
    const text = fc.array(part, { maxLength: 30 }).map((parts) => parts.join(''))
    fc.assert(
      fc.property(text, fc.array(fc.constantFrom('a', 'b', 'a/b', 'b/a/b', '.a', '*')), (written, paths) => {
        try {
          const { ignores } = parseIgnore(written)
          for (const path of paths) ignores(path)
        } catch (error) {
          expect(error).toBeInstanceOf(Failure)
        }
      }),
      { numRuns: 1000 },
    )
  })
})

test.each([
  ['', '.'],
  ['a//b/./c/', 'a/b/c'],
  ['a/../..', '..'],
  ['/../a', '/a'],
  ['/', '/'],
])('clean %j', (path, expected) => expect(clean(path)).toBe(expected))
