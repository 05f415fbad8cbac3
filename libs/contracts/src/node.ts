import { z } from 'zod'
import { TenantLimits } from './command.js'
import { AttemptId, NodeId, SandboxId, TenantId } from './ids.js'
import { NodeImage } from './image.js'
import { ImageDigest, Platform, PullImage } from './image-node.js'
import { NodeReport } from './report.js'
import { Name, Page, pageOf, route, Time } from './route.js'
import { MiB } from './units.js'

/** What a node offers to sandboxes. */
export const Capacity = z.object({
  cpus: z.number().min(0).max(4096),
  memoryBytes: z.number().int().min(0),
  diskBytes: z.number().int().min(0),
  sandboxes: z.number().int().min(0).max(100_000).describe('How many may run at once'),
})
export type Capacity = z.infer<typeof Capacity>

/** `pending`: made, never seen. `ready`: takes work. `draining`: ends what it has. `lost`: silent for too long. */
export const NodeState = z.enum(['pending', 'ready', 'draining', 'lost'])
export type NodeState = z.infer<typeof NodeState>

export const Node = z.object({
  id: NodeId,
  name: Name,
  state: NodeState,
  capacity: Capacity,
  used: Capacity,
  images: z.array(NodeImage),
  runtime: z.string().nullable().describe('OCI runtime and version'),
  platform: z.string().nullable().describe('Of the images that it runs, as OCI names it: `linux/amd64`'),
  createdAt: Time,
  lastSeenAt: Time.nullable(),
})
export type Node = z.infer<typeof Node>

const nodeParams = z.object({ nodeId: NodeId })

export const createNode = route({
  id: 'createNode',
  method: 'POST',
  path: '/v1/nodes',
  scope: 'operator',
  rate: 'none',
  tag: 'nodes',
  summary: 'Create a node and its token',
  description: 'The token is shown in this answer and never again; the agent is started with it.',
  body: z.strictObject({ name: Name }),
  reply: { 201: Node.extend({ token: z.string() }) },
  errors: ['name_taken'],
})
export const listNodes = route({
  id: 'listNodes',
  method: 'GET',
  path: '/v1/nodes',
  scope: 'operator',
  rate: 'none',
  tag: 'nodes',
  summary: 'List nodes',
  query: z.strictObject({ ...Page.query }),
  reply: { 200: pageOf(Node) },
  errors: [],
})
export const getNode = route({
  id: 'getNode',
  method: 'GET',
  path: '/v1/nodes/:nodeId',
  scope: 'operator',
  rate: 'none',
  tag: 'nodes',
  summary: 'Get a node',
  params: nodeParams,
  reply: { 200: Node },
  errors: ['node_not_found'],
})
export const updateNode = route({
  id: 'updateNode',
  method: 'PATCH',
  path: '/v1/nodes/:nodeId',
  scope: 'operator',
  rate: 'none',
  tag: 'nodes',
  summary: 'Drain a node, or take it into service again',
  params: nodeParams,
  body: z.strictObject({ state: z.enum(['ready', 'draining']) }),
  reply: { 200: Node },
  errors: ['node_not_found', 'wrong_state'],
})
export const rotateNodeToken = route({
  id: 'rotateNodeToken',
  method: 'POST',
  path: '/v1/nodes/:nodeId/token',
  scope: 'operator',
  rate: 'none',
  tag: 'nodes',
  summary: "Replace a node's token",
  description: 'The former token is refused at once.',
  params: nodeParams,
  reply: { 200: Node.extend({ token: z.string() }) },
  errors: ['node_not_found'],
})
export const deleteNode = route({
  id: 'deleteNode',
  method: 'DELETE',
  path: '/v1/nodes/:nodeId',
  scope: 'operator',
  rate: 'none',
  tag: 'nodes',
  summary: 'Remove a node',
  description: 'Attempts still on it are lost and retried by their policy; its sandboxes are lost.',
  params: nodeParams,
  reply: { 204: 'empty' },
  errors: ['node_not_found'],
})

/** How the node's stream server is reached: base URL, and its TLS certificate (PEM), which callers pin. */
export const StreamServer = z.object({ url: z.url().max(512), certificate: z.string().max(16_384) })
export type StreamServer = z.infer<typeof StreamServer>

const standing = {
  capacity: Capacity,
  images: z.array(NodeImage).max(10_000),
  attempts: z
    .array(z.object({ id: AttemptId, generation: z.number().int().min(1) }))
    .max(100_000)
    .describe('Every attempt the node knows of and has not finished reporting'),
  sandboxes: z
    .array(z.object({ id: SandboxId, generation: z.number().int().min(1) }))
    .max(100_000)
    .describe('Every sandbox the node knows of, stopped ones too'),
  tenants: z
    .array(z.object({ id: TenantId, limits: TenantLimits.nullable().describe('Null: its kernel refused some') }))
    .max(100_000)
    .default([])
    .describe('Every tenant that has something on the node, and what the node holds it to'),
}

const answer = {
  unwanted: z.array(AttemptId).describe('Attempts that the node must end and forget'),
  unwantedSandboxes: z.array(SandboxId).describe('Sandboxes that the node must delete'),
  tenantLimits: z
    .array(z.object({ tenantId: TenantId, limits: TenantLimits }))
    .describe('Of the tenants listed, those that are to be held to something else'),
  unwantedImages: z
    .array(ImageDigest)
    .describe('Images that nobody has a name or a use for, held for over 15 minutes: the node drops them'),
}

export const joinNode = route({
  id: 'joinNode',
  method: 'POST',
  path: '/v1/node/join',
  scope: 'node',
  rate: 'none',
  tag: 'node protocol',
  summary: 'An agent starts: says what it is, learns where its queue is',
  body: z.object({
    ...standing,
    runtime: z.string().max(200),
    platform: Platform.optional(),
    streams: StreamServer,
  }),
  bodyLimit: 16 * MiB,
  reply: {
    200: z.object({
      nodeId: NodeId,
      queue: z.object({ redisUrl: z.string(), username: z.string(), password: z.string() }),
      grantKey: z.string().describe('Public key (SPKI PEM, Ed25519) that signs stream grants'),
      heartbeatMs: z.number().int(),
      ...answer,
    }),
  },
  errors: [],
})
export const heartbeat = route({
  id: 'heartbeat',
  method: 'POST',
  path: '/v1/node/heartbeat',
  scope: 'node',
  rate: 'none',
  tag: 'node protocol',
  summary: 'An agent lives',
  body: z.object(standing),
  bodyLimit: 16 * MiB,
  reply: { 200: z.object(answer) },
  errors: [],
})
export const reportNode = route({
  id: 'reportNode',
  method: 'POST',
  path: '/v1/node/reports',
  scope: 'node',
  rate: 'none',
  tag: 'node protocol',
  summary: 'What became of attempts and sandboxes',
  description: 'Answers when all are stored; the agent keeps and repeats reports until then.',
  body: z.object({ reports: z.array(NodeReport).min(1).max(100) }),
  bodyLimit: 32 * MiB,
  reply: { 200: z.object({ stored: z.number().int() }) },
  errors: [],
})

/** Why a node needs an image: the attempt or sandbox on it that starts from it, or a pass that the API gave it. */
export const ImageNeed = z.string().min(1).max(1024)

/** What is known of where an image is to be had. */
export const ImageSources = z.object({
  nodes: z.boolean().describe('Whether another node holds it'),
  registry: PullImage.nullable().describe('How the registry that it came from is asked for it, if it came from one'),
})
export type ImageSources = z.infer<typeof ImageSources>

export const findNodeImage = route({
  id: 'findNodeImage',
  method: 'POST',
  path: '/v1/node/images/:digest/sources',
  scope: 'node',
  rate: 'none',
  tag: 'node protocol',
  summary: 'Where an image is to be had that the node lacks',
  description: 'Only of an image that something on the node is to start from.',
  params: z.object({ digest: ImageDigest }),
  body: z.object({ for: ImageNeed }),
  idempotency: 'none',
  reply: { 200: ImageSources },
  errors: ['image_not_found'],
})
export const readNodeImage = route({
  id: 'readNodeImage',
  method: 'GET',
  path: '/v1/node/images/:digest/blobs/:blob',
  scope: 'node',
  rate: 'none',
  tag: 'node protocol',
  summary: 'Read a part of an image as another node has it',
  description: 'A layer, the configuration, or `manifest`. The nodes need not reach each other: the API passes it on.',
  params: z.object({ digest: ImageDigest, blob: ImageDigest.or(z.literal('manifest')) }),
  query: z.object({
    for: ImageNeed,
    from: z.coerce.number().int().min(0).default(0).describe('Offset of the first byte wanted'),
  }),
  reply: { 200: 'bytes' },
  errors: ['image_not_found', 'node_unreachable'],
})
