// building.service.ts: carries a build out while its caller is there: admission, context to the node, base images, the
// node's work, and the image under its names.
//
//   admit ── prepare ── context ── base images ── solve ── succeed      each told as it happens
//     └─ lease renewed, log noted ────────────────────────────┘
//
// Whatever ends it (an error, its caller going, a cancel, its time) passes the one `finally`: the row is ended once, its
// node told. What kills this process is found by the lease.
import type { Readable } from 'node:stream'
import {
  type BuildProgress,
  type BuildStep,
  Failure,
  type HeldImage,
  invariant,
  type NodeBuild,
} from '@berth/contracts'
import type { BuildEnd } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import type { Config } from '../config.js'
import type { TenantPrincipal } from '../http/auth.js'
import { imageView } from '../images/image-views.js'
import { ImageScans } from '../scan/image-scans.js'
import { CONFIG, DATABASE, type Database } from '../tokens.js'
import { BaseImages, type BuildCall } from './base-images.js'
import { BuildNodes } from './build-nodes.js'
import { type BuildRun, BuildRuns } from './build-runs.js'
import { buildView } from './build-views.js'
import type { AskedBuild } from './request.plan.js'

/** Most bytes of a context unpacked: as many as were reserved for it. */
const MAX_CONTEXT_BYTES = 2 * 1024 ** 3

/** What is told of a build; a Failure ends it. */
export type Told = Exclude<BuildProgress, { readonly step: 'failed' }> | Failure

@Injectable()
export class BuildingService {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CONFIG) private readonly config: Config,
    private readonly runs: BuildRuns,
    private readonly nodes: BuildNodes,
    private readonly bases: BaseImages,
    private readonly scans: ImageScans,
  ) {}

  /**
   * @param context as it comes; destroyed when the build is over
   * @throws what refuses it, before anything was told
   */
  async *build(call: BuildCall, asked: AskedBuild, context: Readable): AsyncGenerator<Told> {
    const { names, options, limits, parallel, timeoutMs, queueMs } = asked
    const { tenantId, keyId } = call.principal
    const run = await this.runs.begin(
      { tenantId, by: keyId, names, options, limits, parallel },
      { queueMs, signal: call.signal },
    )
    const { id, nodeId } = run.admitted.build
    const life = lifeOf(call, run, timeoutMs)
    let end: BuildEnd | undefined = left(call.principal)
    try {
      // Asked for now: once an answer has begun nobody can be told to go on with a body any more.
      context.read(0)
      yield run.told({ step: 'created', build: id, nodeId, parallel: run.admitted.build.parallel })
      const image = yield* this.carryOut({ principal: call.principal, signal: life.signal }, asked, context, run)
      const done = await run.succeed(image, keyId)
      end = undefined
      this.scans.soon([done.image.digest], tenantId)
      const told = run.told({ step: 'done', build: buildView(done.build), image: imageView(done.image) })
      await run.close()
      yield told
    } catch (error) {
      const failure = run.failure(error)
      const gone = call.signal.aborted || context.errored !== null
      end = gone ? left(call.principal) : endOf(failure)
      run.told(failedStep(failure))
      // Log and quota are there when its caller hears of it.
      await run.close()
      await run.end(end)
      yield failure
    } finally {
      life.over()
      context.destroy()
      await this.leave(run, end)
    }
  }

  /** @param end undefined: it has succeeded */
  private async leave(run: BuildRun, end: BuildEnd | undefined): Promise<void> {
    const { id, nodeId } = run.admitted.build
    if (end) void this.nodes.end(nodeId, id)
    await run.close()
    if (end) await run.end(end)
  }

  private async *carryOut(
    call: BuildCall,
    asked: AskedBuild,
    context: Readable,
    run: BuildRun,
  ): AsyncGenerator<Told, HeldImage> {
    const { id, nodeId } = run.admitted.build
    await this.nodes.prepare(call, nodeId, id, await this.nodeBuild(asked, run))
    const references = await this.nodes.context(call, nodeId, id, context)
    const pulled = this.bases.on(call, nodeId, references, asked.options)
    const images = yield* tellingOf(run, pulled)
    run.started()
    for await (const step of this.nodes.solve(call, nodeId, id, images)) {
      if (step.step === 'done') return step.image
      if (step.step === 'failed') throw failureOfStep(step)
      yield run.told(step)
    }
    invariant(false, 'a build on a node ends with done or failed')
  }

  private async nodeBuild(
    { options, limits, timeoutMs, dockerfileText, secrets }: AskedBuild,
    { admitted: { build, ids, tenantLimits } }: BuildRun,
  ): Promise<NodeBuild> {
    const { limit, used } = await this.database.images.use(build.tenantId)
    const { dockerfile, target, args, labels, noCache, network, platform } = options
    return {
      ...{ tenantId: build.tenantId, ids, tenantLimits, dockerfile, dockerfileText, target, args, labels, secrets },
      ...{ noCache, network, ...(platform !== null && { platform }), limits, runTimeoutMs: timeoutMs },
      newPrivileges: this.config.BERTH_SANDBOX_NEW_PRIVILEGES,
      parallel: build.parallel,
      maxBytes: Math.max(0, limit - used),
      maxContextBytes: Math.min(limits.diskBytes, MAX_CONTEXT_BYTES),
      cacheBytes: this.config.BERTH_BUILD_CACHE,
    }
  }
}

type Digests = Readonly<Record<string, string>>

/** Tells of what is done for base images. Leaving it leaves that too. @returns their digests */
export async function* tellingOf(
  run: Pick<BuildRun, 'told'>,
  steps: AsyncGenerator<BuildProgress, Digests>,
): AsyncGenerator<Told, Digests> {
  try {
    for (;;) {
      const { done, value } = await steps.next()
      if (done) return value
      if (value.step !== 'failed') yield run.told(value)
    }
  } finally {
    // A pull that nobody goes on with would keep the tenant's turn.
    await steps.return({})
  }
}

/** Aborted with the first of what ends a build: its caller goes, it was ended elsewhere, or its time is over. */
function lifeOf(call: BuildCall, run: BuildRun, timeoutMs: number) {
  const controller = new AbortController()
  const late = () => new Failure('build_timed_out', `the build took longer than ${Math.round(timeoutMs / 1000)} s`)
  const timer = setTimeout(() => controller.abort(late()), timeoutMs)
  const sources = [call.signal, run.signal]
  const pass = () => controller.abort(sources.find(({ aborted }) => aborted)?.reason)
  for (const source of sources) source.addEventListener('abort', pass, { once: true })
  if (sources.some(({ aborted }) => aborted)) pass()
  const over = () => {
    clearTimeout(timer)
    for (const source of sources) source.removeEventListener('abort', pass)
  }
  return { signal: controller.signal, over }
}

/** The end of a build that its caller has left. */
const left = ({ keyId }: TenantPrincipal): BuildEnd => ({
  ...{
    event: 'cancel',
    code: 'build_canceled',
    message: 'its caller has gone',
    line: null,
    instruction: null,
    by: keyId,
  },
})

const lineOf = ({ data }: Failure): number | null => (typeof data.line === 'number' ? data.line : null)
const instructionOf = ({ data }: Failure): string | null =>
  typeof data.instruction === 'string' ? data.instruction : null

const endOf = (failure: Failure): BuildEnd => ({
  event: failure.code === 'build_canceled' ? 'cancel' : 'fail',
  ...{ code: failure.code, message: failure.message, line: lineOf(failure), instruction: instructionOf(failure) },
  by: failure.code === 'build_failed' || failure.code === 'dockerfile_invalid' ? 'agent' : 'api',
})

export const failedStep = (failure: Failure): BuildProgress & { readonly step: 'failed' } => ({
  ...{ step: 'failed', code: failure.code, message: failure.message },
  ...{ line: lineOf(failure), instruction: instructionOf(failure) },
})

const failureOfStep = ({ code, message, line, instruction }: BuildStep & { readonly step: 'failed' }): Failure =>
  new Failure(code, message, { line, instruction })
