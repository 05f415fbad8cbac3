import { type ErrorCode, problems, routes } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { methodsOf, problemDocument } from './problem.filter.js'

const codes = Object.keys(problems).filter((code): code is ErrorCode => code in problems)

test.each(codes)('%s is a whole problem document', (code) => {
  const { status, body } = problemDocument(code, 'what happened', 'req_1', { field: 'x' })
  expect(body).toEqual({
    type: `urn:berth:problem:${code}`,
    title: problems[code].title,
    status,
    code,
    detail: 'what happened',
    requestId: 'req_1',
    field: 'x',
  })
})

test('who must authenticate is told how, and who must wait how long', () => {
  expect(problemDocument('key_revoked', '', '').headers['www-authenticate']).toContain('Bearer')
  expect(problemDocument('rate_limited', '', '', { retryAfterSeconds: 7 }).headers['retry-after']).toBe('7')
})

test.each<[string, string[]]>([
  ['/v1/jobs', ['GET', 'POST']],
  ['/v1/jobs/job_1', ['DELETE', 'GET']],
  ['/v1/jobs/job_1/output/stdout', ['GET']],
  ['/v1/nothing', []],
  ['/v1/jobs/', ['DELETE', 'GET']],
])('%s takes %j', (path, methods) => expect(methodsOf(routes, path).sort()).toEqual(methods))
