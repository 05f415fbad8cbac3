// container.fixture.ts: one real container with berth-init and nothing else in it, by the runtime that is asked for.

import { randomBytes } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { GiB, type IdRange, mintId, SandboxId, type SandboxSpec, type TenantId } from '@berth/contracts'
import { removeTree } from '@berth/host'
import { createLogger, type Logger } from '@berth/telemetry'
import type { OciRuntime, RuntimeName } from '../runtime/oci-runtime.js'
import { newNodeDirectory, newTenant } from '../sandbox/node.fixture.js'
import { clean } from '../sandbox/recovery.js'
import type { RunnableImage } from '../sandbox/sandbox.js'
import { sandboxShape } from '../sandbox/shape.plan.js'
import { sandboxGroup, steps, type Workshop } from '../sandbox/steps.js'
import { openWorkshop } from '../sandbox/workshop.js'

export interface TestContainer extends AsyncDisposable {
  readonly id: SandboxId
  readonly tenantId: TenantId
  readonly ids: IdRange
  readonly spec: SandboxSpec
  readonly image: RunnableImage
  readonly group: string
  /** berth-init's. */
  readonly socket: string
  readonly runtime: OciRuntime
  readonly shop: Workshop
  /** Its own, as the agent keeps one for each sandbox. */
  readonly directory: string
  readonly log: Logger
}

export async function startContainer(
  runtime: RuntimeName | 'auto',
  spec: SandboxSpec,
  poolBytes = GiB,
): Promise<TestContainer> {
  const { directory, cgroupParent } = newNodeDirectory()
  const log = createLogger({ name: 'test', level: 'silent' })
  const shop = await openWorkshop({
    dataDirectory: join(directory, 'agent'),
    cgroupParent,
    runtime,
    initDirectory: join(import.meta.dirname, '../../../../libs/init/build'),
    poolBytes,
    ready: { count: 0, limitBytes: 1024 ** 3 },
    log,
  })
  const id = SandboxId.parse(mintId('sandbox', Date.now(), randomBytes(10)))
  const home = join(directory, 'sandbox')
  mkdirSync(home)
  const named = { id, tenantId: newTenant(), paths: { bundle: join(home, 'bundle'), socket: join(home, 'init.sock') } }
  const ids = { base: 1_000_000, count: 65_536 }
  const image = { reference: 'busybox', digest: 'sha256:0', layers: [join(directory, 'image')], config: {} }
  const { signal } = new AbortController()
  const shape = sandboxShape(spec, shop.abilities)
  shop.tenants.limit(named.tenantId, { memoryBytes: 4 * GiB, cpus: 2, pids: 4096 })
  shop.tenants.hold(named.tenantId)
  for (const step of steps) await step.acquire(shop, { ...named, ids, shape, image, hostname: 'box', signal })
  return {
    ...named,
    ...{ spec, ids, image, shop, log, directory: home },
    group: sandboxGroup(shop, named),
    socket: named.paths.socket,
    runtime: shop.runtime,
    async [Symbol.asyncDispose]() {
      shop.tenants.close()
      await clean(shop)
      await shop.pool.close()
      await removeTree(directory)
    },
  }
}
