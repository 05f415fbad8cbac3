import { jest } from '@jest/globals'

// Kernel and system tests share a machine with whatever else runs on it, and each takes seconds of real time: one slow
// moment must not fail a run of many hundred. `./berth test` names each test that needed a retry, and every error is
// printed as it happens.
jest.retryTimes(2, { logErrorsBeforeRetry: true })
