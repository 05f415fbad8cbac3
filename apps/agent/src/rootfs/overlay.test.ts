import { expect, test } from '@jest/globals'
import { type Attachment, attachedBinds, attachedInput, attachOptions, enterOptions } from './overlay.js'

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

test('what is attached is mounted apart from the root, and bound from there; what is in files is no argument', () => {
  const attachments: readonly Attachment[] = [
    { kind: 'layers', layers: ['/l/top', '/l/base'], path: '/src', writable: false, target: '/in' },
    { kind: 'layers', layers: ['/l/base'], path: '/', writable: true, target: '/rw' },
    { kind: 'volume', directory: '/pool/cache_1', readOnly: false, target: '/cache' },
    { kind: 'file', bytes: Buffer.from('hush'), uid: 1000, gid: 0, mode: 0o400, target: '/run/secrets/a' },
    { kind: 'file', bytes: Buffer.from('!'), uid: 0, gid: 5, mode: 0o444, target: '/run/secrets/b' },
  ]
  const at = (i: number) => `/attempts/att_1/attached/${i}`
  expect(attachOptions(attachments, rootfs)).toEqual([
    ...['--lower', '/l/top', '/attempts/att_1/lower/0', '--lower', '/l/base', '/attempts/att_1/lower/1'],
    ...['--overlay-ro', at(0)],
    ...['--lower', '/l/base', '/attempts/att_1/lower/0'],
    ...['--overlay', at(1), '/pool/att_1/scratch-1/upper', '/pool/att_1/scratch-1/work'],
    ...['--volume', '/pool/cache_1', at(2)],
    ...['--file', at(3), '1066536', '1065536', '400', '4'],
    ...['--file', at(4), '1065536', '1065541', '444', '1'],
  ])
  expect(attachedBinds(attachments, rootfs.directory)).toEqual([
    { path: '/in', source: `${at(0)}/src`, readOnly: true },
    { path: '/rw', source: `${at(1)}/`, readOnly: false },
    { path: '/cache', source: at(2), readOnly: false },
    { path: '/run/secrets/a', source: `${at(3)}/content`, readOnly: true },
    { path: '/run/secrets/b', source: `${at(4)}/content`, readOnly: true },
  ])
  expect(Buffer.from(attachedInput(attachments) ?? []).toString()).toBe('hush!')
  expect(attachedInput(attachments.slice(0, 3))).toBeUndefined()
})
