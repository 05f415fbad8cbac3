import type { Image, ImageProgress } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { lineOf, rowOf } from './images.js'

const digest = `sha256:${'ab'.repeat(32)}`
const layer = (state: 'fetching' | 'done', bytes: number): ImageProgress => ({
  ...{ step: 'layer', digest, state, bytes, totalBytes: 100 },
})
const image: Image = {
  ...{ digest, manifestDigest: digest, references: ['a:1', 'b:1'], visibility: 'tenant', base: false, platform: null },
  ...{ labels: {}, sizeBytes: 3 * 1024 ** 2, uniqueBytes: 0, sharedBytes: 0, nodes: 1, createdAt: null, addedAt: null },
}

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

test('an image is listed under each of its names', () => {
  expect(rowOf(image)).toBe('a:1\tabababababab\t3.0 MiB\ttenant\nb:1\tabababababab\t3.0 MiB\ttenant\n')
  expect(rowOf({ ...image, references: [], base: true })).toBe('<none>\tabababababab\t3.0 MiB\tbase\n')
})
