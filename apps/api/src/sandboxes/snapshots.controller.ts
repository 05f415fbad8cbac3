import { commitSandbox, exportSandbox, forkSandbox } from '@berth/contracts'
import { Controller } from '@nestjs/common'
import { progressOf } from '../http/progress.js'
import { type Call, Route } from '../http/route.decorator.js'
import { telling } from '../images/image-views.js'
import { passOn } from '../streams/sandbox-calls.js'
import { savedAs } from './files.service.js'
import { SnapshotsService } from './snapshots.service.js'

@Controller()
export class SnapshotsController {
  constructor(private readonly snapshots: SnapshotsService) {}

  @Route(commitSandbox)
  async commit(call: Call<typeof commitSandbox>) {
    const { principal, params, signal, body } = call
    return progressOf(call, this.snapshots.commit({ principal, signal, sandbox: params.sandbox }, body), telling)
  }

  @Route(forkSandbox, { once: 'handler' })
  async fork({ principal, params, body, signal, once, status }: Call<typeof forkSandbox>) {
    status(201)
    return { items: [...(await this.snapshots.fork({ principal, signal, sandbox: params.sandbox }, body, once))] }
  }

  @Route(exportSandbox)
  async export(call: Call<typeof exportSandbox>) {
    const { principal, params, signal } = call
    const answer = await this.snapshots.export({ principal, signal, sandbox: params.sandbox })
    call.header('content-disposition', savedAs(params.sandbox, '.tar'))
    return passOn(call, answer)
  }
}
