// Archives by value: whatever they say, and whatever links are there, nothing comes out of the directory they are unpacked into.
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { type Entry, Target } from './target.js'
import { treeOf } from './tree.fixture.js'
import { parentOf } from './tree.js'
import { type ArchiveHeader, unpacked } from './unpack.plan.js'

const NOW = 5_000_000
type Written = Parameters<typeof treeOf>[0]

const headerOf = (given: Partial<ArchiveHeader> & { readonly name: string }): ArchiveHeader => ({
  ...{ type: 'file', mode: 0o644, uid: 1, gid: 2, size: 0, mtime: new Date(1000), linkname: null, pax: null },
  ...given,
})

// biome-ignore lint/suspicious/noEmptyBlockStatements: of no bytes
async function* empty(): AsyncGenerator<Uint8Array> {}

async function unpack(onto: Written, directory: string, headers: readonly ArchiveHeader[]): Promise<readonly Entry[]> {
  const target = new Target(treeOf(onto), true, NOW)
  const entries: Entry[] = []
  for (const header of headers)
    for await (const entry of unpacked(target, directory, header, undefined, empty)) entries.push(entry)
  return entries
}

/** What a layer of these entries holds; each must be in a directory that the layer has by then. */
function layerOf(entries: readonly Entry[]): ReadonlyMap<string, Entry['type']> {
  const layer = new Map<string, Entry['type']>([['', 'directory']])
  for (const entry of entries) {
    const { path, type } = entry
    expect(layer.get(parentOf(path))).toBe('directory')
    if (entry.type === 'link') expect(layer.get(entry.target)).toMatch(/file|link|symlink/)
    if (type !== 'directory' || layer.get(path) !== 'directory')
      for (const known of layer.keys()) if (known.startsWith(`${path}/`)) layer.delete(known)
    layer.set(path, type)
  }
  return layer
}

describe('an archive', () => {
  const part = fc.constantFrom('a', 'b', 'c', '..', '.', '')
  const way = fc.array(part, { minLength: 1, maxLength: 4 }).map((parts) => parts.join('/'))
  const name = fc.constantFrom('a', 'b', 'a/b', 'a/c', 'b/a', 'c/a/b', 'a/b/c', 'b/b')
  const header = fc.oneof(
    name.map((one) => headerOf({ name: one })),
    name.map((one) => headerOf({ name: one, type: 'directory' })),
    fc.tuple(name, way).map(([one, linkname]) => headerOf({ name: one, type: 'symlink', linkname: linkname || '/' })),
    fc.tuple(name, name).map(([one, linkname]) => headerOf({ name: one, type: 'link', linkname })),
  )
  const there = fc.dictionary(
    fc.constantFrom('d/a', 'd/b', 'd/a/b', 'd/c', 'a', 'b', 'a/b'),
    fc.oneof(
      fc.constantFrom('old', { directory: true as const }),
      way.map((link) => ({ link: link || '/' })),
    ),
  )

  test('stays in its directory, and each entry has the directory that it is in', async () => {
    await fc.assert(
      fc.asyncProperty(there, fc.array(header, { maxLength: 10 }), async (onto, headers) => {
        const entries: Entry[] = []
        const target = new Target(treeOf({ ...onto, d: { directory: true } }), true, NOW)
        try {
          for (const one of headers)
            for await (const entry of unpacked(target, 'd', one, undefined, empty)) entries.push(entry)
        } catch (error) {
          expect(error).toMatchObject({ code: 'build_failed' })
        }
        layerOf(entries)
        for (const { path, type } of entries) {
          expect(path === 'd' || path.startsWith('d/')).toBe(true)
          expect(path.split('/')).not.toContain('..')
          if (path === 'd') expect(type).toBe('directory')
        }
      }),
      { numRuns: 1000 },
    )
  })

  test('has its own owners, modes and times, and directories on its way that are root’s', async () => {
    const pax = {
      uid: '4000000000',
      'SCHILY.xattr.user.a': 'b',
      'SCHILY.xattr.trusted.a': 'b',
      'SCHILY.xattr.user.c': '\uFFFD',
    }
    expect(await unpack({}, '', [headerOf({ name: './x/y', mode: 0o104755, pax })])).toMatchObject([
      { type: 'directory', path: 'x', mode: 0o755, uid: 0, gid: 0, mtimeMs: NOW },
      {
        type: 'file',
        path: 'x/y',
        mode: 0o4755,
        uid: 4_000_000_000,
        gid: 2,
        mtimeMs: 1000,
        attributes: { 'user.a': 'Yg==' },
      },
    ])
  })

  test.each<[string, Partial<ArchiveHeader> & { readonly name: string }]>([
    ['a way up', { name: '../x' }],
    ['a zero in a name', { name: 'x\0y' }],
    ['a name that is too long', { name: 'x'.repeat(256) }],
    ['a path that is too long', { name: 'x/'.repeat(2100) }],
    ['an owner beyond all', { name: 'x', uid: 2 ** 32 - 1 }],
    ['an owner that is no number', { name: 'x', gid: Number.NaN }],
    ['a link to nowhere', { name: 'x', type: 'symlink', linkname: '' }],
    ['a hard link to itself', { name: 'x', type: 'link', linkname: 'x' }],
    ['a hard link to what is there already', { name: 'x', type: 'link', linkname: 'old' }],
    ['a device', { name: 'x', type: 'character-device' }],
    ['something unknown', { name: 'x', type: null }],
  ])('with %s is refused', async (_, header) => {
    await expect(unpack({ old: 'x' }, '', [headerOf(header)])).rejects.toMatchObject({ code: 'build_failed' })
  })
})
