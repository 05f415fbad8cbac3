// template.ts: an image with defaults, under a name. What a template says is never changed: each change is one more
// version. A sandbox or job is created from a version and keeps what it was created with.
import { z } from 'zod'
import { whole } from './given.js'
import { ImageDigest } from './image-node.js'
import { ImageReference } from './job.js'
import { Name, Page, pageOf, route, TemplateRef, Time } from './route.js'
import { givenSandboxFields, SandboxSpec } from './sandbox.js'

const templateFields = givenSandboxFields.omit({ name: true, template: true, privileged: true, init: true }).extend({
  image: ImageReference.describe(
    'Of the versions of a template each keeps the digest that this led to when it was made',
  ),
})

/** Fields of a sandbox that are the same for many: its image, and what is to be otherwise than by default. */
export const TemplateSpec = templateFields.superRefine(whole(SandboxSpec))
export type TemplateSpec = z.infer<typeof TemplateSpec>

/** One version of a template. */
export const Template = z.object({
  name: Name,
  version: z.number().int().min(1),
  latest: z.boolean().describe('Whether it is the newest version, which the name alone means'),
  visibility: z.enum(['tenant', 'public']).describe('`tenant`: yours; `public`: for all, and only operators change it'),
  description: z.string(),
  spec: templateFields,
  imageDigest: ImageDigest.nullable().describe('What runs; null: a base image, by its name'),
  createdAt: Time,
  createdBy: z.string().describe('Id of the key'),
})
export type Template = z.infer<typeof Template>

const reading = { method: 'GET', rate: 'read', scope: 'images:read', operators: true, tag: 'templates' } as const
const writing = { rate: 'write', scope: 'images:write', operators: true, tag: 'templates' } as const
const version = {
  description: z
    .string()
    .max(1000)
    .regex(/^[^\p{Cs}]*$/u)
    .default(''),
  spec: TemplateSpec,
}
const making = ['invalid_json', 'body_too_large', 'quota_exceeded', 'image_not_found', 'policy_forbidden'] as const

export const createTemplate = route({
  ...writing,
  id: 'createTemplate',
  method: 'POST',
  path: '/v1/templates',
  summary: 'Create a template',
  description:
    'With its version 1. Of an operator it is public: every tenant may use it. What the policy lets no sandbox have is ' +
    'refused, here as when it is used.',
  body: z.strictObject({ name: Name, ...version }),
  reply: { 201: Template },
  errors: [...making, 'name_taken'],
})
export const listTemplates = route({
  ...reading,
  id: 'listTemplates',
  path: '/v1/templates',
  summary: 'List templates by name, each in its newest version',
  description: 'Your own and public ones; your own hides a public one of the same name.',
  query: z.strictObject({ ...Page.query }),
  reply: { 200: pageOf(Template) },
  errors: [],
})
const params = z.object({ template: TemplateRef })
export const getTemplate = route({
  ...reading,
  id: 'getTemplate',
  path: '/v1/templates/:template',
  summary: 'Get a template, in its newest version or another',
  params,
  reply: { 200: Template },
  errors: ['template_not_found'],
})
export const listTemplateVersions = route({
  ...reading,
  id: 'listTemplateVersions',
  path: '/v1/templates/:template/versions',
  summary: 'List the versions of a template, newest first',
  params: z.object({ template: Name }),
  query: z.strictObject({ ...Page.query }),
  reply: { 200: pageOf(Template) },
  errors: ['template_not_found'],
})
export const createTemplateVersion = route({
  ...writing,
  id: 'createTemplateVersion',
  method: 'POST',
  path: '/v1/templates/:template/versions',
  summary: 'Change a template: make its next version',
  description: 'What was made from an earlier version stays as it is.',
  params: z.object({ template: Name }),
  body: z.strictObject(version),
  reply: { 201: Template },
  errors: [...making, 'template_not_found'],
})
export const deleteTemplate = route({
  ...writing,
  id: 'deleteTemplate',
  method: 'DELETE',
  path: '/v1/templates/:template',
  summary: 'Delete a template, or as `name@3` one version of it',
  description: 'With its last version the template goes. What was made from it stays as it is.',
  params,
  reply: { 204: 'empty' },
  errors: ['template_not_found'],
})
