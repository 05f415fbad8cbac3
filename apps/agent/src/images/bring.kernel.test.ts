// Images that come to a node from another one's store, as the API passes them on, and go wrong on the way.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Failure, Fault, type ImageSources } from '@berth/contracts'
import { createLogger } from '@berth/telemetry'
import { beforeEach, describe, expect, test } from '@jest/globals'
import { Bringing, type Giver } from './bring.js'
import { accessTo, digestOf } from './registry.fixture.js'
import { forever, TestStore, times } from './store.fixture.js'
import { givenTransfers } from './transfers.fixture.js'

const log = createLogger({ name: 'agent', level: 'silent' })

class Refusal extends Fault {
  constructor(readonly status: number) {
    super('ask the API', { cause: String(status) })
  }
}

/** What another node gives, by way of the API. */
class TestGiver implements Giver {
  readonly asked: { readonly blob: string; readonly need: string; readonly from: number }[] = []
  sources: ImageSources = { nodes: true, registry: null }
  /** Bytes of a blob after which it breaks off, once. */
  readonly breaks = new Map<string, number>()
  /** Other bytes than it has. */
  readonly lies = new Map<string, Buffer>()
  /** Whose asking is refused. */
  readonly refused = new Set<string>()
  /** Images of which it never says where they are. */
  readonly slow = new Set<string>()
  /** Resolves before a blob is given. */
  ready: Promise<void> = Promise.resolve()

  constructor(private readonly store: TestStore) {}

  async findImage(digest: string, need: string): Promise<ImageSources> {
    if (this.slow.has(digest)) return new Promise(() => undefined)
    if (this.refused.has(need)) throw new Refusal(404)
    return this.sources
  }

  async readImage(digest: string, blob: string, { need, from, signal }: Parameters<Giver['readImage']>[2]) {
    this.asked.push({ blob, need, from })
    await this.ready
    signal.throwIfAborted()
    if (this.refused.has(need)) throw new Refusal(404)
    const { manifest } = await this.store.images.get(digest)
    const wanted = blob === 'manifest' ? manifest.digest : blob
    const lie = this.lies.get(blob)
    const path = (await this.store.images.content.find(wanted))?.path ?? ''
    const bytes = (lie ?? readFileSync(path)).subarray(from)
    const end = this.breaks.get(blob)
    this.breaks.delete(blob)
    return (async function* () {
      yield bytes.subarray(0, end === undefined ? bytes.length : end)
      if (end !== undefined) throw new Fault(`read ${blob}`, { cause: 'cut' })
    })()
  }
}

const on = givenTransfers()
let giving: TestStore
let store: TestStore
let giver: TestGiver
let bringing: Bringing
let digest: string

beforeEach(async () => {
  giving = on.store
  ;({ digest } = (await on.pull()).image)
  store = await TestStore.open()
  giver = new TestGiver(giving)
  bringing = open()
})

const open = () => new Bringing({ images: store.images, giver, log, patience: times.patience, times })
const need = (name = 'att_1', owner = 'ten_1') => ({ for: name, owner })
const layers = () => on.image.blobs.map(digestOf)
const blobsAsked = () => giver.asked.map(({ blob }) => blob)

describe('an image that is brought', () => {
  test('is whole: as the other node has it, verified, unpacked, and found again after a restart', async () => {
    expect(await bringing.ensure(digest, need(), forever)).toMatchObject(on.held())
    await store.reopen()
    expect(await store.problems()).toEqual([])
    expect((await store.images.get(digest)).manifest).toEqual((await giving.images.get(digest)).manifest)
    const [, base = ''] = store.images.resolve('app', digest)?.layers ?? []
    expect(readFileSync(join(base, 'etc/motd'), 'utf8')).toBe('hello')
    giver.asked.length = 0
    await open().ensure(digest, need(), forever)
    expect(giver.asked).toEqual([])
  })

  test('is fetched once for all who want it, and goes on when the first of them leaves', async () => {
    let go: () => void = () => undefined
    giver.ready = new Promise((resolve) => {
      go = resolve
    })
    const leaving = new AbortController()
    const wanted = bringing.ensure(digest, need('att_1'), leaving.signal)
    const others = ['att_2', 'sbx_3'].map((name) => bringing.ensure(digest, need(name), forever))
    while (giver.asked.length === 0) await delay(1)
    leaving.abort(new Failure('unavailable', 'canceled'))
    await expect(wanted).rejects.toThrow('canceled')
    // What was asked for in the name of an attempt that is no more is refused: it is asked for in another's.
    giver.refused.add('att_1')
    go()
    for (const image of await Promise.all(others)) expect(image).toMatchObject(on.held())
    expect(giver.asked[0]).toMatchObject({ blob: 'manifest', need: 'att_1' })
    expect([...blobsAsked()].slice(1).sort()).toEqual(['manifest', digest, ...layers()].sort())
  })

  test('does not wait for another tenant’s that do not come, nor in that one’s line', async () => {
    const leaving = new AbortController()
    const slow = Array.from({ length: 8 }, (_, i) => digestOf(Buffer.from(String(i))))
    for (const one of slow) giver.slow.add(one)
    // The last one that it asks for is one that others need too.
    const waiting = [...slow, digest].map((one) => bringing.ensure(one, need('att_1', 'ten_1'), leaving.signal))
    expect(await bringing.ensure(digest, need('att_2', 'ten_2'), forever)).toMatchObject(on.held())
    expect(await waiting.pop()).toMatchObject(on.held())
    leaving.abort(new Failure('unavailable', 'canceled'))
    for (const one of waiting) await expect(one).rejects.toThrow('canceled')
  })

  test('is no more fetched when nobody waits for it', async () => {
    const all = new AbortController()
    giver.ready = new Promise(() => undefined)
    const wanted = [1, 2].map((n) => bringing.ensure(digest, need(`att_${n}`), all.signal))
    all.abort(new Failure('unavailable', 'canceled'))
    expect((await Promise.allSettled(wanted)).map(({ status }) => status)).toEqual(['rejected', 'rejected'])
    giver.ready = Promise.resolve()
    await bringing.ensure(digest, need(), forever)
    expect(await store.problems()).toEqual([])
  })

  test('goes on where it broke off', async () => {
    const [lower = ''] = layers()
    giver.breaks.set(lower, 1000)
    await bringing.ensure(digest, need(), forever)
    expect(giver.asked.filter(({ blob }) => blob === lower).map(({ from }) => from)).toEqual([0, 1000])
  })
})

test('what came of one that broke off for good is gone on with by the next agent', async () => {
  const [lower = ''] = layers()
  giver.breaks.set(lower, 2000)
  const gone = new Bringing({ images: store.images, giver, log, patience: { ...times.patience, attempts: 1 }, times })
  await expect(gone.ensure(digest, need(), forever)).rejects.toMatchObject({ code: 'image_unavailable' })
  await store.reopen()
  giver.asked.length = 0
  await open().ensure(digest, need(), forever)
  expect(giver.asked.filter(({ blob }) => blob === lower).map(({ from }) => from)).toEqual([2000])
  expect(await store.problems()).toEqual([])
})

describe('what is not the image', () => {
  test('is refused, and nothing of it is kept: another manifest, another layer', async () => {
    const [lower = '', upper = ''] = layers()
    for (const [blob, lie] of [
      ['manifest', Buffer.from('{}')],
      [
        'manifest',
        Buffer.from(
          JSON.stringify({
            ...JSON.parse(on.image.manifest.toString()),
            config: { ...JSON.parse(on.image.manifest.toString()).config, digest: upper },
          }),
        ),
      ],
      [lower, Buffer.alloc(on.image.blobs[0]?.length ?? 0)],
    ] as const) {
      giver.lies.clear()
      giver.lies.set(blob, lie)
      await expect(bringing.ensure(digest, need(), forever)).rejects.toMatchObject({ code: 'image_unavailable' })
      expect(store.images.has(digest)).toBe(false)
    }
    giver.lies.clear()
    await bringing.ensure(digest, need(), forever)
    expect(await store.problems()).toEqual([])
  })

  test('another owner’s blob that is here is fetched all the same', async () => {
    await bringing.ensure(digest, need(), forever)
    await store.images.drop(digest)
    giver.asked.length = 0
    await bringing.ensure(digest, need(), forever)
    expect(blobsAsked()).toEqual(['manifest'])
    await store.images.drop(digest)
    await bringing.ensure(digest, need('att_9', 'ten_2'), forever)
    expect(blobsAsked()).toEqual(expect.arrayContaining(layers()))
  })
})

describe('where no node gives it', () => {
  test('it comes from its registry, and only if it is the image there', async () => {
    const reference = `${on.proxy.host}/team/app@${digestOf(on.image.manifest)}`
    const registry = { reference, access: accessTo(on.proxy), maxBytes: 1e12 }
    giver.sources = { nodes: true, registry }
    giver.lies.set('manifest', Buffer.from('{}'))
    expect(await bringing.ensure(digest, need(), forever)).toMatchObject(on.held())
    giver.sources = { nodes: false, registry }
    const other = `sha256:${'0'.repeat(64)}`
    const refused = bringing.ensure(other, need(), forever)
    await expect(refused).rejects.toThrow('is image')
  })

  test('it is unavailable, and says why', async () => {
    giver.sources = { nodes: false, registry: null }
    const refused = bringing.ensure(digest, need(), forever)
    await expect(refused).rejects.toMatchObject({
      code: 'image_unavailable',
      message: `image ${digest} could not be brought to the node: no other node has it, and it came from no registry`,
    })
    giver.refused.add('att_1')
    await expect(bringing.ensure(digest, need(), forever)).rejects.toMatchObject({ code: 'image_unavailable' })
  })
})
