import { Failure } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { refusedRange, savedAs } from './files.service.js'

test.each([
  ['/a/b.txt', '', 'attachment; filename="b.txt"'],
  ['/a/b/', '.tar', 'attachment; filename="b.tar"'],
  ['/', '.tar', 'attachment; filename="root.tar"'],
  ['/a "b"\\\r\n; x', '', 'attachment; filename="a _b____; x"; filename*=UTF-8\'\'a%20%22b%22%5C%0D%0A%3B%20x'],
  ['/ünï', '', 'attachment; filename="_n_"; filename*=UTF-8\'\'%C3%BCn%C3%AF'],
  ["/it's(1)*", '', "attachment; filename=\"it's(1)_\"; filename*=UTF-8''it%27s%281%29%2A"],
])('%s is saved as its last part', (path, suffix, header) => {
  expect(savedAs(path, suffix)).toBe(header)
})

test('a refused range is answered with the size', () => {
  expect(refusedRange(new Failure('range_not_satisfiable', 'x', { sizeBytes: 10 }))).toBe('bytes */10')
  expect(refusedRange(new Failure('path_not_found', 'x', { sizeBytes: 10 }))).toBeUndefined()
  expect(refusedRange(new Error('x'))).toBeUndefined()
})
