// COPY and ADD by value: what comes where, rule by rule. BuildKit does the same, unless a rule says otherwise.
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { type CopyRequest, changedMode, type Owner, ownerOf, planCopy } from './copy.plan.js'
import { Target } from './target.js'
import { treeOf } from './tree.fixture.js'

const NOW = 5_000_000
type Written = Parameters<typeof treeOf>[0]

const plain: CopyRequest = {
  ...{ sources: [], inline: [], destination: '/', chown: null, chmod: null },
  ...{ link: false, extract: false, exclude: [], parents: false },
}

/** Lines as `d 755 0:0 path`; of what is there below, with its own mode and owner, in brackets. */
async function copy(
  from: Written,
  onto: Written,
  op: Partial<CopyRequest> & { readonly to: string },
  owner?: Owner,
): Promise<readonly string[]> {
  const tree = treeOf(from)
  const lines: string[] = []
  const steps = planCopy({
    op: { ...plain, ...op, destination: op.to },
    ...{ from: tree, target: new Target(treeOf(onto), true, NOW), owner, newestMs: NOW },
    isArchive: async (path) => path.endsWith('.tar'),
  })
  for await (const step of steps) {
    if (step.type === 'unpack') {
      lines.push(`unpack ${step.source} in /${step.directory}`)
      continue
    }
    const { type, path, mode, uid, gid } = step
    const text = step.type === 'file' ? `=${Buffer.concat(await chunks(step.read()))}` : ''
    const target = step.type === 'symlink' || step.type === 'link' ? ` > ${step.target}` : ''
    const letter = { file: 'f', directory: 'd', symlink: 'l', link: 'h', fifo: 'p' }[type]
    const line = `${letter} ${mode.toString(8)} ${uid}:${gid} /${path}${text}${target}`
    lines.push(step.type === 'directory' && step.isKept ? `(${line})` : line)
  }
  return lines
}
async function chunks(bytes: AsyncIterable<Uint8Array>): Promise<Uint8Array[]> {
  const all = []
  for await (const chunk of bytes) all.push(chunk)
  return all
}

const from: Written = {
  'a.txt': 'a',
  'b.txt': 'b',
  run: { text: 'x', mode: 0o4755, uid: 7, gid: 8 },
  'src/main.c': 'main',
  'src/lib/x.c': 'x',
  'src/lib': { directory: true, mode: 0o750 },
  'src/up': { link: '../a.txt' },
  'src/dangling': { link: 'nowhere' },
  'link.txt': { link: 'a.txt' },
  linked: { link: 'src/lib' },
  abs: { link: '/src' },
  out: { link: '../../../../a.txt' },
  'we*rd': 'star',
}
const onto: Written = {
  tmp: { directory: true, mode: 0o1777 },
  'opt/app/old': 'old',
  'opt/app/src/lib/old': 'old',
  opt: { directory: true, mode: 0o700, uid: 3, gid: 4 },
  bin: { link: 'usr/bin' },
  'usr/bin/sh': 'sh',
  escape: { link: '../../../tmp' },
  'dir/sub/x': 'x',
  'to-file': { link: 'opt/app/old' },
  dangling: { link: '/opt/new/place' },
}

describe('a file', () => {
  const cases: readonly (readonly [string, Partial<CopyRequest> & { to: string }, readonly string[]])[] = [
    ['gets the name of the destination', { sources: ['a.txt'], to: '/x' }, ['f 644 0:0 /x=a']],
    [
      'goes into a directory with a slash',
      { sources: ['a.txt'], to: '/new/' },
      ['d 755 0:0 /new', 'f 644 0:0 /new/a.txt=a'],
    ],
    [
      'goes into a directory that is there, which stays as it is',
      { sources: ['a.txt'], to: '/tmp' },
      ['(d 1777 0:0 /tmp)', 'f 644 0:0 /tmp/a.txt=a'],
    ],
    [
      'has the way to it made',
      { sources: ['src/main.c'], to: '/n/e/w' },
      ['d 755 0:0 /n', 'd 755 0:0 /n/e', 'f 644 0:0 /n/e/w=main'],
    ],
    [
      'keeps set-id bits, and its owner',
      { sources: ['run'], to: '/opt/' },
      ['(d 700 3:4 /opt)', 'f 4755 7:8 /opt/run=x'],
    ],
    [
      'replaces a file',
      { sources: ['a.txt'], to: '/usr/bin/sh' },
      ['(d 755 0:0 /usr)', '(d 755 0:0 /usr/bin)', 'f 644 0:0 /usr/bin/sh=a'],
    ],
    [
      'follows a link to the destination',
      { sources: ['a.txt'], to: '/bin/' },
      ['(d 755 0:0 /usr)', '(d 755 0:0 /usr/bin)', 'f 644 0:0 /usr/bin/a.txt=a'],
    ],
    [
      'follows a link that is the destination',
      { sources: ['a.txt'], to: '/to-file' },
      ['(d 700 3:4 /opt)', '(d 755 0:0 /opt/app)', 'f 644 0:0 /opt/app/old=a'],
    ],
    [
      'is made where a link leads that leads to nothing',
      { sources: ['a.txt'], to: '/dangling' },
      ['(d 700 3:4 /opt)', 'd 755 0:0 /opt/new', 'f 644 0:0 /opt/new/place=a'],
    ],
    ['never leaves the image', { sources: ['a.txt'], to: '/escape/../../../x' }, ['f 644 0:0 /x=a']],
    [
      'is found by a link of its own name',
      { sources: ['link.txt'], to: '/d/' },
      ['d 755 0:0 /d', 'f 644 0:0 /d/link.txt=a'],
    ],
    ['is found through links on the way', { sources: ['abs/lib/x.c'], to: '/x' }, ['f 644 0:0 /x=x']],
    [
      'is found from the root of its tree at most',
      { sources: ['../../out', '/../b.txt'], to: '/d/' },
      ['d 755 0:0 /d', 'f 644 0:0 /d/out=a', 'f 644 0:0 /d/b.txt=b'],
    ],
    ['is nothing where a wildcard matches nothing', { sources: ['none*'], to: '/d/' }, []],
    [
      'comes with others that a wildcard matches, sorted',
      { sources: ['?.t[xy]t'], to: '/d/' },
      ['d 755 0:0 /d', 'f 644 0:0 /d/a.txt=a', 'f 644 0:0 /d/b.txt=b'],
    ],
    ['with a wildcard in its name is meant by an escape', { sources: ['w?\\*rd'], to: '/x' }, ['f 644 0:0 /x=star']],
    [
      'is matched below directories by a wildcard',
      { sources: ['s*/*/*.c'], to: '/d/' },
      ['d 755 0:0 /d', 'f 644 0:0 /d/x.c=x'],
    ],
    [
      'is matched through the link before a wildcard, not in one',
      { sources: ['abs/*.c', 'lin*/*.c'], to: '/d/' },
      ['d 755 0:0 /d', 'f 644 0:0 /d/main.c=main'],
    ],
    ['gets a mode', { sources: ['run'], to: '/x', chmod: '640' }, ['f 640 7:8 /x=x']],
    ['is left out', { sources: ['?.txt'], to: '/d/', exclude: ['a*'] }, ['d 755 0:0 /d', 'f 644 0:0 /d/b.txt=b']],
    [
      'replaces one that came before',
      { sources: ['a.txt', 'src/../a.txt'], to: '/d/' },
      ['d 755 0:0 /d', 'f 644 0:0 /d/a.txt=a', 'f 644 0:0 /d/a.txt=a'],
    ],
    ['is an archive for ADD only', { sources: ['a.txt'], to: '/x', extract: true }, ['f 644 0:0 /x=a']],
  ]
  test.each(cases)('%s', async (_, op, lines) => expect(await copy(from, onto, op)).toEqual(lines))

  test('belongs to --chown, as does the way that is made for it', async () => {
    expect(await copy(from, onto, { sources: ['run'], to: '/opt/x/y/' }, { uid: 5, gid: 6 })).toEqual([
      ...['(d 700 3:4 /opt)', 'd 755 5:6 /opt/x', 'd 755 5:6 /opt/x/y', 'f 4755 5:6 /opt/x/y/run=x'],
    ])
  })

  test('is written inline', async () => {
    const inline = [{ name: 'EOF', data: 'text' }]
    expect(await copy({}, onto, { inline, to: '/x' })).toEqual(['f 644 0:0 /x=text'])
    expect(await copy({}, onto, { inline, to: '/d/', chmod: 'u+x' }, { uid: 1, gid: 2 })).toEqual([
      ...['d 755 1:2 /d', 'f 744 1:2 /d/EOF=text'],
    ])
  })

  test('is copied onto nothing by --link', async () => {
    const target = new Target(treeOf({}), false, NOW)
    const steps = planCopy({
      op: { ...plain, sources: ['a.txt'], destination: '/tmp/x', link: true },
      ...{ from: treeOf(from), target, owner: undefined, newestMs: NOW, isArchive: async () => false },
    })
    const paths = []
    for await (const step of steps) paths.push(step.type === 'unpack' ? '' : `${step.path} ${step.mode.toString(8)}`)
    expect(paths).toEqual(['tmp 755', 'tmp/x 644'])
  })
})

describe('a directory', () => {
  const lib = ['d 750 0:0 /d/lib', 'f 644 0:0 /d/lib/x.c=x']
  const src = ['l 777 0:0 /d/dangling > nowhere', ...lib, 'f 644 0:0 /d/main.c=main', 'l 777 0:0 /d/up > ../a.txt']
  const cases: readonly (readonly [string, Partial<CopyRequest> & { to: string }, readonly string[]])[] = [
    ['is copied as what is in it, links as links', { sources: ['src'], to: '/d' }, ['d 755 0:0 /d', ...src]],
    ['is the same with slashes', { sources: ['/src/./'], to: '/d/' }, ['d 755 0:0 /d', ...src]],
    ['is found by a link', { sources: ['linked'], to: '/d' }, ['d 755 0:0 /d', 'f 644 0:0 /d/x.c=x']],
    [
      'is merged into those that are there',
      { sources: ['src'], to: '/opt/app/src' },
      [
        ...['(d 700 3:4 /opt)', '(d 755 0:0 /opt/app)', '(d 755 0:0 /opt/app/src)'],
        ...src.map((line) => line.replace('/d/', '/opt/app/src/')),
      ],
    ],
    ['is matched by a wildcard', { sources: ['sr*'], to: '/d' }, ['d 755 0:0 /d', ...src]],
    [
      'is copied without what is left out',
      { sources: ['src'], to: '/d', exclude: ['up', '**/*.c', 'dangling'] },
      ['d 755 0:0 /d', 'd 750 0:0 /d/lib'],
    ],
    [
      'is copied for what is not left out of it',
      { sources: ['src'], to: '/d', exclude: ['*', '!lib/x.c'] },
      ['d 755 0:0 /d', ...lib],
    ],
    [
      'gets a mode, and so does all in it',
      { sources: ['src/lib', 'src/lib/..'], to: '/d/', chmod: 'a=rX', exclude: ['up', 'dangling'] },
      [
        ...[
          'd 755 0:0 /d',
          'f 444 0:0 /d/x.c=x',
          'd 555 0:0 /d/lib',
          'f 444 0:0 /d/lib/x.c=x',
          'f 444 0:0 /d/main.c=main',
        ],
      ],
    ],
    [
      'is copied with the way to it',
      { sources: ['src/lib'], to: '/d', parents: true },
      [...['d 755 0:0 /d', 'd 755 0:0 /d/src', 'd 750 0:0 /d/src/lib', 'f 644 0:0 /d/src/lib/x.c=x']],
    ],
    [
      'is copied with the way from a pivot',
      { sources: ['src/./lib/x.c'], to: '/d', parents: true },
      [...['d 755 0:0 /d', 'd 750 0:0 /d/lib', 'f 644 0:0 /d/lib/x.c=x']],
    ],
    [
      'is copied with the way to what a wildcard matches',
      { sources: ['**/*.c', 'nothing*/x'], to: '/d/', parents: true },
      [
        ...[
          'd 755 0:0 /d',
          'd 755 0:0 /d/src',
          'd 750 0:0 /d/src/lib',
          'f 644 0:0 /d/src/lib/x.c=x',
          'f 644 0:0 /d/src/main.c=main',
        ],
      ],
    ],
  ]
  test.each(cases)('%s', async (_, op, lines) => expect(await copy(from, onto, op)).toEqual(lines))

  test('copies files that share an inode as one', async () => {
    const twice = {
      'd/a': { text: 'x', inode: '1' },
      'd/b': { text: 'x', inode: '1' },
      'd/p': { other: 'fifo' as const },
    }
    expect(await copy(twice, {}, { sources: ['d'], to: '/e' })).toEqual([
      ...['d 755 0:0 /e', 'f 644 0:0 /e/a=x', 'h 644 0:0 /e/b > e/a', 'p 600 0:0 /e/p'],
    ])
    // Each source for itself: what the first name is may have been replaced by the second.
    expect(await copy(twice, {}, { sources: ['d/a', 'd/b'], to: '/e/' })).toEqual([
      ...['d 755 0:0 /e', 'f 644 0:0 /e/a=x', 'f 644 0:0 /e/b=x'],
    ])
  })
})

describe('an archive', () => {
  test('is unpacked by ADD into what is then a directory', async () => {
    const archives = { 'x.tar': 'x', 'y.tar': 'y', l: { link: 'x.tar' }, 'd/z.tar': 'z' }
    const op = { sources: ['*.tar', 'l', 'd'], to: '/opt/new/', extract: true }
    expect(await copy(archives, onto, op)).toEqual([
      ...['(d 700 3:4 /opt)', 'd 755 0:0 /opt/new'],
      ...[
        'unpack x.tar in /opt/new',
        'unpack y.tar in /opt/new',
        'unpack x.tar in /opt/new',
        'f 644 0:0 /opt/new/z.tar=z',
      ],
    ])
  })
})

describe('what cannot be copied is named', () => {
  test.each<[string, Partial<CopyRequest> & { to: string }, RegExp]>([
    ['a source that is not there', { sources: ['no/such'], to: '/x' }, /"no\/such": not found/],
    ['one that a link does not lead to', { sources: ['src/dangling'], to: '/x' }, /"src\/dangling": not found/],
    ['one below a file', { sources: ['a.txt/x'], to: '/x' }, /not found/],
    ['the beginning of a wildcard', { sources: ['no/*'], to: '/x' }, /"no\/\*": \/no not found/],
    ['one with --parents', { sources: ['src/no'], to: '/x', parents: true }, /"src\/no": not found/],
    ['a pattern that is none', { sources: ['a['], to: '/x' }, /"\["|"a\["/],
    ['an exclusion that is none', { sources: ['src'], to: '/x', exclude: ['['] }, /--exclude/],
    ['several files for one name', { sources: ['*.txt'], to: '/x' }, /several files/],
    ['a file on the way', { sources: ['a.txt'], to: '/usr/bin/sh/x' }, /usr\/bin\/sh is there, and is no directory/],
    ['a file as a directory', { sources: ['src'], to: '/usr/bin/sh' }, /no directory/],
    ['a file with a slash', { sources: ['a.txt'], to: '/usr/bin/sh/' }, /no directory/],
    [
      'a directory in the place of a file',
      { sources: ['src/main.c'], to: '/dir/', inline: [{ name: 'sub', data: '' }] },
      /\/dir\/sub is there and is a directory/,
    ],
    [
      'a directory over a link',
      {
        sources: ['/'],
        to: '/opt/app/src/lib',
        parents: false,
        exclude: ['*', '!abs'],
        inline: [
          { name: 'x', data: '' },
          { name: '.wh.x', data: '' },
        ],
      },
      /\.wh\./,
    ],
    ['a mode that is none', { sources: ['a.txt'], to: '/x', chmod: '999' }, /--chmod=999/],
  ])('%s', async (_, op, why) => {
    await expect(copy(from, onto, op)).rejects.toMatchObject({
      code: 'build_failed',
      message: expect.stringMatching(why),
    })
  })

  test('a directory over a link or a file, and a device', async () => {
    const over = (there: Written) => copy({ 'x/y/z': '1' }, there, { sources: ['x'], to: '/d' })
    await expect(over({ 'd/y': { link: '/etc' }, 'etc/passwd': '' })).rejects.toThrow(
      '/d/y is there and is no directory',
    )
    await expect(over({ 'd/y': 'file' })).rejects.toThrow('/d/y is there and is no directory')
    await expect(copy({ 'd/x': { other: 'other' } }, {}, { sources: ['d'], to: '/d' })).rejects.toThrow('device')
  })

  test('what two sources make of one name', async () => {
    const two = { 'a/x/y': '1', 'b/x': '2' }
    await expect(copy(two, {}, { sources: ['a', 'b'], to: '/d/' })).rejects.toThrow('/d/x is there and is a directory')
    await expect(copy(two, {}, { sources: ['b', 'a'], to: '/d/' })).rejects.toThrow('/d/x is there and is no directory')
  })
})

test('nothing is made outside of the image, nor copied through a link out of the source, whatever they hold', async () => {
  const part = fc.constantFrom('a', 'b', 'c', '..', '.', '')
  const way = fc.array(part, { minLength: 1, maxLength: 5 }).map((parts) => parts.join('/'))
  const name = fc.constantFrom('a', 'b', 'c', 'a/b', 'a/c', 'b/a', 'c/a/b')
  const thing = fc.oneof(
    fc.constantFrom('text', { directory: true as const }),
    way.map((link) => ({ link: link === '' ? '/' : link })),
  )
  const tree = fc.dictionary(name, thing)
  const pattern = fc.oneof(way, fc.constantFrom('*', 'a/*', '?/b', '../*'))
  await fc.assert(
    fc.asyncProperty(tree, tree, pattern, way, fc.boolean(), async (source, below, written, to, parents) => {
      const under = treeOf(below)
      const target = new Target(under, true, NOW)
      const made = new Map<string, string>([['', 'directory']])
      const steps = planCopy({
        op: { ...plain, sources: [written], destination: `/${to}`, parents },
        ...{ from: treeOf(source), target, owner: undefined, newestMs: NOW, isArchive: async () => false },
      })
      try {
        for await (const step of steps) {
          if (step.type === 'unpack') throw new Error('nothing is unpacked')
          expect(step.path).toMatch(/^[^/]+(\/[^/]+)*$/)
          expect(step.path.split('/')).not.toContain('..')
          // What it is in came before, and is a directory: nothing is put through a link.
          expect(made.get(step.path.split('/').slice(0, -1).join('/'))).toBe('directory')
          made.set(step.path, step.type)
          // Every file is one of the source.
          if (step.type === 'file') expect(Buffer.concat(await chunks(step.read())).toString()).toBe('text')
        }
      } catch (error) {
        expect(error).toMatchObject({ code: 'build_failed' })
      }
    }),
    { numRuns: 500 },
  )
})

test.each([
  ['755', 0o600, 0o755],
  ['0', 0o600, 0],
  ['07777', 0, 0o7777],
  ['u+x', 0o644, 0o744],
  ['+x', 0o644, 0o755],
  ['go-rwx,u=rw', 0o4755, 0o600],
  ['a=rX', 0o755, 0o555],
  ['a=rX', 0o644, 0o444],
  ['g=u', 0o740, 0o770],
  ['u+s,g+s,+t', 0o755, 0o7755],
  ['ug-s', 0o6755, 0o755],
  ['u=rwx-w', 0, 0o500],
])('--chmod=%s of %i is %i', (chmod, before, after) => expect(changedMode(chmod)(before, false)).toBe(after))

test.each(['', 'x', '8', '77777', 'u', 'u+q', 'u+x,', 'k+x', '-1'])('--chmod=%s is refused', (chmod) =>
  expect(() => changedMode(chmod)).toThrow('--chmod'),
)

test('owners are numbers, or names of the image', () => {
  const passwd = 'root:x:0:0:::\napp:x:1000:50:::\n'
  const accounts = { passwd, group: 'staff:x:50:\nwheel:x:10:app\n' }
  expect(ownerOf('app', accounts)).toEqual({ uid: 1000, gid: 50 })
  expect(ownerOf('app:wheel', accounts)).toEqual({ uid: 1000, gid: 10 })
  expect(ownerOf('7', accounts)).toEqual({ uid: 7, gid: 7 })
  expect(ownerOf('7:8', accounts)).toEqual({ uid: 7, gid: 8 })
  expect(ownerOf('1000:staff', accounts)).toEqual({ uid: 1000, gid: 50 })
  for (const unknown of ['nobody', 'app:nobody', '4294967295', 'app:'])
    expect(() => ownerOf(unknown, accounts)).toThrow(/^(user|group) "/)
})
