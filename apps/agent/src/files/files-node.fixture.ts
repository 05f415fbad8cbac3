// files-node.fixture.ts: files of one real container, asked over HTTPS as the API asks.

import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { Failure, mintId, NodeId, SandboxSpec } from '@berth/contracts'
import {
  type CallRequest,
  Grants,
  type NodeAnswer,
  newGrantKeys,
  nodeCertificate,
  openStreams,
  type Query,
  type StreamServerHandle,
  sandboxPath,
  serveStreams,
} from '@berth/node-rpc'
import { startContainer, type TestContainer } from '../exec/container.fixture.js'
import { type SpawnRequest, spawnFlags } from '../runtime/init-wire.js'
import { discard, Processes } from '../runtime/processes.js'
import type { LiveSandbox } from '../sandbox/live.js'
import { processRequest, sandboxConfinement } from '../sandbox/process.plan.js'
import { Files, type FilesLimits } from './files.js'
import { filesHandler } from './files-handler.js'
import { Passage } from './passage.js'

export interface FilesNodeOptions {
  readonly spec?: object
  readonly limits?: Partial<FilesLimits>
}

export interface CallOptions {
  readonly json?: unknown
  readonly body?: Readable | Buffer | string
  readonly headers?: Readonly<Record<string, string>>
  readonly signal?: AbortSignal
}

export class FilesNode implements AsyncDisposable {
  readonly container: TestContainer
  readonly processes: Processes
  readonly #keys = newGrantKeys()
  readonly #grants = new Grants(this.#keys.privateKey)
  readonly #nodeId = NodeId.parse(mintId('node', Date.now(), randomBytes(10)))
  readonly #streams = openStreams()
  readonly #limits: Partial<FilesLimits>
  /** Leases held, and times that there was activity. */
  leases = 0
  touched = 0
  occupied = 0
  #server!: StreamServerHandle
  #certificate = ''

  private constructor(container: TestContainer, limits: Partial<FilesLimits>) {
    const { socket, log } = container
    this.container = container
    this.#limits = limits
    this.processes = Processes.open({ socket, log, timeoutMs: 10_000 })
    this.processes.endOthers()
  }

  static async open({ spec = {}, limits = {} }: FilesNodeOptions = {}): Promise<FilesNode> {
    const parsed = SandboxSpec.parse({ limits: { memoryBytes: '256m' }, ...spec })
    const node = new FilesNode(await startContainer('auto', parsed, 2 * parsed.limits.diskBytes), limits)
    await node.#serve()
    return node
  }

  async call(
    method: CallRequest['method'],
    words: string,
    query: Query = {},
    { json, headers, signal = new AbortController().signal, ...options }: CallOptions = {},
  ): Promise<NodeAnswer> {
    const body = json === undefined ? options.body : JSON.stringify(json)
    const subject = this.container.id
    const rest = words === '' ? [] : words.split('/')
    const path = sandboxPath(subject, ['files', ...rest], query)
    const grant = await this.#grants.get({ nodeId: this.#nodeId, subject, action: 'files' })
    const node = { id: this.#nodeId, url: this.#server.url, certificate: this.#certificate }
    const request = { node, grant, method, path, signal, answerWithinMs: 0, ...(headers ? { headers } : {}) }
    return this.#streams.call(body === undefined ? request : { ...request, body })
  }

  async bytes(...asked: Parameters<FilesNode['call']>): Promise<Buffer> {
    return Buffer.concat(await (await this.call(...asked)).body.toArray())
  }

  // Tests read fields of JSON they expect; a wrong shape fails the expectation that follows.
  // biome-ignore lint/suspicious/noExplicitAny: answers of every shape, checked by each test
  async json(...asked: Parameters<FilesNode['call']>): Promise<any> {
    return JSON.parse((await this.bytes(...asked)).toString())
  }

  // biome-ignore lint/suspicious/noExplicitAny: as above
  async lines(...asked: Parameters<FilesNode['call']>): Promise<any[]> {
    const text = (await this.bytes(...asked)).toString()
    return text.split('\n').flatMap((line) => (line === '' ? [] : [JSON.parse(line)]))
  }

  /** The code and the message of the failure that a call must end with. */
  async failure(...asked: Parameters<FilesNode['call']>): Promise<string> {
    try {
      const answer = await this.call(...asked)
      throw new Error(`answered ${answer.status}: ${Buffer.concat(await answer.body.toArray())}`)
    } catch (error) {
      if (error instanceof Failure) return `${error.code}: ${error.message}`
      throw error
    }
  }

  /** Runs a shell script as root of the sandbox. @returns what it wrote, errors included */
  async sh(script: string): Promise<string> {
    await this.processes.known()
    const out = new Passage()
    const process = this.processes.run(this.processes.allocate(), this.#shell(script), { stdout: out, stderr: discard })
    void process.ended.then(() => {
      process.forget()
      out.end()
    })
    return Buffer.concat(await out.stream.toArray()).toString()
  }

  /** Starts processes until the sandbox can have no more. @returns what ends them, and waits until they are gone */
  async fill(): Promise<AsyncDisposable> {
    const end = async () => {
      this.processes.signalAll(9)
      await this.processes.allEnded()
    }
    await this.processes.known()
    for (;;) {
      const proc = this.processes.allocate()
      const process = this.processes.run(proc, this.#shell('exec sleep 600'), { stdout: discard, stderr: discard })
      void process.ended.then(() => process.forget())
      if ((await process.started).kind !== 'started') return { [Symbol.asyncDispose]: end }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#streams.close()
    await this.#server.close()
    this.processes.close()
    await this.container[Symbol.asyncDispose]()
  }

  #shell(script: string): SpawnRequest {
    return processRequest({
      command: ['sh', '-c', script],
      env: ['PATH=/bin'],
      workingDir: '/',
      who: { uid: 0, gid: 0, groups: [], home: '/' },
      confinement: sandboxConfinement(this.container.spec),
      flags: spawnFlags.stderrToStdout,
      timeoutMs: 600_000,
      graceMs: 0,
    })
  }

  async #serve(): Promise<void> {
    const live = this.#live()
    const files = new Files({
      log: this.container.log,
      limits: this.#limits,
      lease: async (id) => {
        if (id !== live.id) throw new Failure('sandbox_not_found', `there is no sandbox ${id} on this node`)
        this.leases += 1
        return {
          live,
          processes: this.processes,
          [Symbol.asyncDispose]: async () => {
            this.leases -= 1
          },
        }
      },
    })
    const { certificate, key } = await nodeCertificate(this.container.directory)
    this.#certificate = certificate
    this.#server = await serveStreams({
      ...{ certificate, key },
      host: '127.0.0.1',
      port: 0,
      nodeId: this.#nodeId,
      grantKey: () => this.#keys.publicKey,
      output: () => Promise.reject(new Error('there are no attempts here')),
      sandbox: { files: filesHandler(files) },
      log: { info: () => undefined, warn: () => undefined, error: () => undefined },
    })
  }

  #live(): LiveSandbox {
    const { shop, ...container } = this.container
    return {
      ...container,
      hostname: 'box',
      upper: join(shop.pool.path(container.id), 'upper'),
      state: 'running',
      run: 1,
      restart: 0,
      processes: this.processes,
      main: undefined,
      runEnded: new AbortController().signal,
      tenantTerminals: 0,
      touch: () => {
        this.touched += 1
      },
      occupy: () => {
        this.occupied += 1
        return () => {
          this.occupied -= 1
        }
      },
    }
  }
}
