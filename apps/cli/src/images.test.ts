import type { Image, ImageHistoryEntry, ImageProgress } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { ageText, sizeText } from './figures.js'
import { lineOf } from './image-transfers.js'
import { historyLine, jsonText, linesOf } from './images.js'

const digest = `sha256:${'ab'.repeat(32)}`
const layer = (state: 'fetching' | 'done', bytes: number): ImageProgress => ({
  ...{ step: 'layer', digest, state, bytes, totalBytes: 100 },
})
const image: Image = {
  ...{ digest, manifestDigest: digest, references: ['a:1', 'b:1'], visibility: 'tenant', base: false, platform: null },
  ...{ labels: {}, sizeBytes: 3 * 1024 ** 2, uniqueBytes: 0, sharedBytes: 0, nodes: 1, createdAt: null },
  addedAt: '2026-01-01T00:00:00.000Z',
}

describe('what happens', () => {
  test('a layer is told once for each state, however often it moves', () => {
    const told = new Map<string, string>()
    const lines = [layer('fetching', 1), layer('fetching', 50), layer('done', 100), layer('done', 100)]
    expect(lines.map((step) => lineOf(step, told))).toEqual([
      ...['abababababab fetching', undefined, 'abababababab done', undefined],
    ])
  })

  test('the end tells the names, or why there are none', () => {
    expect(lineOf({ step: 'done', images: [image] }, new Map())).toBe('a:1 b:1')
    expect(lineOf({ step: 'done', images: [{ ...image, references: [] }] }, new Map())).toBeUndefined()
    expect(lineOf({ step: 'failed', code: 'x', message: 'no' }, new Map())).toBe('berth: no')
  })
})

describe('a list', () => {
  const plain = { quiet: false, json: false }
  const now = new Date('2026-01-03T00:00:00Z')

  test('has an image under each of its names', () => {
    const more = 'abababababab\t3.0 MiB\ttenant\t2d'
    expect(linesOf(image, plain, now)).toEqual([`a:1\t${more}`, `b:1\t${more}`])
    expect(linesOf({ ...image, references: [], base: true, addedAt: null }, plain, now)).toEqual([
      '<none>\tabababababab\t3.0 MiB\tbase\t-',
    ])
  })

  test('has it once where names are not told, or all is', () => {
    expect(linesOf(image, { ...plain, quiet: true }, now)).toEqual(['abababababab'])
    expect(linesOf(image, { ...plain, json: true }, now).map((line) => JSON.parse(line))).toEqual([image])
  })
})

test('JSON holds nothing that a terminal would obey, and means the same', () => {
  const value = { label: '\u009b2J\u007f\u001b[2J', plain: 'é' }
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not be there
  expect(jsonText(value)).not.toMatch(/[\u0000-\u001f\u007f-\u009f]/)
  expect(JSON.parse(jsonText(value, 2))).toEqual(value)
})

test('a history has a line an entry, whatever its command holds', () => {
  const entry: ImageHistoryEntry = {
    ...{ digest, sizeBytes: 1536, ageMs: 90_000, createdAt: null, comment: '', emptyLayer: false },
    createdBy: 'RUN a\n\tb \u001b[2J',
  }
  expect(historyLine(entry)).toBe('abababababab\t90s\t1.5 KiB\tRUN a b [2J')
  expect(historyLine({ ...entry, digest: null, sizeBytes: 0, ageMs: null, createdBy: '', comment: 'x' })).toBe(
    '-\t-\t0 B\t(x)',
  )
  expect(historyLine({ ...entry, createdBy: '' })).toBe('abababababab\t90s\t1.5 KiB\t-')
})

test.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [1024, '1.0 KiB'],
  [3 * 1024 ** 3, '3.0 GiB'],
  [5000 * 1024 ** 4, '5000.0 TiB'],
])('%d bytes are %s', (bytes, text) => expect(sizeText(bytes)).toBe(text))

test.each([
  [-1, '0s'],
  [119_999, '119s'],
  [120_000, '2m'],
  [3 * 3_600_000, '3h'],
  [47 * 3_600_000, '47h'],
  [48 * 3_600_000, '2d'],
  [800 * 86_400_000, '2y'],
])('%d ms are %s', (ms, text) => expect(ageText(ms)).toBe(text))
