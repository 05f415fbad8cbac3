// The operator's files, as they are found and as they change.
import { mkdirSync, mkdtempSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeEach, expect, test } from '@jest/globals'
import { signatureOf } from './database-files.js'
import { loadDatabase } from './scan.thread.js'

const root = mkdtempSync(join(tmpdir(), 'berth-osv-'))
let count = 0
let directory: string
beforeEach(() => {
  directory = join(root, String(++count))
  mkdirSync(directory)
})
afterAll(() => rmSync(root, { recursive: true }))

const record = (id: string, name = 'p') => ({
  ...{ id, severity: [] },
  affected: [{ package: { ecosystem: 'npm', name }, ranges: [{ type: 'SEMVER', events: [{ introduced: '0' }] }] }],
})
const write = (name: string, ...texts: string[]) => {
  mkdirSync(join(directory, name, '..'), { recursive: true })
  writeFileSync(join(directory, name), texts.join('\n'))
  return join(directory, name)
}
const json = (id: string) => JSON.stringify(record(id))
async function idsOf(path: string) {
  const { vulnerabilities, skipped } = await loadDatabase(path)
  const one = { type: 'npm', name: 'p', version: '1.0.0', architecture: null, source: null } as const
  const packages = [{ ...one, license: null, path: 'p', layer: `sha256:${'0'.repeat(64)}` }]
  const { found } = vulnerabilities.match({ packages, distribution: null })
  return { ids: found.map(({ id }) => id).sort(), skipped }
}

test('one file: an object, an array, or a line each', async () => {
  expect(await idsOf(write('one', json('A')))).toEqual({ ids: ['A'], skipped: 0 })
  expect(await idsOf(write('array', `[${json('A')}, ${json('B')}]`))).toEqual({ ids: ['A', 'B'], skipped: 0 })
  expect(await idsOf(write('lines', json('A'), json('B')))).toEqual({ ids: ['A', 'B'], skipped: 0 })
})

test('a character of several bytes may be where one piece that is read ends', async () => {
  const [before, id] = ['{"id":"', '\u00e9\u{1f600}']
  const text = JSON.stringify(record(id))
  for (const cut of [1, 3, 4, 5]) {
    const padding = ' '.repeat(1024 * 1024 - before.length - cut)
    expect(await idsOf(write('cut', `${padding}${text}`))).toEqual({ ids: [id], skipped: 0 })
  }
})

test('a directory: all files of records in it, and below; what is no record is counted', async () => {
  write('a.json', json('A'))
  write('npm/b.json', `[${json('B')}, {"id": 7}, {"no": "record"}]`)
  write('c.jsonl', json('C'), '{"id": "cut', json('G'), 'none', `${json('H').slice(0, -1)}`, json('I'))
  write('cut.json', '{"id": "cut')
  write('read.me', json('D'))
  write('.hidden/e.json', json('E'))
  write('elsewhere/f.txt', json('F'))
  symlinkSync('elsewhere/f.txt', join(directory, 'linked.json'))
  expect(await idsOf(directory)).toEqual({ ids: ['A', 'B', 'C', 'F', 'G', 'I'], skipped: 6 })
})

test('what is no record is named, by file and line', async () => {
  const file = write('a.jsonl', json('A'), '{"id": 7}', '', '{"id": "cut', '{"id": }', 'none', `{"id": "B"${json('C')}`)
  const { problems } = await loadDatabase(file)
  expect(problems).toEqual([
    `${file}:2: id Invalid input: expected string, received number`,
    `${file}:4: a line end within a string`,
    `${file}:5: Invalid input: expected object, received undefined`,
    `${file}:6: it is no object`,
    `${file}:7: a brace where there can be none`,
  ])
  const many = write('many.json', json('A'), ...Array.from({ length: 20 }, () => '{}'))
  expect(await loadDatabase(many)).toMatchObject({ skipped: 20, problems: { length: 10 } })
})

test.each([
  ['array', `[${json('A')}, ${json('B')}`.slice(0, -3), /is not whole: it has no end, in line 1/],
  ['array between two', `[${json('A')},\n`, /is not whole: the list has no end, in line 2/],
  ['line', `${json('A')}\n${json('B')}`.slice(0, -9), /is not whole: it has no end, in line 2/],
  ['zip archive', `PK\u0003\u0004${json('A')}`, /is packed/],
])('a file that ends within its %s, or is packed, is no database', async (_, text, expected) => {
  write('good.json', json('A'))
  write('x.json', text)
  await expect(loadDatabase(directory)).rejects.toMatchObject({ cause: expect.stringMatching(expected) })
})

test('its version is that of the bytes', async () => {
  const version = async (path: string) => (await loadDatabase(path)).version
  const [a, same, other] = [write('a.json', json('A')), write('b.json', json('A')), write('c.json', json('B'))]
  expect(await version(a)).toBe(await version(same))
  expect(await version(a)).not.toBe(await version(other))
})

test.each([
  ['nothing', ''],
  ['no JSON', 'no JSON'],
  ['other ecosystems', JSON.stringify({ id: 'G', affected: [{ package: { ecosystem: 'Go', name: 'p' } }] })],
])('one that holds %s cannot be used', async (_, text) => {
  await expect(loadDatabase(write('x.json', text))).rejects.toThrow('no record of use')
})

test('a change is noticed: in a file, of its name, below', async () => {
  const seen = new Set<string | undefined>()
  const look = async () => seen.add(await signatureOf(directory)).size
  write('a.json', json('A'))
  write('npm/b.json', json('B'))
  expect([await look(), await look()]).toEqual([1, 1])
  write('a.json', json('C'))
  expect(await look()).toBe(2)
  renameSync(write('new', json('D')), join(directory, 'npm/b.json'))
  expect(await look()).toBe(3)
  write('npm/c.json', json('E'))
  expect(await look()).toBe(4)
  expect(await signatureOf(join(directory, 'none'))).toBeUndefined()
})
