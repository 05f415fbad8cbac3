import {
  type BuildDone,
  BuildId,
  type BuildProgress,
  cancelBuild,
  createBuild,
  getBuild,
  getBuildCache,
  getBuildLog,
  listBuilds,
  pruneBuildCache,
} from '@berth/contracts'
import { Controller, StreamableFile } from '@nestjs/common'
import { pageAnswer, pageRequest } from '../http/paging.js'
import { progressOf, type Telling } from '../http/progress.js'
import { type Call, Route } from '../http/route.decorator.js'
import { BuildingService, failedStep } from './building.service.js'
import { BuildsService } from './builds.service.js'
import { askedBuild } from './request.plan.js'

/** Of one build: its warnings are remembered for its end. */
function telling(): Telling<BuildProgress, BuildDone> {
  const warnings: string[] = []
  return {
    failed: failedStep,
    done: (step) => {
      if (step.step === 'warning') warnings.push(step.message)
      return step.step === 'done' ? { build: step.build, image: step.image, warnings } : undefined
    },
  }
}

@Controller()
export class BuildsController {
  constructor(
    private readonly builds: BuildsService,
    private readonly building: BuildingService,
  ) {}

  @Route(createBuild)
  async create(call: Call<typeof createBuild>) {
    const asked = askedBuild(call.query, call.asking.headers)
    return progressOf(call, this.building.build(call, asked, call.stream), telling())
  }

  @Route(listBuilds)
  async list({ principal, query }: Call<typeof listBuilds>) {
    return pageAnswer(await this.builds.list(principal, query, pageRequest(query, BuildId)))
  }

  @Route(getBuildCache)
  cache(call: Call<typeof getBuildCache>) {
    return this.builds.cache(call)
  }

  @Route(getBuild)
  get({ principal, params }: Call<typeof getBuild>) {
    return this.builds.get(principal, params.build)
  }

  @Route(getBuildLog)
  async log({ principal, params }: Call<typeof getBuildLog>) {
    const text = await this.builds.log(principal, params.build)
    return new StreamableFile(text, { type: 'text/plain; charset=utf-8' })
  }

  @Route(cancelBuild)
  cancel({ principal, params }: Call<typeof cancelBuild>) {
    return this.builds.cancel(principal, params.build)
  }

  @Route(pruneBuildCache)
  prune(call: Call<typeof pruneBuildCache>) {
    return this.builds.prune(call, call.body)
  }
}
