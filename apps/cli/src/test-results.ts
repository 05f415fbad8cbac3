// test-results.ts: what jest's JSON says, added up. A test that passed only when it was tried again is told by name: a
// retry keeps one slow moment of a shared machine from failing a whole run, it must not hide a test that is unsound.
import { z } from 'zod'

/** The parts of `jest --json` that count. */
const JestResults = z.object({
  numPassedTests: z.number(),
  numFailedTests: z.number(),
  numFailedTestSuites: z.number(),
  testResults: z.array(
    z.object({
      assertionResults: z.array(
        z.object({
          fullName: z.string(),
          status: z.string(),
          invocations: z.number().optional(),
        }),
      ),
    }),
  ),
})

export interface Tally {
  readonly passed: number
  readonly failed: number
  /** Full names. */
  readonly retried: readonly string[]
}

/**
 * @param results parsed output of `jest --json`; anything else, or a run that failed without a failed test (its set-up
 *   or tear-down did), counts as one failure
 * @param exitCode of jest
 */
export function tallyOf(results: unknown, exitCode: number): Tally {
  const parsed = JestResults.safeParse(results)
  if (!parsed.success) return { passed: 0, failed: 1, retried: [] }
  const { numPassedTests, numFailedTests, numFailedTestSuites, testResults } = parsed.data
  // A file that could not be loaded has no failed test, but failed.
  const failed = Math.max(numFailedTests, numFailedTestSuites, exitCode === 0 ? 0 : 1)
  const retried = testResults
    .flatMap(({ assertionResults }) => assertionResults)
    .filter(({ status, invocations = 1 }) => status === 'passed' && invocations > 1)
    .map(({ fullName }) => fullName)
  return { passed: numPassedTests, failed, retried }
}

/** A step that is one test as a whole. */
export const tallyOfStep = (exitCode: number): Tally => ({
  passed: exitCode === 0 ? 1 : 0,
  failed: exitCode === 0 ? 0 : 1,
  retried: [],
})

export const sum = (tallies: readonly Tally[]): Tally => ({
  passed: tallies.reduce((total, { passed }) => total + passed, 0),
  failed: tallies.reduce((total, { failed }) => total + failed, 0),
  retried: tallies.flatMap(({ retried }) => retried),
})
