import { Fault } from '@berth/contracts'
import { readJson, writeAtomic } from '@berth/host'
import { z } from 'zod'
import type { Places } from './up/config.js'

const Credentials = z.object({
  url: z.string(),
  operatorKey: z.string(),
  nodeToken: z.string().optional(),
  apiKey: z.string().optional(),
})
export type Credentials = z.infer<typeof Credentials>

/** What `up` has written so far; undefined before its first run. */
export const loadCredentials = (places: Places): Promise<Credentials | undefined> =>
  readJson(places.credentials, (value) => Credentials.parse(value))

export async function saveCredentials(places: Places, credentials: Credentials): Promise<void> {
  await writeAtomic(places.credentials, JSON.stringify(credentials, undefined, 2), { mode: 0o600 })
}

/** Where the API is, and a tenant's key: from BERTH_URL and BERTH_API_KEY, else from what `up` wrote. */
export async function readCredentials(places: Places): Promise<{ readonly url: string; readonly apiKey: string }> {
  const { BERTH_URL, BERTH_API_KEY } = process.env
  if (BERTH_URL && BERTH_API_KEY) return { url: BERTH_URL, apiKey: BERTH_API_KEY }
  const found = await loadCredentials(places)
  if (!found?.apiKey) throw new Fault('find the API', { cause: 'run `./berth up`, or set BERTH_URL and BERTH_API_KEY' })
  return { url: found.url, apiKey: found.apiKey }
}
