// templates.service.ts: templates as their owners see them, and what sandboxes and jobs come to that name one.
import {
  type GivenJob,
  type GivenSandbox,
  invariant,
  JobSpec,
  SandboxSpec,
  type Template,
  type TemplateSpec,
} from '@berth/contracts'
import { type ImageOwner, jobOf, sandboxOf } from '@berth/domain'
import type { NewTemplateVersion, PageOf, PageRequest } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { z } from 'zod'
import type { Config } from '../config.js'
import { parseWith } from '../http/violations.js'
import { requireAllowed, sandboxPolicy } from '../sandboxes/policy.js'
import { CONFIG, DATABASE, type Database } from '../tokens.js'
import { type ImageCaller, ImageNames, ownerOf } from './image-names.js'

/** A spec, and the text by which its image is looked up: its own, or the digest that the template keeps. */
export interface Specified<Spec> {
  readonly spec: Spec
  readonly image: string
}

interface VersionOf {
  readonly description: string
  readonly spec: TemplateSpec
}

/** `name@3` → name and number; null: the newest. */
function partsOf(ref: string): { readonly name: string; readonly version: number | null } {
  const [name = '', version] = ref.split('@')
  return { name, version: version === undefined ? null : Number(version) }
}

@Injectable()
export class TemplatesService {
  private readonly policy: ReturnType<typeof sandboxPolicy>

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CONFIG) config: Config,
    private readonly names: ImageNames,
  ) {
    this.policy = sandboxPolicy(config)
  }

  /** @throws name_taken, image_not_found, quota_exceeded, policy_forbidden for what no sandbox of it could have now */
  create(caller: ImageCaller, name: string, version: VersionOf): Promise<Template> {
    return this.make(caller, name, version, (asked) => this.database.templates.create(asked))
  }

  /** @throws template_not_found, and as `create` */
  change(caller: ImageCaller, name: string, version: VersionOf): Promise<Template> {
    return this.make(caller, name, version, (asked) => this.database.templates.change(asked))
  }

  list(caller: ImageCaller, page: PageRequest): Promise<PageOf<Template>> {
    return this.database.templates.list(ownerOf(caller), page)
  }

  versions(caller: ImageCaller, name: string, page: PageRequest): Promise<PageOf<Template>> {
    return this.database.templates.versions(ownerOf(caller), name, page)
  }

  /** @throws template_not_found */
  get(caller: ImageCaller, ref: string): Promise<Template> {
    const { name, version } = partsOf(ref)
    return this.database.templates.get(ownerOf(caller), name, version)
  }

  /** @throws template_not_found */
  async delete(caller: ImageCaller, ref: string): Promise<undefined> {
    const { name, version } = partsOf(ref)
    await this.database.templates.remove(ownerOf(caller), name, version)
  }

  /** @throws template_not_found; InvalidRequest for what the two come to together */
  async sandbox(owner: ImageOwner, given: GivenSandbox): Promise<Specified<SandboxSpec>> {
    const template = await this.named(owner, given.template)
    const whole = template ? sandboxOf(template.spec, given, usedOf(template)) : given
    const spec = parseWith(SandboxSpec, whole, 'body')
    return { spec, image: imageOf(template, given, spec) }
  }

  /** @throws as `sandbox` */
  async job(owner: ImageOwner, given: GivenJob): Promise<Specified<JobSpec>> {
    const template = await this.named(owner, given.template)
    const spec = parseWith(JobSpec, template ? jobOf(template.spec, given, usedOf(template)) : given, 'body')
    return { spec, image: imageOf(template, given, spec) }
  }

  /** Of each template the version that is the newest now is used for all. @throws as `sandbox` */
  async jobs(owner: ImageOwner, given: readonly GivenJob[]): Promise<readonly Specified<JobSpec>[]> {
    const refs = [...new Set(given.flatMap(({ template }) => template ?? []))]
    const found = new Map<string, Template>()
    for (const ref of refs) found.set(ref, await this.find(owner, ref))
    const templateOf = ({ template }: GivenJob) => (template === undefined ? undefined : found.get(template))
    const wholes = given.map((one) => {
      const template = templateOf(one)
      return template ? jobOf(template.spec, one, usedOf(template)) : one
    })
    const { jobs } = parseWith(Jobs, { jobs: wholes }, 'body')
    return jobs.map((spec, i) => {
      const one = given[i] ?? {}
      return { spec, image: imageOf(templateOf(one), one, spec) }
    })
  }

  private async named(owner: ImageOwner, ref: string | undefined): Promise<Template | undefined> {
    return ref === undefined ? undefined : this.find(owner, ref)
  }

  private find(owner: ImageOwner, ref: string): Promise<Template> {
    const { name, version } = partsOf(ref)
    return this.database.templates.get(owner, name, version)
  }

  private async make(
    caller: ImageCaller,
    name: string,
    version: VersionOf,
    make: (asked: NewTemplateVersion) => Promise<Template>,
  ): Promise<Template> {
    const { description, spec } = version
    requireAllowed(this.policy, parseWith(SandboxSpec, spec, 'body.spec'))
    const owner = ownerOf(caller)
    return this.names.admitted(owner, [spec.image], ([image]) => {
      invariant(image, 'a name means something')
      return make({ owner, name, description, spec, image, by: caller.keyId })
    })
  }
}

const Jobs = z.object({ jobs: z.array(JobSpec) })

const usedOf = ({ name, version }: Template): string => `${name}@${version}`

/** Another image than the template's is looked up by its own name. */
const imageOf = (
  template: Template | undefined,
  given: { readonly image?: string | undefined },
  spec: { readonly image: string },
): string => (template && given.image === undefined ? (template.imageDigest ?? spec.image) : spec.image)
