import {
  downloadTree,
  listFiles,
  makeDirectory,
  readFile,
  removeFile,
  renameFile,
  statFile,
  uploadTree,
  watchFiles,
  writeFile,
} from '@berth/contracts'
import { Controller } from '@nestjs/common'
import type { TenantPrincipal } from '../http/auth.js'
import { type Call, Route } from '../http/route.decorator.js'
import { passOn } from '../streams/sandbox-calls.js'
import { type FilesCall, FilesService, refusedRange, savedAs } from './files.service.js'

@Controller()
export class FilesController {
  constructor(private readonly files: FilesService) {}

  @Route(readFile)
  async read(call: Call<typeof readFile>) {
    const { query, asking, header } = call
    try {
      const answer = await this.files.read(of(call), query, asking.headers.range)
      header('content-disposition', savedAs(query.path))
      return passOn(call, answer)
    } catch (error) {
      const size = refusedRange(error)
      if (size !== undefined) header('content-range', size)
      throw error
    }
  }

  @Route(writeFile)
  write(call: Call<typeof writeFile>) {
    return this.files.write(of(call), call.query, call.stream)
  }

  @Route(removeFile)
  async remove(call: Call<typeof removeFile>) {
    await this.files.remove(of(call), call.query)
    return undefined
  }

  @Route(statFile)
  stat(call: Call<typeof statFile>) {
    return this.files.stat(of(call), call.query)
  }

  @Route(listFiles)
  async list(call: Call<typeof listFiles>) {
    return passOn(call, await this.files.list(of(call), call.query))
  }

  @Route(makeDirectory)
  makeDirectory(call: Call<typeof makeDirectory>) {
    return this.files.makeDirectory(of(call), call.body)
  }

  @Route(renameFile)
  rename(call: Call<typeof renameFile>) {
    return this.files.rename(of(call), call.body)
  }

  @Route(watchFiles)
  async watch(call: Call<typeof watchFiles>) {
    return passOn(call, await this.files.watch(of(call), call.query))
  }

  @Route(downloadTree)
  async download(call: Call<typeof downloadTree>) {
    const answer = await this.files.download(of(call), call.query)
    call.header('content-disposition', savedAs(call.query.path, '.tar'))
    return passOn(call, answer)
  }

  @Route(uploadTree)
  upload(call: Call<typeof uploadTree>) {
    return this.files.upload(of(call), call.query, call.stream)
  }
}

interface Asked {
  readonly principal: TenantPrincipal
  readonly params: { readonly sandbox: string }
  readonly signal: AbortSignal
}

const of = ({ principal, params, signal }: Asked): FilesCall => ({ principal, sandbox: params.sandbox, signal })
