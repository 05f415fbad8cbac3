import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { Spool } from '../logs/spool.js'
import type { Event } from './screen.js'
import { ScreenFiles } from './screen-files.js'

const size = { rows: 24, columns: 80 }
let directory: string
let spool: Spool
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-screen-'))
  spool = Spool.begin({ directory, name: 'output', keepBytes: 65_536 })
})
afterEach(async () => {
  await spool.close()
  rmSync(directory, { recursive: true })
})

const open = () => new ScreenFiles(directory, spool, size)

async function since(files: ScreenFiles, offset: number): Promise<readonly string[]> {
  const show = (event: Event) =>
    event.kind === 'output' ? `${event.offset}:${event.bytes}` : `${event.size.columns}x${event.size.rows}`
  const events: string[] = []
  for await (const event of files.since(offset)) events.push(show(event))
  return events
}

test('a new terminal is blank; a kept screen and cut are the same for the next agent', () => {
  const files = open()
  expect(files.base).toEqual({ offset: 0, size, title: '' })
  expect(String(files.text())).toBe('\x1bc')
  const base = { offset: 7, size: { rows: 3, columns: 4 }, title: 'a\nb' }
  files.save(base, Buffer.from('\x1bctext\nof lines'))
  files.saveCut({ from: -3, to: 9, bytes: Buffer.from('\x1b[m\r') })
  const next = open()
  expect(next.base).toEqual(base)
  expect(String(next.text())).toBe('\x1bctext\nof lines')
  expect(next.cut).toEqual({ from: -3, to: 9, bytes: Buffer.from('\x1b[m\r') })
})

test('of cuts the newest counts, however long it and those before it are', () => {
  let files = open()
  const lengths = [10, 5000, 0, 2900, 1, 3100, 3]
  for (const [i, length] of lengths.entries()) {
    const cut = { from: i, to: 10 + i, bytes: Buffer.alloc(length, i) }
    files.saveCut(cut)
    expect(open().cut).toEqual(cut)
    if (i % 3 === 2) files = open()
  }
})

test('a cut that a kill kept from being written is none', () => {
  const files = open()
  writeFileSync(join(directory, 'cut'), '')
  expect(open().cut).toBeUndefined()
  const cut = { from: 0, to: 3, bytes: Buffer.from('abc') }
  files.saveCut(cut)
  writeFileSync(join(directory, 'cut.2'), '')
  expect(open().cut).toEqual(cut)
})

test('output and changes of size come in the order in which they came, from any offset', async () => {
  const files = open()
  const wide = { rows: 24, columns: 100 }
  spool.append(0, Buffer.from('abcd'), () => undefined)
  files.resized(4, wide)
  files.resized(4, size)
  spool.append(4, Buffer.from('efgh'), () => undefined)
  files.resized(8, wide)
  expect(await since(files, 0)).toEqual(['0:abcd', '100x24', '80x24', '4:efgh', '100x24'])
  expect(await since(files, 2)).toEqual(['2:cd', '100x24', '80x24', '4:efgh', '100x24'])
  expect(await since(open(), 6)).toEqual(['6:gh', '100x24'])
  // What the saved screen has already is dropped.
  files.save({ offset: 8, size, title: '' }, Buffer.from('\x1bc'))
  expect(await since(open(), 8)).toEqual(['100x24'])
})

test('a torn line of sizes did not happen', async () => {
  open().resized(0, { rows: 5, columns: 6 })
  appendFileSync(join(directory, 'sizes'), '{"at":0,"si')
  const files = open()
  files.resized(0, { rows: 7, columns: 8 })
  expect(await since(open(), 0)).toEqual(['6x5', '8x7'])
})

test('thousands of changes of size are bounded, and the last one counts', async () => {
  const files = open()
  for (let i = 1; i <= 1500; i++) files.resized(0, { rows: 24, columns: (i % 1000) + 1 })
  const all = await since(open(), 0)
  expect(all.length).toBeLessThanOrEqual(1000)
  expect(all.at(-1)).toBe('501x24')
})
