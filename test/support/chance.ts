import fc from '../../node_modules/fast-check/lib/fast-check.js'

// `fast-check` of all tests (jest.config.mjs): what is tested by chance is the same each time, so that a run says something of the
// code and not of its luck. RUNS=10000 in the environment makes new cases: so many, where a test does not say how many itself.
const { RUNS } = process.env
fc.configureGlobal(RUNS === undefined ? { seed: 20261127 } : { numRuns: Number(RUNS) })

export * from '../../node_modules/fast-check/lib/fast-check.js'
export default fc
