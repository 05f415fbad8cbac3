// snapshot-handler.ts: what the API may ask about copies of a sandbox's files; see snapshot.ts of libs/contracts. As with
// images the request is the operation: when its caller goes it stops.
import { Failure, type HeldFiles, HoldSnapshot, ImageDigest, NodeCommit, SnapshotId } from '@berth/contracts'
import type { SandboxHandler } from '@berth/node-rpc'
import { withRoom } from '../images/content.js'
import { type ImageParts, told } from '../images/images-handler.js'
import type { HeldSnapshots } from './held-snapshots.js'
import type { Residents } from './residents.js'
import { imageOf, type SnapshotImages, stillWithFiles } from './snapshot-images.js'

export interface SnapshotHandlerParts {
  readonly residents: Pick<Residents, 'find' | 'still'>
  readonly held: HeldSnapshots
  readonly images: SnapshotImages
  readonly taking: ImageParts
}

export const snapshotHandler = ({ residents, held, images, taking }: SnapshotHandlerParts): SandboxHandler => ({
  async request(call) {
    const asked = `${call.method} ${call.rest.slice(1).join('/')}`
    if (asked === 'POST commit') {
      const request = await call.json(NodeCommit)
      return told(call, taking, async (progress) => [
        { image: await images.commit(call.sandboxId, request, call.signal, progress), references: [] },
      ])
    }
    if (asked === 'GET export')
      return call.bytes(images.export(call.sandboxId, call.signal), {
        headers: { 'content-type': 'application/x-tar' },
      })
    if (asked === 'POST hold') {
      const wanted = await call.json(HoldSnapshot)
      const { signal } = call
      const live = residents.find(call.sandboxId)
      const image = imageOf(live)
      const still = (work: () => Promise<unknown>) => stillWithFiles(residents, live.id, wanted.pause, signal, work)
      await withRoom(() => held.hold(live, image, { ...wanted, still, signal }))
      const answer: HeldFiles = { image: ImageDigest.parse(image.digest) }
      return call.answer(200, answer)
    }
    const [, word, id] = call.rest
    const snapshot = SnapshotId.safeParse(id)
    if (call.method === 'DELETE' && word === 'hold' && snapshot.success && call.rest.length === 3) {
      await held.release(snapshot.data, call.sandboxId)
      return call.answer(204)
    }
    throw new Failure('route_not_found', 'no such request about copies of files')
  },
})
