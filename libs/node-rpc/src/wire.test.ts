import { AttemptId, mintId } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { outputPath, parseOutputPath } from './wire.js'

const id = mintId('attempt', 1, Buffer.alloc(10, 7))

test('what is written is read back', () => {
  const request = fc.record({
    attemptId: fc
      .uint8Array({ minLength: 10, maxLength: 10 })
      .map((bytes) => AttemptId.parse(mintId('attempt', 1, bytes))),
    stream: fc.constantFrom('stdout' as const, 'stderr' as const),
    since: fc.integer({ min: 0, max: 999_999_999_999_999 }),
    follow: fc.boolean(),
  })
  fc.assert(fc.property(request, (one) => expect(parseOutputPath(outputPath(one))).toEqual(one)))
})

test.each([
  '/',
  `/v1/attempts/${id}/output/stdout`,
  `/v1/attempts/${id}/output/stdin?since=0&follow=true`,
  `/v1/attempts/${id}/output/stdout?since=-1&follow=true`,
  `/v1/attempts/${id}/output/stdout?since=1e3&follow=true`,
  `/v1/attempts/${id}/output/stdout?since=00&follow=true`,
  `/v1/attempts/${id}/output/stdout?since=0&follow=1`,
  `/v1/attempts/${id}/output/stdout?follow=true&since=0`,
  `/v1/attempts/${id}/output/stdout?since=0&follow=true&x=1`,
  `/v1/attempts/${id}/output/stdout?since=0&follow=true#x`,
  `/v1/attempts/${id}/../${id}/output/stdout?since=0&follow=true`,
  `//v1/attempts/${id}/output/stdout?since=0&follow=true`,
  '/v1/attempts/../../etc/passwd/output/stdout?since=0&follow=true',
  `/v1/attempts/${id}%00/output/stdout?since=0&follow=true`,
  `/v1/attempts/job_${id.slice(4)}/output/stdout?since=0&follow=true`,
])('refuses %s', (path) => expect(parseOutputPath(path)).toBeUndefined())
