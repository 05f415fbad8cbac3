// berth-diff against real overlays, and against what anybody would find who compares the whole of both trees.
import { execFileSync, spawnSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { errnoOf } from '@berth/contracts'
import { afterAll, beforeEach, describe, expect, test } from '@jest/globals'
import fc from 'fast-check'

const program = join(process.env.BERTH_INIT_BUILD ?? join(import.meta.dirname, 'build'), 'berth-diff')
const root = mkdtempSync(join(tmpdir(), 'berth-diff-'))
// Hundreds of trees, one of a hundred thousand files: in memory, where a disk that others keep busy is no part of it.
execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1g', 'tmpfs', root])
const mounted: string[] = [root]
afterAll(() => {
  for (const path of mounted.reverse()) execFileSync('umount', [path])
  rmSync(root, { recursive: true })
})

let serial = 0
let place = ''
beforeEach(() => {
  place = join(root, String(serial++))
  mkdirSync(place)
})

interface Overlay {
  readonly upper: string
  readonly lowers: readonly string[]
  readonly merged: string
}

/** @param lowers topmost first */
function overlay(name: string, lowers: readonly string[]): Overlay {
  const at = join(place, name)
  const [upper, work, merged] = ['upper', 'work', 'merged'].map((part) => join(at, part))
  if (!upper || !work || !merged) throw new Error('three parts')
  for (const path of [upper, work, merged]) mkdirSync(path, { recursive: true })
  const options = `lowerdir=${lowers.join(':')},upperdir=${upper},workdir=${work}`
  execFileSync('mount', ['-t', 'overlay', 'overlay', '-o', options, merged])
  mounted.push(merged)
  return { upper, lowers, merged }
}

function unmount({ merged }: Overlay): void {
  execFileSync('umount', [merged])
  mounted.splice(mounted.indexOf(merged), 1)
}

function diff({ upper, lowers }: Pick<Overlay, 'upper' | 'lowers'>, skip: readonly string[] = []): string[] {
  const argv = ['0', upper, ...skip.flatMap((path) => ['--skip', path]), ...lowers]
  const { status, stdout, stderr } = spawnSync(program, argv, { maxBuffer: 64 * 1024 ** 2 })
  expect([status, String(stderr)]).toEqual([0, ''])
  const records = String(stdout).split('\0')
  expect(records.pop()).toBe('')
  return records.map((record) => `${record.charAt(0)} ${record.slice(1)}`)
}

/** Path → what it is, of all that is below. */
function tree(directory: string, prefix = '', found = new Map<string, string>()): Map<string, string> {
  for (const name of readdirSync(directory)) {
    const path = join(directory, name)
    const stat = lstatSync(path)
    const mode = (stat.mode & 0o7777).toString(8)
    if (stat.isDirectory()) found.set(`${prefix}/${name}`, `directory ${mode}`)
    else if (stat.isSymbolicLink()) found.set(`${prefix}/${name}`, `link ${readlinkSync(path)}`)
    else found.set(`${prefix}/${name}`, `file ${mode} ${readFileSync(path, 'utf8')}`)
    if (stat.isDirectory()) tree(path, `${prefix}/${name}`, found)
  }
  return found
}

const isDirectory = (what: string | undefined) => what?.startsWith('directory') === true
const parents = (path: string) =>
  path
    .split('/')
    .slice(1, -1)
    .map((_, i, parts) => `/${parts.slice(0, i + 1).join('/')}`)

/** By comparing all there was with all there is. */
function expected(image: ReadonlyMap<string, string>, now: ReadonlyMap<string, string>): string[] {
  const found = new Map<string, string>()
  for (const [path, what] of now) {
    const before = image.get(path)
    if (before === undefined) found.set(path, 'A')
    else if (before !== what) found.set(path, 'C')
  }
  for (const path of image.keys())
    if (!now.has(path) && parents(path).every((parent) => isDirectory(now.get(parent)))) found.set(path, 'D')
  for (const path of [...found.keys()])
    for (const parent of parents(path)) if (!found.has(parent)) found.set(parent, 'C')
  const byParts = (a: string, b: string) => (a.replaceAll('/', '\0') < b.replaceAll('/', '\0') ? -1 : 1)
  return [...found].sort(([a], [b]) => byParts(a, b)).map(([path, kind]) => `${kind} ${path}`)
}

type Step =
  | { readonly do: 'write' | 'mkdir' | 'remove' | 'chmod' | 'link' | 'renew'; readonly path: string }
  | { readonly do: 'move'; readonly path: string; readonly to: string }

const name = fc.constantFrom('a', 'b', 'c')
const path = fc.array(name, { minLength: 1, maxLength: 3 }).map((parts) => parts.join('/'))
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({ do: fc.constantFrom('write', 'mkdir', 'remove', 'chmod', 'link', 'renew'), path }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('move' as const), path, to: path }) },
)

let content = 0
/** What cannot be done is not: a file where a directory is wanted, and the like. */
function carryOut(directory: string, one: Step): void {
  const at = join(directory, one.path)
  try {
    if (one.do === 'write') writeFileSync(at, `${content++}`)
    else if (one.do === 'mkdir') mkdirSync(at)
    else if (one.do === 'remove') rmSync(at, { recursive: true })
    else if (one.do === 'chmod') chmodSync(at, 0o700 + (content++ % 64))
    else if (one.do === 'link') symlinkSync(`${content++}`, at)
    else if (one.do === 'move') renameSync(at, join(directory, one.to))
    else {
      rmSync(at, { recursive: true })
      mkdirSync(at)
    }
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
  }
}

test('it is what a comparison of both trees finds, whatever was done, in the image too', () => {
  const steps = fc.array(step, { maxLength: 25 })
  fc.assert(
    fc.property(steps, steps, steps, (base, layer, changes) => {
      place = join(root, String(serial++))
      mkdirSync(join(place, 'base'), { recursive: true })
      for (const one of base) carryOut(join(place, 'base'), one)
      const image = overlay('image', [join(place, 'base')])
      for (const one of layer) carryOut(image.merged, one)
      const before = tree(image.merged)
      unmount(image)
      const box = overlay('box', [image.upper, join(place, 'base')])
      expect(tree(box.merged)).toEqual(before)
      for (const one of changes) carryOut(box.merged, one)
      expect(diff(box)).toEqual(expected(before, tree(box.merged)))
      unmount(box)
      rmSync(place, { recursive: true })
    }),
    { numRuns: 150 },
  )
}, 120_000)

describe('a layer', () => {
  const given = (...steps: readonly (readonly [Step['do'], string])[]): Overlay => {
    mkdirSync(join(place, 'base/etc'), { recursive: true })
    writeFileSync(join(place, 'base/etc/hosts'), 'x')
    const box = overlay('box', [join(place, 'base')])
    for (const [what, at] of steps) if (what !== 'move') carryOut(box.merged, { do: what, path: at })
    return box
  }

  test('leaves out what is to be skipped, with what is below, and the directory that only holds it', () => {
    const box = given(['write', 'etc/hosts'], ['mkdir', 'dev'], ['write', 'dev/x'], ['write', 'devil'])
    expect(diff(box, ['/etc/hosts', '/dev'])).toEqual(['A /devil'])
    expect(diff(box)).toEqual(['A /dev', 'A /dev/x', 'A /devil', 'C /etc', 'C /etc/hosts'])
  })

  test('may hold names of any bytes but NUL and slash', () => {
    const box = given(['write', ' '], ['write', 'a\nb'], ['write', 'é'], ['write', '-'], ['write', 'x'.repeat(255)])
    expect(diff(box).sort()).toEqual(['A / ', 'A /-', 'A /a\nb', `A /${'x'.repeat(255)}`, 'A /é'].sort())
  })

  test('may be deeper than a path is long: it is looked at a thousand directories down', () => {
    const box = given()
    // One command that goes down as it makes them: no path of that length can be given to the kernel.
    const script = 'for _ in 1 2 3 4; do mkdir -p "$0" && cd -P "$0" || exit 1; done'
    execFileSync('sh', ['-c', script, 'directory/'.repeat(375)], { cwd: box.merged })
    expect(diff(box)).toHaveLength(1001)
    execFileSync('rm', ['-r', join(box.merged, 'directory')])
  })

  test('may hold a hundred thousand files', () => {
    const box = given(['mkdir', 'many'])
    execFileSync('sh', ['-c', 'seq 1 100000 | xargs touch'], { cwd: join(box.merged, 'many') })
    const found = diff(box)
    expect(found).toHaveLength(100_001)
    expect(found.slice(1)).toEqual([...found.slice(1)].sort())
    execFileSync('rm', ['-r', join(box.merged, 'many')])
  })
})

describe('what makes no sense', () => {
  test.each([
    [2, []],
    [2, ['0']],
    [2, ['x', '/']],
    [1, ['0', '/nowhere']],
    [1, ['0', '/', '/nowhere']],
    [1, ['0', '/etc/hostname']],
  ])('ends with %d: %j', (status, argv) => expect(spawnSync(program, argv).status).toBe(status))

  test('is a reader that goes: it ends', () => {
    mkdirSync(join(place, 'upper'))
    execFileSync('sh', ['-c', 'seq 1 20000 | xargs touch'], { cwd: join(place, 'upper') })
    const script = `"${program}" 0 "${join(place, 'upper')}" | head -c 10 >/dev/null; echo done`
    expect(String(execFileSync('sh', ['-c', script]))).toBe('done\n')
    expect(existsSync(place)).toBe(true)
  })
})
