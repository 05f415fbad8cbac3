export * from './build.js'
export * from './fairness.js'
export * from './image.js'
export * from './lifecycle.js'
export * from './placement.js'
export * from './policy.js'
export * from './quota.js'
export {
  compare as compareStanding,
  type Differences,
  type HeldTenant,
  MISSING_MS,
  type Overdue,
  otherLimits,
  overdue,
  RESEND_AFTER_MS,
  type Said,
  type SaidAttempt,
  type Wanted,
  type WantedAttempt,
} from './reconcile.js'
export * from './restart.js'
export * from './retry.js'
export * from './sandbox.js'
export * from './sandbox-due.js'
export * from './sandbox-fork.js'
export * from './sandbox-report.js'
export * from './sandbox-request.js'
export * from './sandbox-wait.js'
export * from './template.js'
export * from './text.js'
export * from './turns.js'
