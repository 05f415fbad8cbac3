import { BuildReferences, Failure, InvalidRequest, type NodeId, type TenantId } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import type { TenantPrincipal } from '../http/auth.js'
import type { ImageNames } from '../images/image-names.js'
import type { ImageSources } from '../images/image-sources.service.js'
import type { TransfersService } from '../images/transfers.service.js'
import type { ImageGate } from '../scan/image-gate.js'
import type { Database } from '../tokens.js'
import { BaseImages } from './base-images.js'

/** What a build that begins with an image of this name fails with, where none is one. @param told by the node, as JSON */
async function failureOf(reference: string, told: string): Promise<unknown> {
  const look = async (_: string, text: string) => {
    throw new InvalidRequest([{ field: 'image', message: `${text}: no name` }])
  }
  const bases = new BaseImages(
    {} as Database,
    { look } as unknown as ImageNames,
    {} as ImageSources,
    {} as TransfersService,
    {} as ImageGate,
  )
  const call = {
    principal: { kind: 'tenant', tenantId: 'ten_1' as TenantId } as TenantPrincipal,
    signal: new AbortController().signal,
  }
  const references = BuildReferences.parse({ ...JSON.parse(told), references: [reference] })
  const steps = bases.on(call, 'nod_1' as NodeId, references, { pull: false, platform: null })
  return steps.next().catch((error: unknown) => error)
}

test.each(['APP', 'constructor', 'toString'])('an image %s that is none is told with its place', async (name) => {
  const place = `{"line":2,"instruction":"FROM ${name} AS x"}`
  const failure = await failureOf(name, `{"places":{"${name}":${place}}}`)
  expect(failure).toBeInstanceOf(Failure)
  expect(failure).toMatchObject({ code: 'dockerfile_invalid', message: `line 2, FROM: ${name}: no name` })
})

test.each(['APP', '__proto__', 'constructor'])(
  'an image %s of which no place is told is told all the same',
  async (name) => {
    expect(await failureOf(name, '{}')).toMatchObject({ code: 'dockerfile_invalid', message: `${name}: no name` })
  },
)
