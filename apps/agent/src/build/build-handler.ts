// build-handler.ts: what the API may ask about builds; see build-node.ts of libs/contracts.
import { BuildId, Failure, InvalidRequest, NodeBuild, PruneBuildCache, SolveBuild, TenantId } from '@berth/contracts'
import type { NodeHandler, RestCall } from '@berth/node-rpc'
import type { Builds } from './builds.js'

type Answer = (builds: Builds, call: RestCall, id: BuildId) => Promise<void>

const ofBuild: ReadonlyMap<string, Answer> = new Map<string, Answer>([
  [
    'PUT',
    async (builds, call, id) => {
      builds.begin(id, await call.json(NodeBuild))
      call.answer(204)
    },
  ],
  ['POST context', async (builds, call, id) => call.answer(200, await builds.context(id, call.body, call.signal))],
  ['POST solve', async (builds, call, id) => call.lines(builds.solve(id, await call.json(SolveBuild), call.signal))],
  [
    'DELETE',
    async (builds, call, id) => {
      await builds.cancel(id)
      call.answer(204)
    },
  ],
])

export function buildHandler(builds: Builds): NodeHandler {
  return {
    async request(call) {
      const [, word, ...more] = call.rest
      const id = BuildId.safeParse(word)
      if (word === 'cache') return ofCache(builds, call, more)
      const answer = id.success && more.length <= 1 ? ofBuild.get([call.method, ...more].join(' ')) : undefined
      if (!id.success || !answer) throw new Failure('route_not_found', 'no such request about builds')
      await answer(builds, call, id.data)
    },
  }
}

async function ofCache({ cache }: Builds, call: RestCall, more: readonly string[]): Promise<void> {
  switch ([call.method, ...more].join(' ')) {
    case 'GET': {
      const tenantId = TenantId.safeParse(call.query.get('tenantId'))
      if (!tenantId.success) throw new InvalidRequest([{ field: 'tenantId', message: 'must be the id of a tenant' }])
      return call.answer(200, await cache.usage(tenantId.data))
    }
    case 'POST prune': {
      const { tenantId, ...what } = await call.json(PruneBuildCache)
      return call.answer(200, await cache.prune(tenantId, what))
    }
    default:
      throw new Failure('route_not_found', 'no such request about the cache of builds')
  }
}
