import {
  createSandbox,
  deleteSandbox,
  getSandbox,
  killSandbox,
  listSandboxEnds,
  listSandboxes,
  pauseSandbox,
  pruneSandboxes,
  restartSandbox,
  resumeSandbox,
  type Sandbox,
  SandboxId,
  startSandbox,
  stopSandbox,
  updateSandbox,
} from '@berth/contracts'
import type { SandboxRequest } from '@berth/domain'
import { Controller } from '@nestjs/common'
import type { TenantPrincipal } from '../http/auth.js'
import { etagOf, ifMatch } from '../http/etag.js'
import { pageAnswer, pageRequest } from '../http/paging.js'
import { type Call, type Once, Route } from '../http/route.decorator.js'
import { TemplatesService } from '../images/templates.service.js'
import { SandboxSignals } from './sandbox-signals.js'
import { SandboxWaits, type Waiting } from './sandbox-waits.js'
import { SandboxesService } from './sandboxes.service.js'

/** What all calls have that change a sandbox and may wait for what comes of it. */
interface Asking {
  readonly principal: TenantPrincipal
  readonly params: { readonly sandbox: string }
  readonly query: Waiting
  readonly once: Once
  readonly signal: AbortSignal
  readonly header: (name: string, value: string) => void
}

@Controller()
export class SandboxesController {
  constructor(
    private readonly sandboxes: SandboxesService,
    private readonly waits: SandboxWaits,
    private readonly signals: SandboxSignals,
    private readonly templates: TemplatesService,
  ) {}

  @Route(createSandbox, { once: 'handler' })
  async create({ principal, body, query, once, signal, header, status }: Call<typeof createSandbox>) {
    const specified = () => this.templates.sandbox(principal.tenantId, body)
    const { sandbox, made, warnings } = await this.sandboxes.create(principal, specified, query, once)
    status(made ? 201 : 200)
    return { ...tagged(await this.waits.until(principal, sandbox, query, signal), header), warnings }
  }

  @Route(listSandboxes)
  async list({ principal, query }: Call<typeof listSandboxes>) {
    return pageAnswer(await this.sandboxes.list(principal.tenantId, query, pageRequest(query, SandboxId)))
  }

  @Route(getSandbox)
  async get({ principal, params, query, signal, header }: Call<typeof getSandbox>) {
    const sandbox = await this.sandboxes.get(principal.tenantId, params.sandbox)
    return tagged(await this.waits.until(principal, sandbox, query, signal), header)
  }

  @Route(updateSandbox)
  async update({ principal, params, body, asking, header }: Call<typeof updateSandbox>) {
    const version = ifMatch(asking.headers['if-match'])
    return tagged(await this.sandboxes.update(principal, params.sandbox, body, version), header)
  }

  @Route(startSandbox, { once: 'handler' })
  start(call: Call<typeof startSandbox>) {
    return this.ask(call, { kind: 'start' })
  }

  @Route(stopSandbox, { once: 'handler' })
  stop(call: Call<typeof stopSandbox>) {
    return this.ask(call, { kind: 'stop', ...call.body })
  }

  @Route(restartSandbox, { once: 'handler' })
  restart(call: Call<typeof restartSandbox>) {
    return this.ask(call, { kind: 'restart', ...call.body })
  }

  @Route(pauseSandbox, { once: 'handler' })
  pause(call: Call<typeof pauseSandbox>) {
    return this.ask(call, { kind: 'pause' })
  }

  @Route(resumeSandbox, { once: 'handler' })
  resume(call: Call<typeof resumeSandbox>) {
    return this.ask(call, { kind: 'resume' })
  }

  @Route(killSandbox, { once: 'handler' })
  async kill({ principal, params, body, once, signal, header }: Call<typeof killSandbox>) {
    const ref = params.sandbox
    if (this.signals.kills(body.signal))
      return tagged(await this.sandboxes.request(principal, ref, { kind: 'kill' }, once), header)
    return tagged(await this.signals.send(principal, ref, body.signal, once, signal), header)
  }

  @Route(deleteSandbox, { once: 'handler' })
  async delete({ principal, params, query, once, header }: Call<typeof deleteSandbox>) {
    return tagged(await this.sandboxes.request(principal, params.sandbox, { kind: 'delete', ...query }, once), header)
  }

  @Route(pruneSandboxes)
  prune({ principal, body }: Call<typeof pruneSandboxes>) {
    return this.sandboxes.prune(principal, body.label, body.endedBeforeMs)
  }

  @Route(listSandboxEnds)
  async ends({ principal, params, query }: Call<typeof listSandboxEnds>) {
    return { items: [...(await this.sandboxes.ends(principal.tenantId, params.sandbox, query.limit))] }
  }

  private async ask({ principal, params, query, once, signal, header }: Asking, asked: SandboxRequest) {
    const sandbox = await this.sandboxes.request(principal, params.sandbox, asked, once)
    return tagged(await this.waits.until(principal, sandbox, query, signal), header)
  }
}

/** The answer with its version as the ETag. */
function tagged(sandbox: Sandbox, header: (name: string, value: string) => void): Sandbox {
  header('etag', etagOf(sandbox.version))
  return sandbox
}
