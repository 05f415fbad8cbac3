// records.ts: small records of tenants, a file each, `<directory>/<tenant>/<kind>/<key>.json`, and all of them in memory. The
// time of the file is when it was last used.

import { mkdir, readdir, rm, stat, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { Fault, ignore, invariant, TenantId } from '@berth/contracts'
import { readJson, writeAtomic } from '@berth/host'
import type { z } from 'zod'

export interface Kept<T> {
  readonly tenantId: TenantId
  readonly key: string
  readonly value: T
  /** Unix milliseconds. */
  readonly lastUsedAt: number
}

export class RecordFiles<T> {
  readonly #directory: string
  readonly #kind: string
  readonly #form: RegExp
  readonly #tenants = new Map<TenantId, Map<string, Kept<T>>>()

  private constructor(directory: string, kind: string, form: RegExp) {
    this.#directory = directory
    this.#kind = kind
    this.#form = form
  }

  /**
   * Reads what there is. What is no record, of another version say, is removed: it is about a cache.
   * @param form of keys
   */
  static async open<T>(directory: string, kind: string, form: RegExp, schema: z.ZodType<T>): Promise<RecordFiles<T>> {
    const files = new RecordFiles<T>(directory, kind, form)
    for (const name of await names(directory)) {
      const tenantId = TenantId.safeParse(name)
      if (!tenantId.success) continue
      const found = await names(join(directory, name, kind))
      await Promise.all(found.map((file) => files.#read(tenantId.data, file, schema)))
    }
    return files
  }

  async #read(tenantId: TenantId, file: string, schema: z.ZodType<T>): Promise<void> {
    const path = join(this.#directory, tenantId, this.#kind, file)
    const key = file.slice(0, -'.json'.length)
    try {
      if (!file.endsWith('.json') || !this.#form.test(key)) throw new Fault(`read ${path}`, { cause: 'not a record' })
      const value = await readJson(path, (json) => schema.parse(json))
      if (value !== undefined) this.#set({ tenantId, key, value, lastUsedAt: (await stat(path)).mtimeMs })
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      await rm(path, { force: true })
    }
  }

  get(tenantId: TenantId, key: string): Kept<T> | undefined {
    return this.#tenants.get(tenantId)?.get(key)
  }

  of(tenantId: TenantId): readonly Kept<T>[] {
    return [...(this.#tenants.get(tenantId)?.values() ?? [])]
  }

  all(): readonly Kept<T>[] {
    return this.tenants().flatMap((tenantId) => this.of(tenantId))
  }

  tenants(): readonly TenantId[] {
    return [...this.#tenants.keys()]
  }

  /** On disk whole or not at all. */
  async put(tenantId: TenantId, key: string, value: T): Promise<void> {
    const path = this.#path(tenantId, key)
    const record = { tenantId, key, value, lastUsedAt: Date.now() }
    await mkdir(join(this.#directory, tenantId, this.#kind), { recursive: true, mode: 0o700 })
    await writeAtomic(path, JSON.stringify(value))
    this.#set(record)
  }

  /** It was used just now. */
  async touch(tenantId: TenantId, key: string): Promise<void> {
    const found = this.get(tenantId, key)
    if (!found) return
    const now = Date.now()
    this.#set({ ...found, lastUsedAt: now })
    await utimes(this.#path(tenantId, key), now / 1000, now / 1000).catch((error: unknown) => ignore(error, 'ENOENT'))
  }

  async remove(tenantId: TenantId, key: string): Promise<void> {
    this.#tenants.get(tenantId)?.delete(key)
    await rm(this.#path(tenantId, key), { force: true })
    if (this.#tenants.get(tenantId)?.size === 0) this.#tenants.delete(tenantId)
  }

  #set(record: Kept<T>): void {
    const records = this.#tenants.get(record.tenantId) ?? new Map<string, Kept<T>>()
    this.#tenants.set(record.tenantId, records.set(record.key, record))
  }

  #path(tenantId: TenantId, key: string): string {
    invariant(this.#form.test(key), `key of a record: ${key}`)
    return join(this.#directory, tenantId, this.#kind, `${key}.json`)
  }
}

async function names(directory: string): Promise<readonly string[]> {
  return (await readdir(directory).catch((error: unknown) => ignore(error, 'ENOENT', 'ENOTDIR'))) ?? []
}
