import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { beneath, readJson, removeTree, writeAtomic } from './files.js'

let dir = ''
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'berth-files-'))
})
afterEach(() => rm(dir, { recursive: true, force: true }))

describe('writeAtomic', () => {
  test('replaces the content, keeps the mode asked for and leaves nothing beside', async () => {
    const path = join(dir, 'a.json')
    await writeAtomic(path, 'old')
    await writeAtomic(path, 'new', { mode: 0o640, durable: true })
    expect(readFileSync(path, 'utf8')).toBe('new')
    expect(statSync(path).mode & 0o777).toBe(0o640)
    expect(readdirSync(dir)).toEqual(['a.json'])
  })

  test('a link in its place is replaced, not followed', async () => {
    writeFileSync(join(dir, 'victim'), 'safe')
    symlinkSync('victim', join(dir, 'link'))
    await writeAtomic(join(dir, 'link'), 'new')
    expect(readFileSync(join(dir, 'victim'), 'utf8')).toBe('safe')
    expect(lstatSync(join(dir, 'link')).isFile()).toBe(true)
  })

  test('a failure names the path and leaves no temporary file', async () => {
    mkdirSync(join(dir, 'taken'))
    await expect(writeAtomic(join(dir, 'taken'), 'x')).rejects.toThrow(`write ${join(dir, 'taken')}`)
    expect(readdirSync(dir)).toEqual(['taken'])
  })
})

describe('readJson', () => {
  const parse = (value: unknown) => {
    if (typeof value !== 'number') throw new Error('not a number')
    return value
  }
  test('gives the value, undefined when missing, and a fault with the path otherwise', async () => {
    const path = join(dir, 'n.json')
    expect(await readJson(path, parse)).toBeUndefined()
    writeFileSync(path, '42')
    expect(await readJson(path, parse)).toBe(42)
    writeFileSync(path, '"x"')
    await expect(readJson(path, parse)).rejects.toThrow(`read ${path}: not a number`)
    writeFileSync(path, '{')
    await expect(readJson(path, parse)).rejects.toThrow(`read ${path}`)
  })
})

describe('removeTree', () => {
  test('removes links themselves, and nothing they point to', async () => {
    const tree = join(dir, 'tree')
    mkdirSync(join(tree, 'sub'), { recursive: true })
    mkdirSync(join(dir, 'outside'))
    writeFileSync(join(dir, 'outside/file'), 'safe')
    symlinkSync('../outside', join(tree, 'link'))
    await removeTree(tree)
    await removeTree(tree)
    expect(existsSync(tree)).toBe(false)
    expect(readFileSync(join(dir, 'outside/file'), 'utf8')).toBe('safe')
  })

  test('refuses what holds a mount', async () => {
    await expect(removeTree('/proc')).rejects.toThrow('is a mount point')
  })
})

describe('beneath', () => {
  test('joins plain paths', () => {
    expect(beneath(dir, 'a/b.txt')).toBe(join(dir, 'a/b.txt'))
  })
  test.each(['..', 'a/../b', '/etc/passwd', '', '.', 'a//b', 'a/\0'])('refuses %j', (path) => {
    expect(() => beneath(dir, path)).toThrow('below')
  })
  test('refuses a link on the way, also a dangling one', () => {
    symlinkSync('/etc', join(dir, 'link'))
    symlinkSync('/nonexistent', join(dir, 'dangling'))
    expect(() => beneath(dir, 'link/passwd')).toThrow('is a symbolic link')
    expect(() => beneath(dir, 'dangling')).toThrow('is a symbolic link')
  })
})
