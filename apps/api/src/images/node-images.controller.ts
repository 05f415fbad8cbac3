import { findNodeImage, readNodeImage } from '@berth/contracts'
import { Controller } from '@nestjs/common'
import { type Call, Route } from '../http/route.decorator.js'
import { passOn } from '../streams/sandbox-calls.js'
import { ImageSources } from './image-sources.service.js'

@Controller()
export class NodeImagesController {
  constructor(private readonly sources: ImageSources) {}

  @Route(findNodeImage)
  find(call: Call<typeof findNodeImage>) {
    return this.sources.find(call, call.params.digest, call.body.for)
  }

  @Route(readNodeImage)
  async read(call: Call<typeof readNodeImage>) {
    return passOn(call, await this.sources.read(call, call.params.digest, call.params.blob, call.query))
  }
}
