import { expect, test } from '@jest/globals'
import { sum, tallyOf, tallyOfStep } from './test-results.js'

const results = (assertionResults: readonly object[], counts: object = {}) => ({
  numPassedTests: 2,
  numFailedTests: 0,
  numFailedTestSuites: 0,
  testResults: [{ assertionResults }],
  ...counts,
})

test('a test that passed only when it was tried again is named', () => {
  const flaky = { fullName: 'suite flaky', status: 'passed', invocations: 2 }
  const sound = { fullName: 'suite sound', status: 'passed', invocations: 1 }
  const hopeless = { fullName: 'suite hopeless', status: 'failed', invocations: 3 }
  const tally = tallyOf(results([flaky, sound, hopeless], { numFailedTests: 1, numFailedTestSuites: 1 }), 1)
  expect(tally).toEqual({ passed: 2, failed: 1, retried: ['suite flaky'] })
})

test.each([
  ['no results at all', undefined, 1],
  ['results of another shape', { numPassedTests: 'many' }, 0],
])('%s are a failure', (_, given, exitCode) => {
  expect(tallyOf(given, exitCode)).toEqual({ passed: 0, failed: 1, retried: [] })
})

test('a run that fails without a failed test counts as one, a file that cannot be loaded too', () => {
  expect(tallyOf(results([]), 1).failed).toBe(1)
  expect(tallyOf(results([], { numFailedTestSuites: 2 }), 1).failed).toBe(2)
  expect(tallyOf(results([]), 0).failed).toBe(0)
})

test('sums add up', () => {
  const one = { passed: 3, failed: 0, retried: ['x'] }
  expect(sum([one, tallyOfStep(0), tallyOfStep(2)])).toEqual({ passed: 4, failed: 1, retried: ['x'] })
})
