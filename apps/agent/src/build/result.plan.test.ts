import type { ImageLayer } from '@berth/contracts'
import { parseImageConfig } from '@berth/oci'
import { expect, test } from '@jest/globals'
import { type BuiltImage, imageConfig } from './result.plan.js'

const layer = (digit: string): ImageLayer => ({
  diffId: `sha256:${digit.repeat(64)}`,
  digest: `sha256:${digit.repeat(64)}`,
  mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip',
  sizeBytes: 1,
  unpackedBytes: 1,
})
const at = (day: number) => `2026-01-0${day}T00:00:00.000Z`

const built: BuiltImage = {
  base: { created: at(1), history: [{ created: at(1), created_by: 'base' }] },
  platform: 'linux/arm/v7',
  config: { Env: ['A=1'], Labels: { a: '1', b: '2' }, Shell: ['/bin/bash', '-c'] },
  labels: { b: '3', c: '4' },
  author: 'somebody',
  layers: [layer('a'), layer('b'), layer('c')],
  history: [
    { created: null, text: 'ENV A=1', emptyLayer: true },
    { created: at(3), text: 'RUN one', emptyLayer: false },
    { created: null, text: 'LABEL a=1', emptyLayer: true },
    { created: at(2), text: 'RUN two', emptyLayer: false },
  ],
  epochMs: undefined,
}
const parsed = (image: BuiltImage) => parseImageConfig(imageConfig(image))

test('what is built is a configuration as others read it', () => {
  expect(parsed(built)).toMatchObject({
    os: 'linux',
    architecture: 'arm',
    variant: 'v7',
    rootfs: { diff_ids: built.layers.map(({ diffId }) => diffId) },
    config: { Env: ['A=1'], Labels: { a: '1', b: '3', c: '4' }, Shell: ['/bin/bash', '-c'] },
  })
  expect(JSON.parse(imageConfig(built).toString())).toMatchObject({ author: 'somebody' })
})

test('steps without a time of their own have that of a step that has one, so equal steps give equal bytes', () => {
  const { history, created } = parsed(built)
  expect(history?.map((step) => [step.created_by, step.created, step.empty_layer ?? false])).toEqual([
    ['base', at(1), false],
    ['ENV A=1', at(3), true],
    ['RUN one', at(3), false],
    ['LABEL a=1', at(3), true],
    ['RUN two', at(2), false],
  ])
  expect(created).toBe(at(2))
  expect(imageConfig(structuredClone(built)).equals(imageConfig(built))).toBe(true)
})

test('without a new layer the time is that of the base; without a base there may be none', () => {
  const label = [{ created: null, text: 'LABEL a=1', emptyLayer: true }]
  expect(parsed({ ...built, history: label })).toMatchObject({ created: at(1), history: [{}, { created: at(1) }] })
  const bare = parsed({ ...built, base: undefined, history: label })
  expect([bare.created, bare.history?.[0]?.created]).toEqual([undefined, null])
})

test('SOURCE_DATE_EPOCH is the time of the image and of all that was made, not of its base', () => {
  const { history, created } = parsed({ ...built, epochMs: 0 })
  expect(created).toBe('1970-01-01T00:00:00.000Z')
  expect(history?.map((step) => step.created)).toEqual([at(1), ...Array.from({ length: 4 }, () => created)])
})
