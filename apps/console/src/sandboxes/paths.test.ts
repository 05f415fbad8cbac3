import type { FileStat } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { crumbsOf, joined, modeText, parentOf, resolved, sorted } from './paths.js'

test('paths are joined and taken apart', () => {
  expect([joined('/', 'a'), joined('/a', 'b c'), joined('/a/', 'b')]).toEqual(['/a', '/a/b c', '/a/b'])
  expect([parentOf('/a/b'), parentOf('/a'), parentOf('/'), parentOf('/a/b/')]).toEqual(['/a', '/', '/', '/a'])
  expect(crumbsOf('/var//log')).toEqual([
    { name: '/', path: '/' },
    { name: 'var', path: '/var' },
    { name: 'log', path: '/var/log' },
  ])
  expect([resolved('/a', 'b'), resolved('/a', '/b'), resolved('/', '../b')]).toEqual(['/a/b', '/b', '/../b'])
})

const entry = (name: string, kind: FileStat['kind'] = 'file'): FileStat => ({
  ...{ path: `/${name}`, name, kind, sizeBytes: 0, mode: '0644', uid: 0, gid: 0, links: 1, target: null },
  modifiedAt: '2026-01-01T00:00:00Z',
  nameBase64: null,
})

test('directories come first, and numbers in their order', () => {
  const entries = [entry('f10'), entry('b', 'directory'), entry('f9'), entry('A'), entry('a', 'directory')]
  expect(sorted(entries).map(({ name }) => name)).toEqual(['a', 'b', 'A', 'f9', 'f10'])
})

test.each<[FileStat['kind'], string, string]>([
  ['file', '0644', '-rw-r--r--'],
  ['directory', '1777', 'drwxrwxrwt'],
  ['file', '4755', '-rwsr-xr-x'],
  ['file', '6644', '-rwSr-Sr--'],
  ['symlink', '0777', 'lrwxrwxrwx'],
  ['char', '0000', 'c---------'],
])('a %s of mode %s shows as %s', (kind, mode, text) => expect(modeText({ kind, mode })).toBe(text))
