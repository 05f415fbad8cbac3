import { Failure, type TenantId } from '@berth/contracts'
import type { NewBuild } from '@berth/persistence'
import { expect, test } from '@jest/globals'
import { Waiters } from '../jobs/waiters.js'
import { Drain } from '../operations/drain.js'
import type { Changes } from '../scheduling/changes.js'
import type { Clock, Database, Logger } from '../tokens.js'
import { BuildRuns } from './build-runs.js'

test('some builds of a tenant wait for room, more are refused at once, and others have theirs', async () => {
  const full = new Failure('no_capacity', 'no node has room')
  const builds = { admit: async () => full } as unknown as Database['builds']
  const database = { builds } as Database
  const runs = new BuildRuns(database, {} as Clock, {} as Logger, new Waiters(new Drain()), {} as Changes)
  const leaving = new AbortController()
  const begin = (tenantId: string) =>
    runs.begin({ tenantId: tenantId as TenantId } as NewBuild, { queueMs: 3_600_000, signal: leaving.signal })
  const waiting = Array.from({ length: 32 }, () => begin('ten_a'))
  await expect(begin('ten_a')).rejects.toBe(full)
  const ofAnother = begin('ten_b')
  leaving.abort(new Error('left'))
  for (const one of [...waiting, ofAnother]) await expect(one).rejects.toThrow('left')
})
