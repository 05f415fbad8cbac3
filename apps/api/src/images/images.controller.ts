import {
  deleteRegistry,
  getImage,
  getImageArchive,
  getImageHistory,
  getRegistry,
  importImage,
  listImages,
  listRegistries,
  loadImages,
  pruneImages,
  pullImage,
  pushImage,
  putRegistry,
  removeImage,
  saveImages,
  tagImage,
  untagImage,
} from '@berth/contracts'
import { Controller } from '@nestjs/common'
import { z } from 'zod'
import { pageAnswer, pageRequest } from '../http/paging.js'
import { progressOf } from '../http/progress.js'
import { type Call, Route } from '../http/route.decorator.js'
import { savedAs } from '../sandboxes/files.service.js'
import { passOn } from '../streams/sandbox-calls.js'
import { ownerSeen } from './image-names.js'
import { telling } from './image-views.js'
import { ImagesService } from './images.service.js'
import { RegistriesService } from './registries.service.js'
import { TransfersService } from './transfers.service.js'

/** When an image was added, in milliseconds, and which one it is: see persistence. */
const Position = z.string().regex(/^\d{1,15}\.sha256:[0-9a-f]{64}$/)

@Controller()
export class ImagesController {
  constructor(
    private readonly images: ImagesService,
    private readonly transfers: TransfersService,
    private readonly registries: RegistriesService,
  ) {}

  @Route(listImages)
  async list({ principal, query }: Call<typeof listImages>) {
    const owner = ownerSeen(principal, query.tenantId)
    return pageAnswer(await this.images.list(owner, query, pageRequest(query, Position)))
  }

  @Route(saveImages)
  async save(call: Call<typeof saveImages>) {
    const answer = await this.transfers.archive(call, call.query.image, call.query.format)
    call.header('content-disposition', savedAs('images', '.tar'))
    return passOn(call, answer)
  }

  @Route(getImage)
  get(call: Call<typeof getImage>) {
    return this.images.get(call, call.params.image, ownerSeen(call.principal, call.query.tenantId))
  }

  @Route(getImageHistory)
  history(call: Call<typeof getImageHistory>) {
    return this.images.history(call, call.params.image)
  }

  @Route(getImageArchive)
  async archive(call: Call<typeof getImageArchive>) {
    const answer = await this.transfers.archive(call, [call.params.image], call.query.format)
    call.header('content-disposition', savedAs(call.params.image, '.tar'))
    return passOn(call, answer)
  }

  @Route(pullImage)
  async pull(call: Call<typeof pullImage>) {
    return progressOf(call, this.transfers.pull(call, call.body.reference, call.body.platform), telling)
  }

  @Route(loadImages)
  load(call: Call<typeof loadImages>) {
    return progressOf(call, this.transfers.load(call, call.stream), telling)
  }

  @Route(importImage)
  async import(call: Call<typeof importImage>) {
    return progressOf(call, this.transfers.import(call, call.query.reference, call.query.config, call.stream), telling)
  }

  @Route(pushImage)
  push(call: Call<typeof pushImage>) {
    return progressOf(call, this.transfers.push(call, call.params.image, call.body.reference), telling)
  }

  @Route(tagImage)
  tag(call: Call<typeof tagImage>) {
    return this.images.tag(call, call.params.image, call.params.reference)
  }

  @Route(untagImage)
  untag(call: Call<typeof untagImage>) {
    return this.images.untag(call, call.params.image, call.params.reference)
  }

  @Route(removeImage)
  remove(call: Call<typeof removeImage>) {
    return this.images.remove(call, call.params.image, call.query.force)
  }

  @Route(pruneImages)
  prune({ principal, body }: Call<typeof pruneImages>) {
    return this.images.prune(principal, body)
  }

  @Route(listRegistries)
  listLogins({ principal }: Call<typeof listRegistries>) {
    return this.registries.list(principal)
  }

  @Route(getRegistry)
  getLogin({ principal, params }: Call<typeof getRegistry>) {
    return this.registries.get(principal, params.registry)
  }

  @Route(putRegistry)
  putLogin({ principal, params, body }: Call<typeof putRegistry>) {
    return this.registries.put(principal, params.registry, body)
  }

  @Route(deleteRegistry)
  async deleteLogin({ principal, params }: Call<typeof deleteRegistry>) {
    await this.registries.delete(principal, params.registry)
    return undefined
  }
}
