// Links are followed within a tree, and nowhere else.
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { parseAttributes } from './layer-tree.js'
import { treeOf } from './tree.fixture.js'
import { clamped, emptyTree, follow, readSmall } from './tree.js'

describe('a way through links', () => {
  const tree = treeOf({
    'etc/passwd': 'root',
    'usr/lib/a': 'a',
    lib: { link: 'usr/lib' },
    up: { link: '../../../..' },
    'usr/abs': { link: '/etc' },
    'usr/out': { link: '../../../../etc/passwd' },
    round: { link: 'about' },
    about: { link: './round' },
    self: { link: 'self/x' },
    dangling: { link: 'usr/nothing/../there' },
  })

  test.each([
    ['lib/a', 'usr/lib/a'],
    ['lib', 'usr/lib'],
    ['/lib/./a/', 'usr/lib/a'],
    ['lib/..', 'usr'],
    ['up/etc', 'etc'],
    ['../../etc/passwd', 'etc/passwd'],
    ['usr/abs/passwd', 'etc/passwd'],
    ['usr/out', 'etc/passwd'],
    ['dangling/x', 'usr/there/x'],
    ['etc/passwd/x', 'etc/passwd/x'],
    ['', ''],
  ])('%s → %s', async (path, found) => expect(await follow(tree, path)).toBe(found))

  test('stops at the last link where it is told to', async () => {
    expect(await follow(tree, 'usr/../lib', { last: false })).toBe('lib')
    expect(await follow(tree, 'lib/a', { last: false })).toBe('usr/lib/a')
  })

  test('stays in the directory that it is given', async () => {
    expect(await follow(tree, 'out', { root: 'usr' })).toBe('usr/etc/passwd')
    expect(await follow(tree, 'abs', { root: 'usr' })).toBe('usr/etc')
    expect(await follow(tree, '../..', { root: 'usr' })).toBe('usr')
  })

  test.each(['round', 'self'])('that leads round and round is refused: %s', (path) =>
    expect(follow(tree, path)).rejects.toMatchObject({ code: 'build_failed' }),
  )

  test('never leaves the root, whatever links say', async () => {
    const part = fc.constantFrom('a', 'b', 'c', '..', '.', '')
    const path = fc.array(part, { minLength: 1, maxLength: 6 }).map((parts) => parts.join('/'))
    await fc.assert(
      fc.asyncProperty(fc.dictionary(fc.constantFrom('a', 'b', 'a/c', 'b/c'), path), path, async (links, way) => {
        const any = treeOf(
          Object.fromEntries(Object.entries(links).map(([name, link]) => [name, { link: link || '.' }])),
        )
        const found = await follow(any, way, { root: 'a' }).catch(() => 'a')
        expect(`${found}/`.startsWith('a/')).toBe(true)
        expect(found.split('/')).not.toContain('..')
      }),
    )
  })
})

test('a path is clamped to the root', () => {
  expect(clamped('/../a/./b/../../..//c/')).toBe('c')
  expect(clamped('../..')).toBe('')
})

test('a small file is read by whatever leads to it, and no large one', async () => {
  const tree = treeOf({ 'a/b': 'text', c: { link: '/a/b' } })
  expect((await readSmall(tree, 'c', 4))?.toString()).toBe('text')
  await expect(readSmall(tree, 'c', 3)).rejects.toMatchObject({ code: 'build_failed' })
  expect(await readSmall(tree, 'a', 100)).toBeUndefined()
  expect(await readSmall(emptyTree, 'c', 100)).toBeUndefined()
})

test('attributes are read as getfattr writes them', () => {
  const dump = [
    '# file: .\nuser.root=0sYQ==\n',
    '# file: etc/a\\040\\134\\303\\244\ntrusted.overlay.opaque=0seQ==\nuser.x\\075y=0sAAE=\n',
    '# file: bin/ping\nsecurity.capability=0sAQAAAgAgAAA=\n',
    '',
  ].join('\n')
  const { opaque, kept } = parseAttributes(dump)
  expect([...opaque]).toEqual(['etc/a \\ä'])
  expect(Object.fromEntries(kept)).toEqual({
    '': { 'user.root': 'YQ==' },
    'etc/a \\ä': { 'user.x=y': 'AAE=' },
    'bin/ping': { 'security.capability': 'AQAAAgAgAAA=' },
  })
})
