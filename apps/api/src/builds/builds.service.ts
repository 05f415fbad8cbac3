// builds.service.ts: builds that go on or have ended, and what they left on nodes for the next ones.
import {
  type Build,
  type BuildDetails,
  type BuildId,
  type BuildState,
  Failure,
  type getBuildCache,
  type NodeId,
  type Output,
  type pruneBuildCache,
  type TenantId,
} from '@berth/contracts'
import type { PageOf, PageRequest } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import type { TenantPrincipal } from '../http/auth.js'
import { Changes } from '../scheduling/changes.js'
import { DATABASE, type Database } from '../tokens.js'
import type { BuildCall } from './base-images.js'
import { BuildNodes } from './build-nodes.js'
import { buildView } from './build-views.js'
import { LEFT_OUT } from './log.js'

@Injectable()
export class BuildsService {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly nodes: BuildNodes,
    private readonly changes: Changes,
  ) {}

  async list(
    { tenantId }: TenantPrincipal,
    filter: { readonly state?: readonly BuildState[] | undefined },
    page: PageRequest,
  ): Promise<PageOf<Build>> {
    const found = await this.database.builds.list({ tenantId }, filter, page)
    return { ...found, items: found.items.map(buildView) }
  }

  async get({ tenantId }: TenantPrincipal, id: BuildId): Promise<BuildDetails> {
    const { steps, ...build } = await this.database.builds.get({ tenantId }, id)
    return { ...buildView(build), steps: [...steps] }
  }

  /** What is kept of a build's log. @throws build_not_found, output_gone */
  async log({ tenantId }: TenantPrincipal, id: BuildId): Promise<Buffer> {
    const pieces = await this.database.builds.log({ tenantId }, id)
    const [first] = pieces
    if (first) return Buffer.concat([...(first.number > 0 ? [LEFT_OUT] : []), ...pieces.map(({ data }) => data)])
    const { endedAt } = await this.database.builds.get({ tenantId }, id)
    if (endedAt === null) return Buffer.alloc(0)
    throw new Failure('output_gone', `the log of build ${id} is no longer kept`)
  }

  /** Ends a build, wherever it is carried out; of one that has ended nothing changes. @throws build_not_found */
  async cancel({ tenantId, keyId }: TenantPrincipal, id: BuildId): Promise<Build> {
    const ended = await this.database.builds.end({ tenantId }, id, {
      ...{ event: 'cancel', code: 'build_canceled', message: 'asked for', line: null, instruction: null, by: keyId },
    })
    if (!ended) return buildView(await this.database.builds.get({ tenantId }, id))
    this.changes.announceBuild(ended)
    await this.nodes.end(ended.nodeId, id)
    return buildView(ended)
  }

  async cache(call: BuildCall): Promise<Output<typeof getBuildCache>> {
    const { tenantId } = call.principal
    const ask = async (nodeId: NodeId) => ({ nodeId, ...(await this.nodes.cache(call, nodeId, tenantId)) })
    const { answers, unreachable } = await this.ofNodes(tenantId, ask)
    return { items: answers, unreachable }
  }

  async prune(
    call: BuildCall,
    { unusedFor, keepBytes }: { readonly unusedFor: number; readonly keepBytes: number },
  ): Promise<Output<typeof pruneBuildCache>> {
    const { tenantId } = call.principal
    const asked = { tenantId, unusedForMs: unusedFor, keepBytes }
    const { answers, unreachable } = await this.ofNodes(tenantId, (nodeId) => this.nodes.prune(call, nodeId, asked))
    const sum = (of: 'removed' | 'freedBytes') => answers.reduce((all, answer) => all + answer[of], 0)
    return { removed: sum('removed'), freedBytes: sum('freedBytes'), unreachable }
  }

  /** Asks every node that did builds of a tenant. */
  private async ofNodes<T>(
    tenantId: TenantId,
    ask: (nodeId: NodeId) => Promise<T>,
  ): Promise<{ readonly answers: T[]; readonly unreachable: NodeId[] }> {
    const nodes = await this.database.builds.nodes(tenantId)
    const unreachable: NodeId[] = []
    const answers = await Promise.all(
      nodes.map((nodeId) =>
        ask(nodeId).catch((error: unknown) => {
          if (!(error instanceof Failure) || error.code !== 'node_unreachable') throw error
          unreachable.push(nodeId)
          return undefined
        }),
      ),
    )
    return { answers: answers.flatMap((answer) => (answer === undefined ? [] : [answer])), unreachable }
  }
}
