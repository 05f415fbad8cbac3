// sandbox.ts: sandboxes as callers of the API have them, and a bare container beside one, for the sections that measure
// what goes on in them.
import { createExec, createSandbox, deleteSandbox, getSandbox, MiB, type Sandbox } from '@berth/contracts'
import { Client } from '@berth/sdk'
import { type Container, type FloorLimits, openFloor } from './floor.js'
import type { Installation } from './installation.js'

/** Of what runs in a sandbox rather than starts one: nothing that is measured should meet them. */
const roomy: FloorLimits = { memoryBytes: 1024 * MiB, cpus: 2 }

/** A client of a tenant of its own, which may have whatever the node has. Nothing is tried twice. */
export async function openTenant(at: Installation): Promise<Client> {
  const most = { memoryBytes: 2 ** 50, diskBytes: 2 ** 50, pids: 4_194_304 } as const
  const apiKey = await at.tenant({ sandboxes: 1000, cpus: 1000, ...most })
  return new Client({ url: at.url, apiKey, retries: 0, connections: 64 })
}

export const create = (
  client: Client,
  spec: FloorLimits & { readonly diskBytes?: number },
  image = 'debian',
): Promise<Sandbox> => client.call(createSandbox, { body: { image, limits: spec } })

/** Runs `true` by one call, and looks at what came of it. */
export async function runTrue(client: Client, { id }: Pick<Sandbox, 'id'>): Promise<void> {
  const params = { sandbox: id }
  const query = { wait: 'ended', output: 'true' } as const
  const { state, exitCode, output } = await client.call(createExec, { params, query, body: { command: ['true'] } })
  if (state !== 'exited' || exitCode !== 0 || output?.stdout.data !== '' || output.stderr.data !== '')
    throw new Error(`true in ${id}: ${JSON.stringify({ state, exitCode, output })}`)
}

/** Deletes a sandbox and waits until nothing of it is left. */
export async function remove(client: Client, { id }: Pick<Sandbox, 'id'>): Promise<void> {
  const params = { sandbox: id }
  await client.call(deleteSandbox, { params, query: { force: 'true' } })
  const { state, phase } = await client.call(getSandbox, { params, query: { wait: 'deleted', timeoutMs: '60s' } })
  if (state !== 'deleted') throw new Error(`${id} is ${state} (${phase}) a minute after its deletion`)
}

/** A sandbox and its peer: a container of the same image and limits by the bare runtime. Both run. */
export interface Pair extends AsyncDisposable {
  readonly client: Client
  readonly sandbox: Sandbox
  readonly container: Container
}

export async function openPair(at: Installation): Promise<Pair> {
  const floor = await openFloor(at.imagesDir, 'debian:latest', at.seccompBpf(), roomy)
  const client = await openTenant(at)
  const container = await floor.start()
  const sandbox = await create(client, roomy)
  await runTrue(client, sandbox)
  return {
    client,
    sandbox,
    container,
    async [Symbol.asyncDispose]() {
      await remove(client, sandbox)
      await client.close()
      await container.close()
      await floor.close()
    },
  }
}
