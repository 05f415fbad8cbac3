import { expect, test } from '@jest/globals'
import { codingOf } from './console.js'

test.each<[string | undefined, readonly string[], string | undefined]>([
  ['gzip, deflate, br, zstd', ['br', 'gz'], 'br'],
  ['gzip, br', ['gz'], 'gzip'],
  ['br;q=0, gzip;q=0.5', ['br', 'gz'], 'gzip'],
  ['GZIP', ['br', 'gz'], 'gzip'],
  ['identity', ['br', 'gz'], undefined],
  ['br', [], undefined],
  [undefined, ['br', 'gz'], undefined],
])('who accepts %j gets of %j %j', (accepted, there, coding) => {
  expect(codingOf(accepted, (extension) => there.includes(extension))?.name).toBe(coding)
})
