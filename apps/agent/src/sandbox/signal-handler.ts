import { Failure } from '@berth/contracts'
import type { SandboxHandler } from '@berth/node-rpc'
import { z } from 'zod'
import type { Residents } from './residents.js'

const Body = z.strictObject({ signal: z.number().int().min(1).max(64) })

/** What the API may ask about signals: `POST signal` sends one to the main process. */
export const signalHandler = (residents: Pick<Residents, 'signal'>): SandboxHandler => ({
  async request(call) {
    if (call.method !== 'POST' || call.rest.length !== 1)
      throw new Failure('route_not_found', 'no such request about signals')
    const { signal } = await call.json(Body)
    residents.signal(call.sandboxId, signal)
    await call.answer(204)
  },
})
