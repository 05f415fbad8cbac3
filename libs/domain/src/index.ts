export * from './fairness.js'
export * from './lifecycle.js'
export * from './placement.js'
export * from './quota.js'
export {
  compare as compareAttempts,
  type Differences,
  MISSING_MS,
  type Overdue,
  overdue,
  RESEND_AFTER_MS,
  type SaidAttempt,
  type WantedAttempt,
} from './reconcile.js'
export * from './retry.js'
export * from './text.js'
