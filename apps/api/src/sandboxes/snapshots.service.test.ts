import { Readable } from 'node:stream'
import { Failure, Fault, KeyId, mintId, SandboxId, SandboxSpec, TenantId } from '@berth/contracts'
import { OutcomeUnknown } from '@berth/persistence'
import { expect, test } from '@jest/globals'
import type { TenantPrincipal } from '../http/auth.js'
import type { Once } from '../http/route.decorator.js'
import type { TransfersService } from '../images/transfers.service.js'
import type { ImageGate } from '../scan/image-gate.js'
import type { SandboxCalls, SandboxRequest } from '../streams/sandbox-calls.js'
import type { Logger } from '../tokens.js'
import type { SandboxesService } from './sandboxes.service.js'
import { SnapshotsService } from './snapshots.service.js'

const mint = (kind: 'tenant' | 'sandbox' | 'key') => mintId(kind, 1, new Uint8Array(10))
const principal: TenantPrincipal = {
  ...{ kind: 'tenant', tenantId: TenantId.parse(mint('tenant')), keyId: KeyId.parse(mint('key')) },
  ...{ scopes: new Set(), requestsPerMinute: 1, until: null, credential: { kind: 'key' } as never },
}
const source = { id: SandboxId.parse(mint('sandbox')), labels: {}, spec: SandboxSpec.parse({ image: 'app' }) }

type Outcome = 'holding' | 'judging' | 'admitting'

/** Forks a sandbox, which fails at one place. @returns what it failed with, and what was asked of node and gate */
async function failedFork(at: Outcome, why: Error) {
  const asked: string[] = []
  const passOrFail = (here: Outcome) => (here === at ? Promise.reject(why) : Promise.resolve())
  const note = ({ method, path, alsoDeleted }: SandboxRequest) =>
    asked.push(`${method} ${path.slice(0, 2).join('/')}${alsoDeleted ? ' of whatever is left' : ''}`)
  const calls = {
    json: async (_: unknown, __: string, request: SandboxRequest) => {
      note(request)
      await passOrFail('holding')
      return { image: 'sha256:app' }
    },
    call: async (_: unknown, __: string, request: SandboxRequest) => {
      note(request)
      return { body: Readable.from([]) }
    },
  }
  const sandboxes = {
    get: async () => source,
    check: () => undefined,
    fork: async () => {
      asked.push('fork')
      await passOrFail('admitting')
      return []
    },
  }
  const images = {
    pass: async (_: unknown, text: string, digest: string) => {
      asked.push(`judge ${text} ${digest}`)
      await passOrFail('judging')
    },
  }
  const service = new SnapshotsService(
    calls as unknown as SandboxCalls,
    {} as TransfersService,
    sandboxes as unknown as SandboxesService,
    images as unknown as ImageGate,
    { warn: () => undefined } as unknown as Logger,
  )
  const once: Once = (_, work) => work()
  const call = { principal, sandbox: source.id, signal: new AbortController().signal }
  const error = await service.fork(call, { count: 2, start: true, pause: true }, once).catch((caught) => caught)
  expect(error).toBe(why)
  return asked
}

const held = ['POST snapshot/hold', 'judge app sha256:app', 'fork']

test('the copy of a fork that was not admitted is let go of, and kept where nobody knows that', async () => {
  const release = 'DELETE snapshot/hold of whatever is left'
  expect(await failedFork('admitting', new Failure('quota_exceeded', 'no'))).toEqual([...held, release])
  expect(await failedFork('admitting', new Fault('fork a sandbox', { cause: 'it was broken off' }))).toEqual([
    ...held,
    release,
  ])
  expect(await failedFork('admitting', new OutcomeUnknown('the connection was ended'))).toEqual(held)
})

test('an image that is refused by now is not forked', async () => {
  expect(await failedFork('judging', new Failure('policy_forbidden', 'no'))).toEqual([
    ...held.slice(0, 2),
    'DELETE snapshot/hold of whatever is left',
  ])
})

test('what a node has not answered may have been done; what it has refused was not', async () => {
  const [hold] = held
  expect(await failedFork('holding', new Failure('wrong_state', 'no'))).toEqual([hold])
  for (const why of [new Failure('node_unreachable', 'no'), new Fault('read the answer', { cause: 'cut' })])
    expect(await failedFork('holding', why)).toEqual([hold, 'DELETE snapshot/hold of whatever is left'])
})
