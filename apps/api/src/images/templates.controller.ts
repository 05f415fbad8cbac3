import {
  createTemplate,
  createTemplateVersion,
  deleteTemplate,
  getTemplate,
  listTemplates,
  listTemplateVersions,
  Name,
} from '@berth/contracts'
import { Controller } from '@nestjs/common'
import { z } from 'zod'
import { pageAnswer, pageRequest } from '../http/paging.js'
import { type Call, Route } from '../http/route.decorator.js'
import { TemplatesService } from './templates.service.js'

/** Where in the versions of a template a page ends. */
const Version = z.string().regex(/^[1-9]\d{0,8}$/)

@Controller()
export class TemplatesController {
  constructor(private readonly templates: TemplatesService) {}

  @Route(createTemplate)
  create({ principal, body: { name, ...version } }: Call<typeof createTemplate>) {
    return this.templates.create(principal, name, version)
  }

  @Route(listTemplates)
  async list({ principal, query }: Call<typeof listTemplates>) {
    return pageAnswer(await this.templates.list(principal, pageRequest(query, Name)))
  }

  @Route(getTemplate)
  get({ principal, params }: Call<typeof getTemplate>) {
    return this.templates.get(principal, params.template)
  }

  @Route(listTemplateVersions)
  async versions({ principal, params, query }: Call<typeof listTemplateVersions>) {
    return pageAnswer(await this.templates.versions(principal, params.template, pageRequest(query, Version)))
  }

  @Route(createTemplateVersion)
  change({ principal, params, body }: Call<typeof createTemplateVersion>) {
    return this.templates.change(principal, params.template, body)
  }

  @Route(deleteTemplate)
  delete({ principal, params }: Call<typeof deleteTemplate>) {
    return this.templates.delete(principal, params.template)
  }
}
