// database.ts: the repositories over one store.
import { openAdmission } from './admission.js'
import { openBatches } from './batches.js'
import { openBuilds } from './builds.js'
import { openEvents } from './events.js'
import { openIdempotency } from './idempotency.js'
import { openImages } from './images.js'
import { openJobs } from './jobs.js'
import { openKeys } from './keys.js'
import { openNodes } from './nodes.js'
import { openPasses } from './passes.js'
import type { Database } from './repositories.js'
import { openSandboxes } from './sandboxes.js'
import { openSessions } from './sessions.js'
import { openStore, type Statement, type StoreOptions } from './store.js'
import { openTemplates } from './templates.js'
import { openTenants, openUsage } from './tenants.js'

const ping: Statement = { name: 'ping', text: 'SELECT 1' }

/** Opens a migrated database; connects when first used. Close it to let the process end. */
export function openDatabase(options: StoreOptions): Database {
  const store = openStore(options)
  return {
    tenants: openTenants(store),
    keys: openKeys(store),
    sessions: openSessions(store),
    passes: openPasses(store),
    nodes: openNodes(store),
    jobs: openJobs(store),
    batches: openBatches(store),
    sandboxes: openSandboxes(store),
    events: openEvents(store),
    admission: openAdmission(store),
    images: openImages(store),
    builds: openBuilds(store),
    templates: openTemplates(store),
    usage: openUsage(store),
    idempotency: openIdempotency(store),
    exclusively: (name, work) => store.exclusively(name, work),
    ping: async () => {
      await store.rows(ping, [])
    },
    close: () => store.close(),
  }
}
