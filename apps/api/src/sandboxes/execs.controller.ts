import {
  attachExec,
  createExec,
  deleteExec,
  getExec,
  getExecOutput,
  listExecs,
  resizeExec,
  runExec,
  signalExec,
  streamExec,
  writeExecInput,
} from '@berth/contracts'
import { Controller } from '@nestjs/common'
import type { TenantPrincipal } from '../http/auth.js'
import { type Call, Route } from '../http/route.decorator.js'
import { passOn } from '../streams/sandbox-calls.js'
import { type ExecCall, ExecsService } from './execs.service.js'

@Controller()
export class ExecsController {
  constructor(private readonly execs: ExecsService) {}

  @Route(createExec)
  create(call: Call<typeof createExec>) {
    return this.execs.create(of(call), call.body, call.query)
  }

  @Route(runExec)
  async run(call: Call<typeof runExec>) {
    return passOn(call, await this.execs.run(of(call), call.body))
  }

  @Route(listExecs)
  list(call: Call<typeof listExecs>) {
    return this.execs.list(of(call), call.query.state)
  }

  @Route(getExec)
  get(call: Call<typeof getExec>) {
    return this.execs.get(of(call), call.params.exec, call.query)
  }

  @Route(streamExec)
  async stream(call: Call<typeof streamExec>) {
    return passOn(call, await this.execs.stream(of(call), call.params.exec, call.query))
  }

  @Route(getExecOutput)
  async output(call: Call<typeof getExecOutput>) {
    const { exec, stream } = call.params
    return passOn(call, await this.execs.output(of(call), exec, stream, call.query))
  }

  @Route(writeExecInput)
  input(call: Call<typeof writeExecInput>) {
    return this.execs.input(of(call), call.params.exec, call.query, call.stream)
  }

  @Route(attachExec)
  attach(call: Call<typeof attachExec>) {
    return this.execs.attach(of(call), call.params.exec, call.query, call.socket)
  }

  @Route(signalExec)
  signal(call: Call<typeof signalExec>) {
    return this.execs.signal(of(call), call.params.exec, call.body)
  }

  @Route(resizeExec)
  resize(call: Call<typeof resizeExec>) {
    return this.execs.resize(of(call), call.params.exec, call.body)
  }

  @Route(deleteExec)
  async delete(call: Call<typeof deleteExec>) {
    await this.execs.delete(of(call), call.params.exec)
    return undefined
  }
}

interface Asked {
  readonly principal: TenantPrincipal
  readonly params: { readonly sandbox: string }
  readonly signal: AbortSignal
}

const of = ({ principal, params, signal }: Asked): ExecCall => ({ principal, sandbox: params.sandbox, signal })
