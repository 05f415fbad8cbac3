import { existsSync, mkdirSync, statfsSync, statSync } from 'node:fs'
import { availableParallelism, totalmem } from 'node:os'
import { join } from 'node:path'
import type { Capacity } from '@berth/contracts'
import type { Config } from './config.js'

/** A CPU limit is a ceiling that few jobs reach for long, and shares divide what is there fairly when they do. */
const CPU_OVERCOMMIT = 4
/** The rest is for the machine, the agent and the page cache. */
const MEMORY_SHARE = 0.8
const DISK_SHARE = 0.8
/** Of what is offered the pool has so much more, for what builds keep in cache mounts: sandboxes always find theirs. */
const CACHE_SHARE = 0.1
/** And so much for copies of sandboxes' files, which no reservation counts; they may also have what is not reserved. */
const COPY_SHARE = 0.1
/** Sectors of a loop device, and blocks of the disk below it. */
const BLOCK = 4096

/** What the node offers: what is configured, else what the machine has. */
export function capacityOf(config: Config): Capacity {
  return {
    cpus: config.BERTH_CAPACITY_CPUS ?? availableParallelism() * CPU_OVERCOMMIT,
    memoryBytes: config.BERTH_CAPACITY_MEMORY ?? Math.floor(totalmem() * MEMORY_SHARE),
    diskBytes: config.BERTH_CAPACITY_DISK ?? offered(poolBytes(config.BERTH_AGENT_DATA)),
    sandboxes: config.BERTH_MAX_SANDBOXES,
  }
}

/**
 * How large the pool is made that offers so much; what of it builds may have in cache mounts; and what sandboxes and copies
 * of their files may have together.
 */
export function poolOf({ diskBytes }: Pick<Capacity, 'diskBytes'>): {
  readonly bytes: number
  readonly cacheBytes: number
  readonly filesBytes: number
} {
  const cacheBytes = wholeBlocks(diskBytes * CACHE_SHARE)
  const filesBytes = wholeBlocks(diskBytes) + wholeBlocks(diskBytes * COPY_SHARE)
  return { bytes: filesBytes + cacheBytes, cacheBytes, filesBytes }
}

const offered = (bytes: number) => wholeBlocks(bytes / (1 + CACHE_SHARE + COPY_SHARE))
const wholeBlocks = (bytes: number) => Math.floor(bytes / BLOCK) * BLOCK

/** The size of the pool's file if it has been made, else a share of what is free. */
function poolBytes(dataDirectory: string): number {
  const image = join(dataDirectory, 'pool.img')
  if (existsSync(image)) return statSync(image).size
  mkdirSync(dataDirectory, { recursive: true, mode: 0o711 })
  const { bavail, bsize } = statfsSync(dataDirectory)
  return bavail * bsize * DISK_SHARE
}
