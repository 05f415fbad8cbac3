import { Readable } from 'node:stream'
import { mintId, NodeId, SandboxId, TenantId } from '@berth/contracts'
import type { Streams } from '@berth/node-rpc'
import { expect, test } from '@jest/globals'
import type { Database } from '../tokens.js'
import type { NodeDoors } from './node-doors.js'
import { SandboxCalls } from './sandbox-calls.js'
import type { Watch } from './watch.js'

const mint = (kind: 'tenant' | 'sandbox' | 'node') => mintId(kind, 1, new Uint8Array(10))
const [id, tenantId] = [SandboxId.parse(mint('sandbox')), TenantId.parse(mint('tenant'))]

test('the node of a deleted sandbox is asked only for what it may have of that', async () => {
  const asked: string[] = []
  const located = { id, tenantId, nodeId: NodeId.parse(mint('node')), state: 'deleted' }
  const calls = new SandboxCalls(
    { sandboxes: { locate: async () => located } } as unknown as Database,
    {
      call: async ({ method, path }: { method: string; path: string }) => {
        asked.push(`${method} ${path}`)
        return { status: 204, headers: {}, body: Readable.from([]) }
      },
    } as unknown as Streams,
    { now: () => new Date(0) },
    { of: async () => ({}) } as unknown as NodeDoors,
    { begin: () => ({ signal: new AbortController().signal, stop: () => undefined }) } as unknown as Watch,
  )
  const release = { method: 'DELETE', path: ['snapshot', 'hold', 'x'], signal: new AbortController().signal } as const
  const by = { kind: 'guest', tenantId } as const
  await expect(calls.call(by, id, release)).rejects.toMatchObject({ code: 'sandbox_not_found' })
  expect(asked).toEqual([])
  await calls.call(by, id, { ...release, alsoDeleted: true })
  expect(asked).toEqual([expect.stringMatching(new RegExp(`^DELETE .*${id}/snapshot/hold/x$`))])
})
