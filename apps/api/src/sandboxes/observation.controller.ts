import {
  getSandboxDiff,
  getSandboxLogBytes,
  getSandboxLogs,
  getSandboxStats,
  getSandboxTop,
  inspectSandbox,
  streamSandboxStats,
} from '@berth/contracts'
import { Controller } from '@nestjs/common'
import { type Call, Route } from '../http/route.decorator.js'
import { passOn } from '../streams/sandbox-calls.js'
import { ObservationService } from './observation.service.js'

@Controller()
export class ObservationController {
  constructor(private readonly observation: ObservationService) {}

  @Route(getSandboxLogs)
  async logs(call: Call<typeof getSandboxLogs>) {
    const { principal, params, query, signal } = call
    return passOn(call, await this.observation.stream(principal, params.sandbox, ['logs'], query, signal))
  }

  @Route(getSandboxLogBytes)
  async logBytes(call: Call<typeof getSandboxLogBytes>) {
    const { principal, params, query, signal } = call
    return passOn(call, await this.observation.stream(principal, params.sandbox, ['logs', 'raw'], query, signal))
  }

  @Route(getSandboxTop)
  top({ principal, params, signal }: Call<typeof getSandboxTop>) {
    return this.observation.top(principal, params.sandbox, signal)
  }

  @Route(getSandboxStats)
  stats({ principal, params, signal }: Call<typeof getSandboxStats>) {
    return this.observation.stats(principal, params.sandbox, signal)
  }

  @Route(streamSandboxStats)
  async streamStats(call: Call<typeof streamSandboxStats>) {
    const { principal, params, query, signal } = call
    // A duration without a unit is none in a query.
    const asked = { intervalMs: `${query.intervalMs}ms` }
    return passOn(call, await this.observation.stream(principal, params.sandbox, ['stats', 'stream'], asked, signal))
  }

  @Route(getSandboxDiff)
  async diff(call: Call<typeof getSandboxDiff>) {
    const { principal, params, signal } = call
    return passOn(call, await this.observation.stream(principal, params.sandbox, ['diff'], {}, signal))
  }

  @Route(inspectSandbox)
  inspect({ principal, params, signal }: Call<typeof inspectSandbox>) {
    return this.observation.inspect(principal, params.sandbox, signal)
  }
}
