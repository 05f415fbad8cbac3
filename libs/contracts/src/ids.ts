import { z } from 'zod'

/**
 * Opaque object ids: a prefix that names the kind, `_`, and 26 Crockford base32 digits (48 bits of Unix milliseconds,
 * then 80 random bits, as in the ULID specification), lower case. They sort by creation time, which is what the cursor
 * of every list relies on.
 */
export const prefixes = {
  tenant: 'ten',
  key: 'key',
  node: 'nod',
  job: 'job',
  attempt: 'att',
  batch: 'bat',
  command: 'cmd',
  sandbox: 'sbx',
  exec: 'exe',
  terminal: 'trm',
  share: 'shr',
  build: 'bld',
  snapshot: 'snp',
  request: 'req',
} as const

export type IdKind = keyof typeof prefixes

const alphabet = '0123456789abcdefghjkmnpqrstvwxyz'

const idSchema = <K extends string>(kind: IdKind, brand: K) =>
  z
    .string()
    .regex(new RegExp(`^${prefixes[kind]}_[${alphabet}]{26}$`), `must be an id like ${prefixes[kind]}_01j9…`)
    .brand(brand)

export const TenantId = idSchema('tenant', 'TenantId')
export type TenantId = z.infer<typeof TenantId>
export const KeyId = idSchema('key', 'KeyId')
export type KeyId = z.infer<typeof KeyId>
export const NodeId = idSchema('node', 'NodeId')
export type NodeId = z.infer<typeof NodeId>
export const JobId = idSchema('job', 'JobId')
export type JobId = z.infer<typeof JobId>
export const AttemptId = idSchema('attempt', 'AttemptId')
export type AttemptId = z.infer<typeof AttemptId>
export const BatchId = idSchema('batch', 'BatchId')
export type BatchId = z.infer<typeof BatchId>

export const SandboxId = idSchema('sandbox', 'SandboxId')
export type SandboxId = z.infer<typeof SandboxId>
export const ShareId = idSchema('share', 'ShareId')
export type ShareId = z.infer<typeof ShareId>

export const SnapshotId = idSchema('snapshot', 'SnapshotId')
export type SnapshotId = z.infer<typeof SnapshotId>

export const BuildId = idSchema('build', 'BuildId')
export type BuildId = z.infer<typeof BuildId>

/** Ids that the client may choose, so that a repeated request finds what the first one made. Unique in a sandbox. */
const chosenId = <K extends string>(brand: K) =>
  z
    .string()
    .regex(/^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$/, 'must be 1 to 64 letters, digits, "_" or "-"')
    .brand(brand)
export const ExecId = chosenId('ExecId')
export type ExecId = z.infer<typeof ExecId>
export const TerminalId = chosenId('TerminalId')
export type TerminalId = z.infer<typeof TerminalId>

/**
 * Builds an id from values, so that callers decide on clock and randomness.
 * @param nowMs Unix time in milliseconds, below 2^48
 * @param random at least 10 random bytes; the first 10 are used
 * @returns the id as a string; pass it through the kind's schema to brand it
 */
export function mintId(kind: IdKind, nowMs: number, random: Uint8Array): string {
  if (random.length < 10) throw new RangeError('an id needs 10 random bytes')
  let value = BigInt(Math.trunc(nowMs))
  for (const byte of random.subarray(0, 10)) value = (value << 8n) | BigInt(byte)
  let digits = ''
  for (let i = 0; i < 26; i++) {
    digits = alphabet.charAt(Number(value & 31n)) + digits
    value >>= 5n
  }
  return `${prefixes[kind]}_${digits}`
}
