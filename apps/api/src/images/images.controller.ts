import { listImages } from '@berth/contracts'
import { Controller } from '@nestjs/common'
import { Route } from '../http/route.decorator.js'
import { ImagesService } from './images.service.js'

@Controller()
export class ImagesController {
  constructor(private readonly images: ImagesService) {}

  @Route(listImages)
  list() {
    return this.images.list()
  }
}
