import { cpSync, mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { difference, readTree, settleTimes } from './tree.js'

let work: string
const before = () => join(work, 'before')
const after = () => join(work, 'after')

beforeEach(() => {
  work = mkdtempSync(join(tmpdir(), 'berth-tree-'))
  mkdirSync(join(before(), 'etc/apt'), { recursive: true })
  mkdirSync(join(before(), 'dev'))
  writeFileSync(join(before(), 'etc/apt/one'), 'one')
  writeFileSync(join(before(), 'etc/passwd'), 'root')
  writeFileSync(join(before(), 'dev/null'), '')
  symlinkSync('one', join(before(), 'etc/link'))
  settleTimes(before(), 0, 1000)
  cpSync(before(), after(), { recursive: true, preserveTimestamps: true, verbatimSymlinks: true })
  settleTimes(after(), 0, 1000)
})
afterEach(() => rmSync(work, { recursive: true }))

const compare = () =>
  difference({ root: before(), tree: readTree(before(), ['dev']) }, { root: after(), tree: readTree(after(), ['dev']) })

test('equal trees differ in nothing, and what is below an emptied directory is not listed', () => {
  writeFileSync(join(after(), 'dev/zero'), '')
  settleTimes(after(), 0, 1000)
  expect(compare()).toEqual({ changed: [], removed: [] })
  expect([...readTree(before(), ['dev']).keys()]).toEqual([
    'dev',
    'etc',
    'etc/apt',
    'etc/apt/one',
    'etc/link',
    'etc/passwd',
  ])
})

test.each<[string, () => void, readonly string[]]>([
  [
    'content of the same length',
    () => writeFileSync(join(after(), 'etc/apt/one'), 'two'),
    ['etc', 'etc/apt', 'etc/apt/one'],
  ],
  ['a new file', () => writeFileSync(join(after(), 'etc/new'), ''), ['etc', 'etc/new']],
  [
    'the target of a link',
    () => {
      rmSync(join(after(), 'etc/link'))
      symlinkSync('two', join(after(), 'etc/link'))
    },
    ['etc', 'etc/link'],
  ],
  [
    'a file in the place of a directory',
    () => {
      rmSync(join(after(), 'etc/apt'), { recursive: true })
      writeFileSync(join(after(), 'etc/apt'), '')
    },
    ['etc', 'etc/apt'],
  ],
])('%s is stored with its parents, which come first', (_, change, changed) => {
  change()
  settleTimes(after(), 0, 1000)
  expect(compare().changed).toEqual(changed)
})

test('of a directory that is gone only the directory is told', () => {
  rmSync(join(after(), 'etc'), { recursive: true })
  expect(compare()).toEqual({ changed: [], removed: ['etc'] })
})

test('what the build wrote gets the epoch, what is older keeps its time', () => {
  const [mine, older] = [join(after(), 'etc/passwd'), join(after(), 'etc/apt/one')]
  utimesSync(mine, 5000, 5000)
  utimesSync(older, 3000, 3000)
  settleTimes(after(), 4_000_000, 3500)
  expect([statSync(mine).mtimeMs, statSync(older).mtimeMs]).toEqual([3_500_000, 3_000_000])
})
