import { Readable } from 'node:stream'
import { Fault, type NodeId, type TenantId } from '@berth/contracts'
import type { Streams } from '@berth/node-rpc'
import { expect, test } from '@jest/globals'
import { z } from 'zod'
import type { TenantPrincipal } from '../http/auth.js'
import type { Database } from '../tokens.js'
import { NodeCalls, valuesIn } from './node-calls.js'
import type { NodeDoors } from './node-doors.js'
import { SandboxCalls } from './sandbox-calls.js'
import type { Watch } from './watch.js'

const { signal } = new AbortController()
const schema = z.object({ a: z.number() })
const streamsOf = (body: Readable) => ({ call: async () => ({ status: 200, headers: {}, body }) }) as unknown as Streams
const doors = { of: async () => ({}) } as unknown as NodeDoors
const watch = { begin: () => ({ signal, stop: () => undefined }) } as unknown as Watch

const answering = (body: Readable) => {
  const calls = new NodeCalls(streamsOf(body), doors, watch)
  return calls.json(
    { principal: undefined, signal },
    'nod_1' as NodeId,
    'images',
    { method: 'GET', rest: ['a'] },
    schema,
  )
}

/** The same of a sandbox's node. */
const answeringFor = (body: Readable) => {
  const located = { id: 'sbx_1', nodeId: 'nod_1', state: 'running' }
  const database = { sandboxes: { locate: async () => located } } as unknown as Database
  const calls = new SandboxCalls(database, streamsOf(body), { now: () => new Date() }, doors, watch)
  const caller = { kind: 'tenant', tenantId: 'ten_1' as TenantId } as TenantPrincipal
  return calls.json(caller, 'mine', { method: 'PUT', path: ['files'], body: Readable.from([]), signal }, schema)
}

test.each(['', 'no JSON', '{"a":', '{"a":"b"}'])('an answer %j is a fault of the node', async (text) => {
  const body = () => Readable.from([Buffer.from(text)])
  await expect(answering(body())).rejects.toThrow(Fault)
  await expect(answeringFor(body())).rejects.toThrow(Fault)
  if (text === '') return
  const values = valuesIn(body(), 'nod_1' as NodeId, schema, () => true)
  await expect(values.next()).rejects.toThrow(Fault)
})

test('an answer that is taken whole has an end, by however many lines it comes', async () => {
  let pieces = 0
  const endless = Readable.from(
    (function* () {
      const piece = Buffer.alloc(1024 * 1024, '\n')
      for (; pieces < 1000; pieces++) yield piece
    })(),
  )
  await expect(answering(endless)).rejects.toMatchObject({ cause: 'over 67108864 bytes' })
  expect(endless.destroyed).toBe(true)
  expect(pieces).toBeLessThan(1000)
  for (const ask of [answering, answeringFor])
    expect(await ask(Readable.from([Buffer.from('{"a"'), Buffer.from(':\n1}')]))).toEqual({ a: 1 })
})
