import { z } from 'zod'
import { type ErrorCode, problems } from './errors.js'
import { commonErrors, type Route } from './route.js'

type Json = Readonly<Record<string, unknown>>

/** A problem document (RFC 9457) as the API writes it. */
export const Problem = z.object({
  type: z.string().describe('`urn:berth:problem:` and the code'),
  title: z.string(),
  status: z.number().int(),
  code: z.string(),
  detail: z.string(),
  requestId: z.string(),
  errors: z.array(z.object({ field: z.string(), message: z.string() })).optional(),
})

const schemaOf = (schema: z.ZodType, io: 'input' | 'output'): Json => {
  const { $schema: _, ...json } = z.toJSONSchema(schema, { io, unrepresentable: 'any', target: 'draft-2020-12' })
  return json
}

function parameters(route: Route): Json[] {
  const found: Json[] = []
  for (const [place, schema] of [
    ['path', route.params],
    ['query', route.query],
  ] as const) {
    if (!schema) continue
    const json = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' })
    for (const [name, property] of Object.entries(json.properties ?? {}))
      found.push({
        name,
        in: place,
        required: place === 'path' || (json.required ?? []).includes(name),
        schema: property,
      })
  }
  if (route.method !== 'GET' && route.scope !== 'node' && route.scope !== 'public')
    found.push({
      name: 'Idempotency-Key',
      in: 'header',
      required: false,
      description: 'Same key and same request within a day: the stored answer. Same key, other request: 409.',
      schema: { type: 'string', maxLength: 255 },
    })
  return found
}

function responses(route: Route): Json {
  const all: Record<string, Json> = {}
  for (const [status, reply] of Object.entries(route.reply)) {
    if (reply === 'empty') all[status] = { description: 'Done' }
    else if (reply === 'bytes')
      all[status] = {
        description: 'Raw bytes',
        content: { 'application/octet-stream': { schema: { type: 'string', format: 'binary' } } },
      }
    else
      all[status] = {
        description: 'Success',
        content: { 'application/json': { schema: schemaOf(reply, 'output') } },
      }
  }
  const byStatus = new Map<number, ErrorCode[]>()
  for (const code of new Set<ErrorCode>([...route.errors, ...commonErrors])) {
    const { status } = problems[code]
    byStatus.set(status, [...(byStatus.get(status) ?? []), code])
  }
  for (const [status, codes] of [...byStatus].sort(([a], [b]) => a - b))
    all[status] = {
      description: codes.map((code) => `\`${code}\`: ${problems[code].title}`).join('; '),
      content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } } },
    }
  return all
}

const operation = (route: Route): Json => ({
  operationId: route.id,
  tags: [route.tag],
  summary: route.summary,
  ...(route.description ? { description: route.description } : {}),
  ...(route.scope === 'public' ? { security: [] } : { 'x-scope': route.scope }),
  parameters: parameters(route),
  ...(route.body
    ? { requestBody: { required: true, content: { 'application/json': { schema: schemaOf(route.body, 'input') } } } }
    : {}),
  responses: responses(route),
})

/**
 * The OpenAPI 3.1 document of a list of routes.
 * @param version the product's version
 */
export function openApi(routes: readonly Route[], version: string): Json {
  const paths: Record<string, Record<string, Json>> = {}
  for (const route of routes) {
    const path = route.path.replace(/:(\w+)/g, '{$1}')
    paths[path] = { ...paths[path], [route.method.toLowerCase()]: operation(route) }
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Berth',
      version,
      description: 'Jobs in hard-limited containers. Errors are problem documents (RFC 9457) with a stable `code`.',
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    security: [{ bearer: [] }, { apiKey: [] }],
    tags: [...new Set(routes.map((route) => route.tag))].map((name) => ({ name })),
    paths,
    components: {
      schemas: { Problem: schemaOf(Problem, 'output') },
      securitySchemes: {
        bearer: { type: 'http', scheme: 'bearer' },
        apiKey: { type: 'apiKey', in: 'header', name: 'X-API-Key' },
      },
    },
  }
}
