// Sandboxes as values, for tests.
import { mintId, NodeId, SandboxId, SandboxReport, SandboxSpec, TenantId } from '@berth/contracts'
import { newSandbox, type SandboxRecord, stepTo } from './sandbox.js'

export const at = (ms: number): Date => new Date(Date.UTC(2026, 0, 1) + ms)

const id = (kind: 'sandbox' | 'tenant' | 'node') => mintId(kind, 1, new Uint8Array(10))
export const nodeId = NodeId.parse(id('node'))
export const by = 'key_1'

export const givenSpec = (fields: object = {}): SandboxSpec => SandboxSpec.parse(fields)

/** A sandbox that was just created, with fields changed as told. */
export function given(change: Partial<SandboxRecord> = {}, fields: object = {}, start = true): SandboxRecord {
  const place = { nodeId, placedBecause: 'it is the only one' }
  const ids = { id: SandboxId.parse(id('sandbox')), tenantId: TenantId.parse(id('tenant')) }
  const fresh = newSandbox({ ...ids, spec: givenSpec(fields), start, by, now: at(0), ...place })
  return { ...stepTo(undefined, fresh, at(0), { by }).after, ...change }
}

/** One that runs, and whose node has told so. */
export const running = (change: Partial<SandboxRecord> = {}, fields: object = {}): SandboxRecord =>
  given(
    { state: 'running', phase: 'running', acknowledgedGeneration: 1, settled: true, startedAt: at(5), ...change },
    fields,
  )

/** A report of what the record says, with fields changed as told. */
export const report = (record: SandboxRecord, change: object = {}): SandboxReport =>
  SandboxReport.parse({
    kind: 'sandbox',
    sandboxId: record.id,
    generation: record.generation,
    sequence: record.reportSequence + 1,
    state: record.state === 'lost' ? 'running' : record.state,
    phase: record.phase,
    reason: null,
    run: record.run,
    restarts: record.restarts,
    phases: record.phases,
    startedAt: record.startedAt?.toISOString() ?? null,
    endedAt: null,
    lastActivityAt: null,
    endsAt: null,
    ends: [],
    notes: [],
    ...change,
  })
