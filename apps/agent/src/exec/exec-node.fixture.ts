// exec-node.fixture.ts: execs of one real container, asked over HTTPS as the API asks. Its agent can be killed and come
// again: what it had in memory is dropped, connections and all, and what is on disk and in the container stays.

import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { Failure, mintId, NodeId, type SandboxId, SandboxSpec } from '@berth/contracts'
import {
  type CallRequest,
  Grants,
  newGrantKeys,
  nodeCertificate,
  openStreams,
  type Query,
  type StreamServerHandle,
  type Streams,
  sandboxPath,
  serveStreams,
  type WebSocket,
} from '@berth/node-rpc'
import type { Logger } from '@berth/telemetry'
import { Processes } from '../runtime/processes.js'
import type { LiveSandbox } from '../sandbox/live.js'
import { startContainer, type TestContainer } from './container.fixture.js'
import { InitDriver } from './exec-driver.js'
import { execHandler } from './exec-handler.js'
import { Execs } from './execs.js'

export class ExecNode implements AsyncDisposable {
  readonly #container: TestContainer
  readonly #keys = newGrantKeys()
  readonly #grants: Grants
  readonly #nodeId = NodeId.parse(mintId('node', Date.now(), randomBytes(10)))
  readonly streams: Streams = openStreams()
  occupied = 0
  state: LiveSandbox['state'] = 'running'
  execs!: Execs
  processes!: Processes
  #server!: StreamServerHandle
  #certificate = { certificate: '', key: '' }

  private constructor(container: TestContainer) {
    this.#container = container
    this.#grants = new Grants(this.#keys.privateKey)
  }

  static async open(): Promise<ExecNode> {
    const node = new ExecNode(await startContainer('auto', SandboxSpec.parse({ limits: { memoryBytes: '256m' } })))
    node.#certificate = await nodeCertificate(node.directory)
    await node.comeUp(false)
    return node
  }

  get sandboxId(): SandboxId {
    return this.#container.id
  }

  get directory(): string {
    return this.#container.directory
  }

  get log(): Logger {
    return this.#container.log
  }

  /** The agent comes, and goes on with what runs. */
  async comeUp(adopted = true): Promise<void> {
    const { socket, shop, group } = this.#container
    this.occupied = 0
    this.processes = Processes.open({ socket, log: this.log, timeoutMs: 10_000 })
    this.execs = new Execs({
      log: this.log,
      openDriver: ({ processes }) => {
        if (!processes) throw new Error('it does not run')
        return new InitDriver(processes)
      },
      oomKills: () => shop.cgroups.usage(group)?.oomKills ?? 0,
    })
    const live = this.#live()
    await this.execs.attach(live, adopted)
    this.processes.endOthers()
    const find = (id: SandboxId) => {
      if (id !== live.id) throw new Failure('sandbox_not_found', `there is no sandbox ${id} on this node`)
      return live
    }
    const places = {
      of: (id: SandboxId) => this.execs.of(find(id)),
      up: (id: SandboxId, signal: AbortSignal) => this.execs.up(() => find(id), signal),
    }
    this.#server = await serveStreams({
      ...this.#certificate,
      host: '127.0.0.1',
      port: 0,
      nodeId: this.#nodeId,
      grantKey: () => this.#keys.publicKey,
      output: () => Promise.reject(new Error('there are no attempts here')),
      sandbox: { execs: execHandler(places, this.log) },
      log: { info: () => undefined, warn: () => undefined, error: () => undefined },
    })
  }

  /** As kill -9, from outside: connections are cut and nothing is finished. */
  async goDown(): Promise<void> {
    // First, as a kill would: nothing that is done from here on may have an effect.
    const closed = this.execs.close()
    this.processes.close()
    await Promise.all([closed, this.#server.close()])
  }

  async call(
    method: CallRequest['method'],
    rest: readonly string[],
    options: {
      readonly query?: Query
      readonly json?: unknown
      readonly body?: Readable
      readonly signal?: AbortSignal
    } = {},
  ) {
    const { json, body = json === undefined ? undefined : JSON.stringify(json) } = options
    const { signal = new AbortController().signal } = options
    const path = sandboxPath(this.sandboxId, ['execs', ...rest], options.query)
    const request = { ...(await this.#door()), method, path, signal, answerWithinMs: 0 }
    return this.streams.call(body === undefined ? request : { ...request, body })
  }

  // Tests read fields of JSON they expect; a wrong shape fails the expectation that follows.
  // biome-ignore lint/suspicious/noExplicitAny: answers of every shape, checked by each test
  async json(...args: Parameters<ExecNode['call']>): Promise<any> {
    const { body } = await this.call(...args)
    return JSON.parse(Buffer.concat(await body.toArray()).toString())
  }

  /** Runs a command to its end. */
  run(spec: object) {
    return this.json('POST', [], { json: spec, query: { wait: 'ended', timeoutMs: '60s', output: true } })
  }

  async socket(id: string, query: Query = {}): Promise<WebSocket> {
    const path = sandboxPath(this.sandboxId, ['execs', id, 'socket'], query)
    return this.streams.socket({ ...(await this.#door()), path, signal: new AbortController().signal })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.streams.close()
    await this.goDown()
    await this.#container[Symbol.asyncDispose]()
  }

  async #door() {
    const grant = { nodeId: this.#nodeId, subject: this.sandboxId, action: 'execs' } as const
    const { certificate } = this.#certificate
    return { grant: await this.#grants.get(grant), node: { id: this.#nodeId, url: this.#server.url, certificate } }
  }

  #live(): LiveSandbox {
    const { shop, ...container } = this.#container
    const node = this
    return {
      ...container,
      hostname: 'box',
      upper: join(shop.pool.path(container.id), 'upper'),
      get state() {
        return node.state
      },
      run: 1,
      restart: 0,
      processes: this.processes,
      main: undefined,
      runEnded: new AbortController().signal,
      tenantTerminals: 0,
      touch: () => undefined,
      occupy() {
        node.occupied += 1
        return () => {
          node.occupied -= 1
        }
      },
    }
  }
}
