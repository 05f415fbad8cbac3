// installation.ts: the running Berth that is measured, as `./berth up` left it.
import { readdirSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { type Capacity, createTenant, createTenantKey, listNodes, type Quota } from '@berth/contracts'
import { Client } from '@berth/sdk'
import { z } from 'zod'

export interface Installation {
  readonly url: string
  readonly dataDir: string
  /** OCI layout of the images that jobs can use. */
  readonly imagesDir: string
  /** A tenant of its own, so that nothing else counts against its quota. @returns the secret of a key for everything */
  tenant(quota: Partial<Quota>): Promise<string>
  /** What is free of its node. @throws unless it has exactly one */
  room(): Promise<Capacity>
  /** Resident memory of API and agent, MiB. */
  memory(): Memory
  /** The filter that the agent had compiled for it, base64; undefined where its runtime takes none. */
  seccompBpf(): string | undefined
}

export interface Memory {
  readonly api: number
  readonly agent: number
}

const Credentials = z.object({ url: z.string(), operatorKey: z.string() })
const Daemon = z.object({ pid: z.number() })

/** @param dataDir of `./berth up`. @throws when nothing was started there */
export function installation(dataDir: string): Installation {
  const read = (path: string): unknown => JSON.parse(readFileSync(join(dataDir, path), 'utf8'))
  const { url, operatorKey } = Credentials.parse(read('credentials.json'))
  let tenants = 0
  return {
    url,
    dataDir: resolve(dataDir),
    imagesDir: join(dataDir, 'images'),
    async tenant(quota) {
      await using operator = new Client({ url, apiKey: operatorKey })
      const name = `bench-${Date.now().toString(36)}-${tenants++}`
      const body = { name, quota: { requestsPerMinute: 10_000_000, ...quota } }
      const { id } = await operator.call(createTenant, { body })
      return (await operator.call(createTenantKey, { params: { tenantId: id }, body: { name } })).secret
    },
    async room() {
      await using operator = new Client({ url, apiKey: operatorKey })
      const [node, ...others] = (await operator.call(listNodes, { query: {} })).items
      if (!node || others.length > 0) throw new Error('a benchmark is of one node')
      const { capacity, used } = node
      return {
        cpus: capacity.cpus - used.cpus,
        memoryBytes: capacity.memoryBytes - used.memoryBytes,
        diskBytes: capacity.diskBytes - used.diskBytes,
        sandboxes: capacity.sandboxes - used.sandboxes,
      }
    },
    memory: () => ({ api: residentMiB(read('run/api.json')), agent: residentMiB(read('run/agent.json')) }),
    seccompBpf() {
      const directory = join(dataDir, 'agent', 'seccomp')
      const name = readdirSync(directory).find((file) => /^default-.*\.bpf$/.test(file))
      return name === undefined ? undefined : readFileSync(join(directory, name)).toString('base64')
    },
  }
}

function residentMiB(daemon: unknown): number {
  const status = readFileSync(`/proc/${Daemon.parse(daemon).pid}/status`, 'utf8')
  return Math.round(Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]) / 1024)
}
