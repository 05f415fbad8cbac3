import {
  createBatch,
  createJob,
  InvalidRequest,
  JobId,
  JobSpec,
  listJobs,
  updateSandbox,
  type Violation,
} from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import type { z } from 'zod'
import { pageAnswer, pageRequest } from './paging.js'
import { fieldOf, parseWith } from './violations.js'

function violations(schema: z.ZodType, value: unknown): readonly Violation[] {
  try {
    parseWith(schema, value, 'body')
    return []
  } catch (error) {
    if (error instanceof InvalidRequest) return error.violations
    throw error
  }
}

const fields = (schema: z.ZodType, value: unknown) =>
  violations(schema, value)
    .map(({ field }) => field)
    .sort()
const lines = (schema: z.ZodType, value: unknown) =>
  violations(schema, value).map(({ field, message }) => `${field}: ${message}`)

describe('parseWith', () => {
  test.each<[unknown, string[]]>([
    [{ command: ['true'] }, []],
    [undefined, ['body']],
    [[], ['body']],
    [{}, ['command']],
    [{ command: ['true'], comand: 1 }, ['comand']],
    [{ command: ['true'], limits: { memory: 1, cpus: -1 } }, ['limits.cpus', 'limits.memory']],
    [{ command: ['a', 'b\0'] }, ['command[1]']],
    [{ command: ['a', '\ud800'] }, ['command[1]']],
    [{ command: ['a'], env: { 'A\nB': 'x' } }, ['env["A\\nB"]']],
    [{ command: ['a'], env: { A: '\udc00' } }, ['env.A']],
    [{ command: ['a'], retry: { on: ['rain'] } }, ['retry.on[0]']],
  ])('%j is wrong in %j', (value, wrong) => expect(fields(JobSpec, value)).toEqual(wrong))

  test.each<[unknown, string]>([
    [{ memoryBytes: null }, 'limits.memoryBytes: must not be null'],
    [{ cpus: null }, 'limits.cpus: must not be null'],
    [{ ulimits: null }, 'limits.ulimits: must not be null'],
    [{ memoryBytes: true }, 'limits.memoryBytes: must be a whole number of bytes or a size such as "256m"'],
    [{ cpuset: '' }, 'limits.cpuset: must be a list of CPUs such as "0-3,6"'],
    [{ cpuset: null, cpuShares: null, cpuPeriodUs: null, ioWeight: null, memoryReservationBytes: null }, ''],
  ])('of a change of limits to %j is said %j', (limits, said) =>
    expect(lines(updateSandbox.body, { limits }).join()).toBe(said),
  )

  test('a batch names the job', () => {
    const jobs = [{ command: ['a'] }, { command: ['a'], limits: { cpus: -1 } }, {}]
    expect(fields(createBatch.body, { jobs })).toEqual(['jobs[1].limits.cpus', 'jobs[2].command'])
  })

  test('what is not known in a query is refused', () => {
    expect(fields(createJob.query, { wiat: 'finished' })).toEqual(['wiat'])
    expect(fields(listJobs.query, { limit: 'abc', colour: 'red' })).toEqual(['colour', 'limit'])
  })

  test('a thousand wrong things are a hundred lines', () => {
    expect(fields(createBatch.body, { jobs: Array.from({ length: 1000 }, () => ({})) })).toHaveLength(100)
  })

  test('whatever is sent, the answer is the value or a list of fields', () => {
    fc.assert(
      fc.property(fc.anything({ withNullPrototype: true }), (value) => {
        expect(fields(JobSpec, value).length).toBeLessThanOrEqual(100)
      }),
    )
  })
})

test.each<[(string | number)[], string]>([
  [[], 'body'],
  [['jobs', 3, 'command', 0], 'jobs[3].command[0]'],
  [['labels', 'app/tier'], 'labels.app/tier'],
  [['env', 'A B'], 'env["A B"]'],
])('path %j is written %s', (path, text) => expect(fieldOf(path, 'body')).toBe(text))

describe('cursors', () => {
  const id = JobId.parse('job_01m8606a5n9b1pak63ykk14yez')

  test('the cursor of a page leads to what follows it', () => {
    const { nextCursor } = pageAnswer({ items: [], next: id })
    expect(pageRequest({ cursor: nextCursor ?? '', limit: 9 }, JobId)).toEqual({ limit: 9, after: id })
    expect(pageAnswer({ items: [1], next: null })).toEqual({ items: [1], nextCursor: null })
  })

  test.each(['', 'x', 'a'.repeat(200), Buffer.from('ten_01m8606a5n9b1pak63ykk14yez').toString('base64url')])(
    'the cursor %j is refused',
    (cursor) => expect(() => pageRequest({ cursor, limit: 9 }, JobId)).toThrow(InvalidRequest),
  )

  test('a cursor with anything added is refused', () => {
    const cursor = Buffer.from(id).toString('base64url')
    expect(() => pageRequest({ cursor: `${cursor}=`, limit: 9 }, JobId)).toThrow(InvalidRequest)
  })
})
