import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { bytesOf, type PruneCandidate, prunable, resolved } from './image.js'

const digest = `sha256:${'a'.repeat(64)}`

describe('what a name is', () => {
  const base = { key: 'python:latest', digest: null }
  const wanted = { text: 'python', reference: 'docker.io/library/python:latest', digest: null, base }

  test('is an own or public image before it is a base image', () => {
    expect(resolved(wanted, digest)).toEqual({ key: digest, digest })
    expect(resolved(wanted, null)).toEqual({ key: 'python:latest', digest: null })
  })

  test('is none where neither has it', () => expect(resolved({ ...wanted, base: null }, null)).toBeUndefined())

  test('a base image by its digest is run by its digest', () => {
    expect(resolved({ ...wanted, base: { key: 'python:latest', digest } }, null)).toEqual({ key: digest, digest })
  })
})

describe('bytes', () => {
  test('a layer counts once, and is shared when another image has it', () => {
    const layers = [
      { diffId: 'a', bytes: 10, images: 2 },
      { diffId: 'b', bytes: 5, images: 1 },
      { diffId: 'b', bytes: 5, images: 1 },
    ]
    expect(bytesOf(layers)).toEqual({ sizeBytes: 15, uniqueBytes: 5, sharedBytes: 10 })
  })
})

const at = (day: number) => new Date(Date.UTC(2026, 0, day))
const image = (name: string, fields: Partial<PruneCandidate> = {}): PruneCandidate => ({
  digest: name,
  references: [],
  labels: {},
  addedAt: at(1),
  used: false,
  layers: [{ diffId: `layer of ${name}`, bytes: 1 }],
  ...fields,
})
const none = { all: false, before: null, labels: [] }

describe('prune', () => {
  const images = [
    image('dangling'),
    image('named', { references: ['x:latest'] }),
    image('used', { used: true }),
    image('young', { addedAt: at(9) }),
    image('labelled', { labels: { stage: 'test', 'a=b': 'c' } }),
  ]
  test.each([
    ['what no name leads to', none, ['dangling', 'young', 'labelled']],
    ['with all, named ones too', { ...none, all: true }, ['dangling', 'named', 'young', 'labelled']],
    ['by age', { ...none, before: at(9) }, ['dangling', 'labelled']],
    ['by label', { ...none, labels: ['stage'] }, ['labelled']],
    ['by the value of a label', { ...none, labels: ['stage=other'] }, []],
    ['by all labels', { ...none, labels: ['stage=test', 'none'] }, []],
    ['by no label that every object has', { ...none, labels: ['toString'] }, []],
  ])('removes %s', (_, filter, digests) => expect(prunable(images, filter).digests).toEqual(digests))

  const some = fc.array(
    fc.record({
      used: fc.boolean(),
      named: fc.boolean(),
      layers: fc.array(fc.constantFrom('a', 'b', 'c', 'd'), { maxLength: 4 }),
    }),
    { maxLength: 6 },
  )
  const bytes = { a: 1, b: 10, c: 100, d: 1000 } as const
  const total = (all: readonly PruneCandidate[]) =>
    [...new Map(all.flatMap(({ layers }) => layers.map((layer) => [layer.diffId, layer.bytes]))).values()].reduce(
      (sum, one) => sum + one,
      0,
    )
  test('frees exactly what was there before and is not there afterwards, and nothing that is used', () => {
    fc.assert(
      fc.property(some, fc.boolean(), (made, all) => {
        const before = made.map(({ used, named, layers }, i) =>
          image(String(i), {
            used,
            references: named ? ['x'] : [],
            layers: layers.map((diffId) => ({ diffId, bytes: bytes[diffId as keyof typeof bytes] })),
          }),
        )
        const { digests, freedBytes } = prunable(before, { ...none, all })
        const after = before.filter((one) => !digests.includes(one.digest))
        expect(total(before) - total(after)).toBe(freedBytes)
        expect(after.filter((one) => one.used)).toEqual(before.filter((one) => one.used))
      }),
    )
  })
})
