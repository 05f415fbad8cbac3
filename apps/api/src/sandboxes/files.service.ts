// files.service.ts: files of sandboxes. Everything about them happens in the sandbox, on its node; here they are only
// asked for, and their bytes copied at the pace of whoever is slower.
import type { Readable } from 'node:stream'
import { Failure, FileStat, uploadTree } from '@berth/contracts'
import type { NodeAnswer, Query } from '@berth/node-rpc'
import { Injectable } from '@nestjs/common'
import type { TenantPrincipal } from '../http/auth.js'
import { SandboxCalls, type SandboxRequest } from '../streams/sandbox-calls.js'

/** Files of which sandbox (id or name), for whom. */
export interface FilesCall {
  readonly principal: TenantPrincipal
  readonly sandbox: string
  /** Aborted when the client goes. */
  readonly signal: AbortSignal
}

/** A path, and with whose rights it is reached. */
export interface Place {
  readonly path: string
  readonly user?: string | undefined
}

export interface WriteOptions extends Place {
  readonly mode?: number | undefined
  readonly owner?: string | undefined
  readonly parents: boolean
  readonly ifExists: 'replace' | 'fail'
}

@Injectable()
export class FilesService {
  constructor(private readonly calls: SandboxCalls) {}

  stat(call: FilesCall, query: Place & { readonly follow: boolean }): Promise<FileStat> {
    return this.entry(call, { method: 'GET', path: ['files', 'stat'], query: { ...query } })
  }

  /** Lines of JSON, one an entry. */
  list(call: FilesCall, query: Place): Promise<NodeAnswer> {
    return this.open(call, { method: 'GET', path: ['files', 'list'], query: { ...query } })
  }

  /** @param range the request's header of that name */
  read(call: FilesCall, query: Place, range: string | undefined): Promise<NodeAnswer> {
    const headers = range === undefined ? {} : { range }
    return this.open(call, { method: 'GET', path: ['files'], query: { ...query }, headers })
  }

  write(call: FilesCall, { mode, ...query }: WriteOptions, body: Readable): Promise<FileStat> {
    return this.entry(call, { method: 'PUT', path: ['files'], query: { ...query, mode: octal(mode) }, body })
  }

  async remove(call: FilesCall, query: Place & { readonly recursive: boolean }): Promise<void> {
    const { body } = await this.open(call, { method: 'DELETE', path: ['files'], query: { ...query } })
    body.destroy()
  }

  makeDirectory(
    call: FilesCall,
    { mode, ...body }: Place & { readonly mode?: number | undefined; readonly parents: boolean },
  ): Promise<FileStat> {
    return this.entry(call, { method: 'POST', path: ['files', 'directory'], json: { ...body, mode: octal(mode) } })
  }

  rename(call: FilesCall, body: { readonly from: string; readonly to: string }): Promise<FileStat> {
    return this.entry(call, { method: 'POST', path: ['files', 'rename'], json: body })
  }

  /** Lines of JSON, one an event. */
  watch(call: FilesCall, query: Place & { readonly recursive: boolean }): Promise<NodeAnswer> {
    return this.open(call, { method: 'GET', path: ['files', 'watch'], query: { ...query } })
  }

  download(call: FilesCall, query: Place): Promise<NodeAnswer> {
    return this.open(call, { method: 'GET', path: ['files', 'archive'], query: { ...query } })
  }

  upload(call: FilesCall, query: Query, body: Readable) {
    const { principal, sandbox, signal } = call
    const request = { method: 'PUT', path: ['files', 'archive'], query, body, signal, answerWithinMs: 0 } as const
    return this.calls.json(principal, sandbox, request, uploadTree.reply[200])
  }

  private entry({ principal, sandbox, signal }: FilesCall, request: Omit<SandboxRequest, 'signal'>): Promise<FileStat> {
    return this.calls.json(principal, sandbox, { ...request, signal, answerWithinMs: 0 }, FileStat)
  }

  /** A large tree takes as long as it takes; a node that is gone is found by its connection. */
  private open(
    { principal, sandbox, signal }: FilesCall,
    request: Omit<SandboxRequest, 'signal'>,
  ): Promise<NodeAnswer> {
    return this.calls.call(principal, sandbox, { ...request, signal, answerWithinMs: 0 })
  }
}

/** As routes take it. */
const octal = (mode: number | undefined) => mode?.toString(8).padStart(3, '0')

/**
 * `Content-Disposition` (RFC 6266) that has a browser save a path's last part and never show it: what a sandbox made must
 * not run in the page of this API.
 */
export function savedAs(path: string, suffix = ''): string {
  const name = `${path.split('/').findLast((part) => part !== '') ?? 'root'}${suffix}`
  const ascii = name.replaceAll(/[^ !#$&'()+,\-.;=@[\]^_`{}~\w]/g, '_')
  const exact = encodeURIComponent(name).replaceAll(/['()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`)
  return `attachment; filename="${ascii}"${exact === name ? '' : `; filename*=UTF-8''${exact}`}`
}

/** Size of a file whose range was refused: RFC 9110, 15.5.17, wants it in the answer. */
export function refusedRange(error: unknown): string | undefined {
  if (!(error instanceof Failure) || error.code !== 'range_not_satisfiable') return undefined
  const { sizeBytes } = error.data
  return typeof sizeBytes === 'number' ? `bytes */${sizeBytes}` : undefined
}
