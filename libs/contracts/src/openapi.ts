import { z } from 'zod'
import { type ErrorCode, problems } from './errors.js'
import { commonErrors, type Reply, type Route } from './route.js'

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
  const { $schema: _, ...json } = z.toJSONSchema(schema, {
    ...{ io, unrepresentable: 'any', target: 'draft-2020-12' },
    override({ zodSchema, jsonSchema }) {
      // What is filled in later (given.ts). zod takes it away from what is also transformed.
      const later = z.globalRegistry.get(zodSchema)?.default
      if (later !== undefined && io === 'input') jsonSchema.default = later as typeof jsonSchema.default
      if (later !== undefined && io === 'output') delete jsonSchema.default
    },
  })
  return json
}

/** Whether the route's answer is kept for repeats that carry the same `Idempotency-Key`. */
export const takesIdempotencyKey = (route: Route): boolean =>
  route.method !== 'GET' && route.scope !== 'node' && route.scope !== 'public' && route.idempotency !== 'none'

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
  for (const [name, description] of Object.entries(route.headers ?? {}))
    found.push({ name, in: 'header', required: false, description, schema: { type: 'string' } })
  if (takesIdempotencyKey(route))
    found.push({
      name: 'Idempotency-Key',
      in: 'header',
      required: false,
      description: 'Same key and same request within a day: the stored answer. Same key, other request: 409.',
      schema: { type: 'string', maxLength: 255 },
    })
  return found
}

const octets = { 'application/octet-stream': { schema: { type: 'string', format: 'binary' } } }

function success(reply: Reply): Json {
  if (reply === 'empty') return { description: 'Done' }
  if (reply === 'bytes') return { description: 'Raw bytes', content: octets }
  if (reply === 'socket') return { description: 'A WebSocket' }
  if (reply instanceof z.ZodType)
    return { description: 'Success', content: { 'application/json': { schema: schemaOf(reply, 'output') } } }
  const type = reply.kind === 'ndjson' ? 'application/x-ndjson' : 'text/event-stream'
  const description = reply.kind === 'ndjson' ? 'One JSON value a line' : 'One JSON value an event'
  return { description, content: { [type]: { schema: schemaOf(reply.item, 'output') } } }
}

function responses(route: Route): Json {
  const all: Record<string, Json> = {}
  for (const [status, reply] of Object.entries(route.reply)) all[status] = success(reply)
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

const requestBody = (body: NonNullable<Route['body']>): Json =>
  body === 'bytes'
    ? { required: true, content: octets }
    : {
        required: !body.safeParse(undefined).success,
        content: { 'application/json': { schema: schemaOf(body, 'input') } },
      }

const operation = (route: Route): Json => ({
  operationId: route.id,
  tags: [route.tag],
  summary: route.summary,
  ...(route.description ? { description: route.description } : {}),
  ...(route.scope === 'public' ? { security: [] } : { 'x-scope': route.scope }),
  parameters: parameters(route),
  ...(route.body ? { requestBody: requestBody(route.body) } : {}),
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
      description:
        'Jobs and sandboxes in hard-limited containers. Errors are problem documents (RFC 9457) with a stable `code`.',
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
