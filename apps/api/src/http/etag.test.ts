import { expect, test } from '@jest/globals'
import { etagOf, ifMatch } from './etag.js'

test('a version goes into an ETag and comes back from If-Match', () => expect(ifMatch(etagOf(42))).toBe(42))

test.each([undefined, '*', ' * '])('%p asks for no version', (header) => expect(ifMatch(header)).toBeUndefined())

test.each(['3', 'W/"3"', '"x"', '"1", "2"', '""', '"99999999999999"'])('%s is refused', (header) =>
  expect(() => ifMatch(header)).toThrow('If-Match'),
)
