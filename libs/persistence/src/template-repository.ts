// template-repository.ts: what others see of the rows of templates; see repositories.ts.
import type { Template, TemplateSpec } from '@berth/contracts'
import type { ImageOwner, ImageWanted } from '@berth/domain'
import type { PageOf, PageRequest } from './page.js'

export interface NewTemplateVersion {
  readonly owner: ImageOwner
  readonly name: string
  readonly description: string
  readonly spec: TemplateSpec
  /** What the spec's image means. */
  readonly image: ImageWanted
  /** Id of the key that asks. */
  readonly by: string
}

/** Everywhere an owner's own template hides a public one of its name. */
export interface Templates {
  /** @throws name_taken, quota_exceeded, image_not_found, tenant_not_found */
  create(asked: NewTemplateVersion): Promise<Template>
  /** The next version of an own template. @throws template_not_found, quota_exceeded, image_not_found */
  change(asked: NewTemplateVersion): Promise<Template>
  /** By name, each in its newest version. A position in the list is a name. */
  list(owner: ImageOwner, page: PageRequest): Promise<PageOf<Template>>
  /** @param version null: the newest. @throws template_not_found */
  get(owner: ImageOwner, name: string, version: number | null): Promise<Template>
  /** Newest first. A position in the list is a number. @throws template_not_found */
  versions(owner: ImageOwner, name: string, page: PageRequest): Promise<PageOf<Template>>
  /** Takes one version of an own template away, or all. @throws template_not_found */
  remove(owner: ImageOwner, name: string, version: number | null): Promise<void>
}
