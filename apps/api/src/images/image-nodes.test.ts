import { Fault, type HeldImage, type NodeId } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import type { NodeCalls } from '../streams/node-calls.js'
import { ImageNodes } from './image-nodes.js'

test('a node that tells of another image than it was asked for is not believed', async () => {
  const [mine, other] = [`sha256:${'a'.repeat(64)}`, `sha256:${'b'.repeat(64)}`]
  const nodes = new ImageNodes({ json: async () => ({ digest: mine }) as HeldImage } as unknown as NodeCalls)
  const held = (digest: string) =>
    nodes.held({ principal: undefined, signal: new AbortController().signal }, 'nod_1' as NodeId, digest)
  expect(await held(mine)).toEqual({ digest: mine })
  await expect(held(other)).rejects.toThrow(Fault)
})
