import { expect, test } from '@jest/globals'
import { historyOf } from './history.plan.js'

const now = new Date('2026-01-02T00:00:00Z')
const layer = (name: string, unpackedBytes: number) => ({
  ...{ diffId: name, digest: name, mediaType: 'tar', sizeBytes: 1, unpackedBytes },
})
const entry = (createdBy: string, emptyLayer: boolean, createdAt: string | null = '2026-01-01T00:00:00Z') => ({
  ...{ createdBy, emptyLayer, createdAt, comment: '' },
})

test('each entry that made a layer has it, newest first', () => {
  const history = [entry('ADD root', false), entry('ENV A=1', true), entry('RUN make', false)]
  const seen = historyOf({ history, layers: [layer('a', 10), layer('b', 20)] }, now)
  expect(seen.map((one) => [one.createdBy, one.digest, one.sizeBytes, one.ageMs])).toEqual([
    ['RUN make', 'b', 20, 86_400_000],
    ['ENV A=1', null, 0, 86_400_000],
    ['ADD root', 'a', 10, 86_400_000],
  ])
})

test('a history that is missing, or that tells of layers that are not there', () => {
  expect(historyOf({ history: [], layers: [layer('a', 10)] }, now)).toMatchObject([{ digest: 'a', createdBy: '' }])
  expect(historyOf({ history: [entry('RUN', false)], layers: [] }, now)).toMatchObject([{ digest: null, sizeBytes: 0 }])
})

test.each([null, 'yesterday', '1970-01-01T00:00:00Z', '0001-01-01T00:00:00Z'])('%s is no time to count from', (at) =>
  expect(historyOf({ history: [entry('RUN', true, at)], layers: [] }, now)[0]?.ageMs).toBeNull(),
)
