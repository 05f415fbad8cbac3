import { expect, test } from '@jest/globals'
import { enterOptions } from './overlay.js'

const rootfs = {
  layers: ['/layers/sha256/top', '/layers/sha256/base'],
  writable: '/pool/att_1',
  directory: '/attempts/att_1',
  ids: { base: 1_065_536, count: 65_536 },
}

test('layers go under the overlay topmost first, shifted into the tenant’s range', () => {
  expect(enterOptions(rootfs)).toEqual([
    ...['--idmap', '0:1065536:65536'],
    ...['--lower', '/layers/sha256/top', '/attempts/att_1/lower/0'],
    ...['--lower', '/layers/sha256/base', '/attempts/att_1/lower/1'],
    ...['--overlay', '/attempts/att_1/rootfs', '/pool/att_1/upper', '/pool/att_1/work'],
  ])
})

test('an image without layers is a bug, not an empty root', () => {
  expect(() => enterOptions({ ...rootfs, layers: [] })).toThrow('broken invariant')
})
