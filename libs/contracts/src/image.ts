import { z } from 'zod'
import { pageOf, route, Time } from './route.js'

/** An image that jobs can start from, as the nodes report it. */
export const Image = z.object({
  reference: z.string().describe('Name and tag, e.g. `python:latest`'),
  digest: z.string().describe('Digest of the image configuration (its image id), `sha256:…`'),
  sizeBytes: z.number().int().describe('Unpacked size of all layers'),
  nodes: z.number().int().describe('Ready nodes that hold it'),
})
export type Image = z.infer<typeof Image>

/** What a node tells of an image that it holds. */
export const NodeImage = z.object({
  reference: z.string().max(512).optional().describe('Of a base image, which all may use; others are known by digest'),
  digest: z.string().regex(/^sha256:[0-9a-f]{64}$/),
  sizeBytes: z.number().int().min(0),
  heldSince: Time.optional().describe('When the node last took it in. Without it the API never calls it unwanted'),
})
export type NodeImage = z.infer<typeof NodeImage>

export const listImages = route({
  id: 'listImages',
  method: 'GET',
  path: '/v1/images',
  scope: 'images:read',
  rate: 'read',
  tag: 'images',
  summary: 'List the images that jobs can use',
  reply: { 200: pageOf(Image) },
  errors: [],
})
