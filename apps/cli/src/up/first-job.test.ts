import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Image } from '@berth/contracts'
import { Client } from '@berth/sdk'
import { expect, test } from '@jest/globals'
import { isThere } from './first-job.js'

const imageOf = (reference: string): Image => ({
  ...{ digest: `sha256:${'ab'.repeat(32)}`, manifestDigest: null, references: [reference], visibility: 'public' },
  ...{ base: true, platform: null, labels: {}, sizeBytes: 1, uniqueBytes: 1, sharedBytes: 0, nodes: 1 },
  ...{ createdAt: null, addedAt: null },
})

test('an image is found however many others there are', async () => {
  // An API of somebody who has built a lot: pages, newest first.
  const api = createServer((request, response) => {
    const asked = new URL(request.url ?? '', 'http://api').searchParams.get('reference')
    const others = Array.from({ length: 50 }, (_, i) => imageOf(`mine:${i}`))
    const items = asked === null ? others : asked === 'python' ? [imageOf('python:latest')] : []
    response.setHeader('content-type', 'application/json')
    response.end(JSON.stringify({ items, nextCursor: asked === null ? 'more' : null }))
  }).listen(0, '127.0.0.1')
  await once(api, 'listening')
  const { port } = api.address() as AddressInfo
  try {
    await using client = new Client({ url: `http://127.0.0.1:${port}`, apiKey: 'brt_x' })
    expect([await isThere(client, 'python'), await isThere(client, 'cobol')]).toEqual([true, false])
  } finally {
    api.closeAllConnections()
    api.close()
  }
})
