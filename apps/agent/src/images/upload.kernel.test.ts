// Blobs to registries that take less at once, break off, or have them already: Debian's docker-registry behind a proxy, and
// one of the tests' own that keeps what came.
import { rmSync, writeFileSync } from 'node:fs'
import { KiB, MiB } from '@berth/contracts'
import { parseReference } from '@berth/oci'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from '@jest/globals'
import { Progress } from './progress.js'
import { push } from './push.js'
import { type Asked, accessTo, digestOf, noise, type Trouble } from './registry.fixture.js'
import { Registry } from './registry.js'
import { forever, TestStore, times } from './store.fixture.js'
import { givenTransfers } from './transfers.fixture.js'
import { OtherRepositories, upload } from './upload.js'
import { type Brought, UploadRegistry } from './uploads.fixture.js'

const path = `/var/tmp/berth-upload-${process.pid}`
const bytes = noise(12 * MiB + 5)
const blob = { digest: digestOf(bytes), size: bytes.length, path }
beforeAll(() => writeFileSync(path, bytes))
afterAll(() => rmSync(path))

/** Sends the blob. @returns what was told of tries that failed */
async function send(to: { readonly host: string; readonly url: string }): Promise<readonly string[]> {
  const retries: string[] = []
  const registry = new Registry({
    ...{ ...times, reference: parseReference(`${to.host}/team/blob:1`), actions: 'pull,push', signal: forever },
    ...{ access: accessTo({ url: to.url, certificate: null }), retrying: (message) => retries.push(message) },
  })
  try {
    const others = new OtherRepositories(registry.itself, [])
    expect(await upload(registry, blob, { moved: () => undefined, others })).toBe('sent')
  } finally {
    await registry.close()
  }
  return retries
}

/** The first so many that match are cut after so many bytes. */
const cuts = (count: number, after: number, matches: (request: Brought) => boolean = () => true) => {
  let left = count
  return (request: Brought) => (matches(request) && left-- > 0 ? after : undefined)
}
const pieces = (registry: UploadRegistry) =>
  registry.brought.map(({ method, range, bytes }) => `${method} ${range ?? bytes}`)

describe('a blob that breaks off', () => {
  test('goes on from where the registry has it', async () => {
    await using registry = await UploadRegistry.start()
    registry.rules = { cut: cuts(2, 5 * MiB) }
    expect(await send(registry)).toHaveLength(2)
    expect(registry.blobs.get(blob.digest)?.equals(bytes)).toBe(true)
    const last = bytes.length - 1
    const [whole, second, third] = pieces(registry)
    expect([whole, second, third]).toEqual([
      `PUT ${bytes.length}`,
      `PATCH ${5 * MiB}-${last}`,
      `PATCH ${10 * MiB}-${last}`,
    ])
    // Nothing came twice.
    expect(registry.received).toBe(bytes.length)
    expect(registry.asked.filter((asked) => asked.startsWith('POST'))).toHaveLength(1)
  })

  test('is sent in pieces where the registry does not tell, and goes on with the next', async () => {
    await using registry = await UploadRegistry.start()
    registry.rules = { silent: true, cut: cuts(1, MiB) }
    await send(registry)
    const half = Math.ceil(bytes.length / 2)
    expect(pieces(registry)).toEqual([
      `PUT ${bytes.length}`,
      `PATCH 0-${half - 1}`,
      `PATCH ${half}-${bytes.length - 1}`,
    ])
    expect(registry.blobs.get(blob.digest)?.equals(bytes)).toBe(true)
  })

  test('is sent whole again to a registry that takes no pieces', async () => {
    await using registry = await UploadRegistry.start()
    registry.rules = { refused: ['PATCH'], cut: cuts(1, MiB) }
    await send(registry)
    expect(pieces(registry)).toEqual([`PUT ${bytes.length}`, `PATCH ${MiB}-${bytes.length - 1}`, `PUT ${bytes.length}`])
    expect(registry.blobs.get(blob.digest)?.equals(bytes)).toBe(true)
  })

  test('is given up where it never comes further', async () => {
    await using registry = await UploadRegistry.start()
    registry.rules = { silent: true, cut: () => 1000 }
    await expect(send(registry)).rejects.toMatchObject({ code: 'registry_unreachable' })
    expect(registry.brought).toHaveLength(times.patience.attempts)
  })
})

describe('a registry that takes only so much at once', () => {
  test('gets pieces that are smaller, and not smaller than it says', async () => {
    await using registry = await UploadRegistry.start()
    registry.rules = { maxBody: 2 * MiB, least: 1700 * KiB }
    await send(registry)
    expect(registry.blobs.get(blob.digest)?.equals(bytes)).toBe(true)
    const taken = registry.brought.filter((request) => request.bytes <= 2 * MiB)
    for (const request of taken.slice(0, -1)) expect(request.bytes).toBeGreaterThanOrEqual(1700 * KiB)
    expect(taken.length).toBeLessThan(9)
    expect(registry.received).toBe(bytes.length)
  })

  test('is told as what it is when it takes less than it wants at least, or next to nothing', async () => {
    await using registry = await UploadRegistry.start()
    for (const rules of [{ maxBody: MiB, least: 2 * MiB }, { maxBody: KiB }]) {
      registry.rules = rules
      await expect(send(registry)).rejects.toMatchObject({
        ...{ code: 'registry_unreachable', message: expect.stringContaining('413') },
      })
    }
  })

  test('and closes on the rest is found out by smaller and smaller pieces', async () => {
    await using registry = await UploadRegistry.start()
    registry.rules = { maxBody: 500_000, abrupt: true }
    await send(registry)
    expect(registry.blobs.get(blob.digest)?.equals(bytes)).toBe(true)
  })

  test('or wants pieces gets them', async () => {
    await using registry = await UploadRegistry.start()
    registry.rules = { refused: ['PUT'] }
    await send(registry)
    expect(registry.blobs.get(blob.digest)?.equals(bytes)).toBe(true)
  })
})

describe('to docker-registry', () => {
  const on = givenTransfers()
  const isThere = async () => {
    const answer = await fetch(`${on.registry.url}/v2/team/blob/blobs/${blob.digest}`)
    expect(Buffer.from(await answer.arrayBuffer()).equals(bytes)).toBe(true)
    on.proxy.asked.length = 0
  }
  const bodies = () => on.proxy.asked.filter(({ headers }) => Number(headers['content-length'] ?? 0) > 0)
  const large = { kind: 'answer', status: 413 } as const
  const isLarger = (asked: Asked, than: number): Trouble | undefined =>
    Number(asked.headers['content-length'] ?? 0) > than ? large : undefined

  test('through a proxy that takes a megabyte, as nginx does', async () => {
    on.proxy.trouble = (asked) => isLarger(asked, MiB)
    expect(await send(on.proxy)).toEqual([])
    expect(bodies().filter((asked) => !isLarger(asked, MiB)).length).toBeGreaterThan(12)
    await isThere()
  })

  test('a piece that was not passed on is sent again, and none before it', async () => {
    let left = 2
    const isSecond = ({ headers }: Asked) => /^[1-9]/.test(headers['content-range'] ?? '')
    on.proxy.trouble = (asked) =>
      isLarger(asked, 7 * MiB) ?? (isSecond(asked) && left-- > 0 ? { kind: 'answer', status: 503 } : undefined)
    expect(await send(on.proxy)).toHaveLength(2)
    expect(on.proxy.asked.filter(({ method }) => method === 'POST')).toHaveLength(1)
    const ranges = bodies().map(({ method, headers }) => `${method} ${headers['content-range'] ?? ''}`)
    const half = Math.ceil(bytes.length / 2)
    const second = `PATCH ${half}-${bytes.length - 1}`
    expect(ranges).toEqual(['PUT ', `PATCH 0-${half - 1}`, second, second, second])
    await isThere()
  })

  describe('what it has in another repository', () => {
    beforeEach(async () => {
      await on.pull()
      on.proxy.asked.length = 0
    })
    const pushTo = async (name: string, mountFrom: string[]) => {
      const request = { digest: digestOf(on.image.config), reference: `${on.proxy.host}/${name}`, mountFrom }
      await push(on.store.images, { ...request, access: accessTo(on.proxy) }, forever, new Progress(), times)
      const other = await TestStore.open()
      const { image } = await other.pull(`${on.registry.host}/${name}`, accessTo(on.registry))
      expect(image).toMatchObject(on.held())
    }

    test('is mounted, and not sent', async () => {
      await pushTo('new/one:1', ['team/none', 'team/app'])
      expect(bodies().map(({ path }) => path)).toEqual(['/v2/new/one/manifests/1'])
    })

    test('is sent where it may not be mounted, or not be read', async () => {
      on.proxy.trouble = ({ path }) => (path.includes('mount=') ? { kind: 'answer', status: 403 } : undefined)
      await pushTo('new/two:1', ['team/app'])
      expect(bodies()).toHaveLength(4)
      on.proxy.asked.length = 0
      on.proxy.trouble = ({ path }) => (path.startsWith('/v2/team/app/') ? { kind: 'answer', status: 500 } : undefined)
      await pushTo('new/three:1', ['team/app'])
      expect(bodies()).toHaveLength(4)
      // Of three blobs the first finds that it is of no use.
      expect(on.proxy.asked.filter(({ path }) => path.startsWith('/v2/team/app/'))).toHaveLength(1)
    })
  })
})
