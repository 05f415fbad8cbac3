// What a build sees of an image's layers is what overlayfs shows of them.
import { execFileSync } from 'node:child_process'
import { chmodSync, linkSync, lutimesSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { never } from '../images/content.js'
import { LayerTree } from './layer-tree.js'
import { below, follow, type Tree } from './tree.js'

let root: string
beforeAll(() => {
  root = mkdtempSync('/var/tmp/berth-layers-')
})
afterAll(() => rmSync(root, { recursive: true, force: true }))

type Thing = 'file' | 'directory' | 'opaque' | 'whiteout' | 'link' | 'hard' | 'named'

/** Makes a layer; what cannot be, as something below a file, is left out. */
function layerOf(things: readonly (readonly [path: string, thing: Thing])[]): string {
  const directory = mkdtempSync(join(root, 'layer-'))
  chmodSync(directory, 0o755)
  for (const [path, thing] of things) {
    const at = join(directory, path)
    try {
      mkdirSync(dirname(at), { recursive: true })
      if (thing === 'directory' || thing === 'opaque') mkdirSync(at)
      if (thing === 'opaque') execFileSync('setfattr', ['-n', 'trusted.overlay.opaque', '-v', 'y', at])
      if (thing === 'whiteout') execFileSync('mknod', [at, 'c', '0', '0'], { stdio: 'ignore' })
      if (thing === 'link') symlinkSync('../a/b', at)
      if (thing === 'file' || thing === 'hard') writeFileSync(at, `${directory} ${path}`, { flag: 'wx' })
      if (thing === 'file') chmodSync(at, 0o4750)
      if (thing === 'hard') linkSync(at, `${at}.too`)
      if (thing === 'named') {
        writeFileSync(at, 'x', { flag: 'wx' })
        execFileSync('setfattr', ['-n', 'user.name', '-v', path, at])
      }
      if (thing !== 'whiteout') lutimesSync(at, 1000, 1000)
    } catch (error) {
      expect(String(error)).toMatch(/EEXIST|ELOOP|ENOENT|ENOTDIR|Command failed/)
    }
  }
  return directory
}

async function everything(tree: Tree, path = ''): Promise<string[]> {
  const lines = []
  for (const name of await tree.list(path)) {
    const own = below(path, name)
    const node = await tree.lstat(own)
    const type = { file: 'f', directory: 'd', symlink: 'l', fifo: 'p', other: '?' }[node?.type ?? 'other']
    const size = node?.type === 'file' ? node.size : ''
    lines.push([own, type, node?.mode.toString(8), node?.uid, node?.gid, size, node?.target ?? ''].join(' '))
    if (node?.type === 'file') lines.push((await buffer(tree.read(own))).toString())
    const { 'user.name': named } = await tree.attributes(own)
    if (named !== undefined) lines.push(Buffer.from(named, 'base64').toString())
    lines.push(...(await everything(tree, own)))
  }
  return lines
}

/** The same of a real mount, which is gone when this is over. */
function mounted(layers: readonly string[]): string[] {
  const target = join(root, 'mounted')
  mkdirSync(target, { recursive: true })
  // Directories that are merged of one layer only list whiteouts that cannot be found.
  const script = `
    mount -t overlay overlay -o "ro,lowerdir=$1" "$2" && cd "$2" || exit 1
    find . -mindepth 1 -printf '%P\\n' | while read -r path; do
      if [ -L "$path" ]; then stat -c "%n l %a %u %g  $(readlink "$path")" "$path"
      elif [ -d "$path" ]; then stat -c '%n d %a %u %g  ' "$path"
      elif [ -f "$path" ]; then stat -c '%n f %a %u %g %s ' "$path"; cat "$path"; echo
        getfattr -n user.name --only-values "$path" 2>/dev/null && echo
      elif [ -e "$path" ]; then stat -c '%n ? %a %u %g  ' "$path"
      fi
    done; exit 0`
  const argv = ['--mount', 'sh', '-c', script, 'sh', layers.join(':'), target]
  return execFileSync('unshare', argv, { encoding: 'utf8' }).split('\n')
}

const open = (layers: readonly string[]) => LayerTree.open(layers, never)

describe('layers', () => {
  const part = fc.constantFrom('a', 'b', 'c')
  const path = fc.array(part, { minLength: 1, maxLength: 3 }).map((parts) => parts.join('/'))
  const thing = fc.constantFrom<Thing>('file', 'directory', 'directory', 'opaque', 'whiteout', 'link', 'hard', 'named')
  const layer = fc.array(fc.tuple(path, thing), { maxLength: 8 })

  test('are merged as overlayfs merges them', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(layer, { minLength: 2, maxLength: 4 }), async (written) => {
        const layers = written.map((things) => layerOf(things))
        const seen = await everything(await open(layers))
        expect(seen.sort()).toEqual(
          mounted(layers)
            .filter((line) => line !== '')
            .sort(),
        )
      }),
      { numRuns: 20 },
    )
  })

  test('have files that share an inode, and no others do', async () => {
    const tree = await open([
      layerOf([
        ['x', 'hard'],
        ['y', 'file'],
      ]),
    ])
    const [x, too, y] = await Promise.all(['x', 'x.too', 'y'].map((one) => tree.lstat(one)))
    expect(x?.inode).toBe(too?.inode)
    expect([typeof x?.inode, typeof y?.inode]).toEqual(['string', 'undefined'])
  })

  test('lead nowhere out of themselves', async () => {
    const layer = layerOf([])
    symlinkSync('/', join(layer, 'root'))
    symlinkSync('../../../../../../etc', join(layer, 'etc-by-way-up'))
    const tree = await open([layer])
    expect(await tree.lstat('root/etc/passwd')).toBeUndefined()
    expect(await tree.list('root')).toEqual([])
    expect(await tree.list('etc-by-way-up')).toEqual([])
    expect(await follow(tree, 'root/etc-by-way-up/passwd')).toBe('etc/passwd')
    expect(await tree.lstat('etc/passwd')).toBeUndefined()
    await expect(buffer(tree.read('root/etc/passwd'))).rejects.toMatchObject({ code: 'build_failed' })
    await expect(buffer(tree.read('root'))).rejects.toMatchObject({ code: 'build_failed' })
  })

  test('with names that are not UTF-8 say so', async () => {
    const layer = layerOf([['fine', 'file']])
    writeFileSync(Buffer.concat([Buffer.from(`${layer}/`), Buffer.from([0xff])]), '')
    const tree = await open([layer])
    await expect(tree.list('')).rejects.toThrow('UTF-8')
    expect((await tree.lstat('fine'))?.type).toBe('file')
  })
})
