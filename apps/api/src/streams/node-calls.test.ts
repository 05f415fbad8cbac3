import { Readable } from 'node:stream'
import type { NodeId } from '@berth/contracts'
import type { Streams } from '@berth/node-rpc'
import { expect, test } from '@jest/globals'
import { z } from 'zod'
import { NodeCalls } from './node-calls.js'
import type { NodeDoors } from './node-doors.js'
import type { Watch } from './watch.js'

const answering = (body: Readable) => {
  const streams = { call: async () => ({ status: 200, headers: {}, body }) } as unknown as Streams
  const doors = { of: async () => ({}) } as unknown as NodeDoors
  const watch = { begin: () => ({ signal: new AbortController().signal, stop: () => undefined }) } as unknown as Watch
  const calls = new NodeCalls(streams, doors, watch)
  const call = { principal: undefined, signal: new AbortController().signal }
  return calls.json(call, 'nod_1' as NodeId, 'images', { method: 'GET', rest: ['a'] }, z.object({ a: z.number() }))
}

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
  expect(await answering(Readable.from([Buffer.from('{"a"'), Buffer.from(':\n1}')]))).toEqual({ a: 1 })
})
