// transfers.ts: an image to a root that can be run, from an archive and from a registry, beside skopeo and umoci.
import { createHash, randomBytes } from 'node:crypto'
import { createReadStream, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createGunzip } from 'node:zlib'
import { loadImages, pullImage, removeImage } from '@berth/contracts'
import { expectSuccess, run } from '@berth/host'
import { Client } from '@berth/sdk'
import { layersOf } from './floor.js'
import { percentiles, timed } from './load.js'
import { openPeers, type Peers } from './peers.js'
import { one, type Section, say, table } from './section.js'

const ROUNDS = 5
const MIB = 1024 ** 2
/** The API has to list it: tenants' pulls go to no loopback address else. */
const PORT = 5999
const REPOSITORY = `127.0.0.1:${PORT}/bench/python`

export const transfers: Section = {
  name: 'transfers',
  title: 'Images: archive or registry to root file system',
  async measure(at) {
    const client = new Client({ url: at.url, apiKey: await at.tenant({}) })
    const peers = await openPeers(at.dataDir)
    const root = join(peers.directory, 'rootfs')
    const loads: Pair = [[], []]
    const pulls: Pair = [[], []]
    let bytes = 0
    try {
      await using _registry = await peers.registry(PORT)
      mkdirSync(root)
      for (const layer of layersOf(at.imagesDir, 'python:latest'))
        await tar('-xpf', layer, '-C', root, '--numeric-owner')
      for (let round = 0; round < ROUNDS; round++) {
        const archive = await archiveOf(root, join(peers.directory, 'layout'))
        bytes = statSync(archive).size
        await measured(client, loads, [
          () => unpackBy(peers, `oci-archive:${archive}:latest`),
          () => loadBy(client, archive),
        ])
        const other = await archiveOf(root, join(peers.directory, 'layout'))
        const reference = `${REPOSITORY}:${round}`
        await peers.skopeo('copy', '--dest-tls-verify=false', `oci-archive:${other}:latest`, `docker://${reference}`)
        await measured(client, pulls, [
          () => unpackBy(peers, `docker://${reference}`, '--src-tls-verify=false'),
          () => pullBy(client, reference),
        ])
        say(`round ${round + 1} of ${ROUNDS}`)
      }
    } finally {
      peers.close()
      await client.close()
    }
    const head = ['from', 'MiB', 'Berth p50', 'skopeo, umoci p50', '÷ skopeo, umoci']
    const row = (from: string, [mine, others]: Pair) => {
      const [ours, theirs] = [percentiles(mine).p50, percentiles(others).p50]
      return [from, one(bytes / MIB), one(ours), one(theirs), `${(ours / theirs).toFixed(2)}x`]
    }
    return `${explained}\n\n${table(head, [row('archive', loads), row('registry', pulls)])}`
  },
}

/** Milliseconds of ours, and of the others'. */
type Pair = readonly [number[], number[]]

const explained = `An image of one layer (the base image \`python\`, gzip) that the node has never seen: \`POST
/v1/images/load?wait=done\` of an archive of its layout, and \`POST /v1/images/pull?wait=done\` from Debian's \`docker-registry\`
over loopback; jobs can start from it then. Beside each, in turn, \`skopeo copy\` to a layout and \`umoci unpack\` of that; they sync
nothing to the disk, which Berth does. Milliseconds, median of ${ROUNDS}.`

/** The peers first, then Berth; what it took in goes again. */
async function measured(
  client: Client,
  [mine, others]: Pair,
  [theirs, ours]: readonly [() => Promise<void>, () => Promise<string>],
): Promise<void> {
  others.push(await timed(theirs))
  let image = ''
  mine.push(await timed(async () => (image = await ours())))
  await client.call(removeImage, { params: { image } })
}

const tar = async (...args: string[]) => expectSuccess(await run(['tar', ...args], { timeoutMs: 300_000 }))

/** An archive of an image that nobody has: a layout with one layer of all that is below `root`. */
async function archiveOf(root: string, layout: string): Promise<string> {
  rmSync(layout, { recursive: true, force: true })
  const blobs = join(layout, 'blobs/sha256')
  mkdirSync(blobs, { recursive: true })
  writeFileSync(join(root, 'round'), randomBytes(32))
  const layer = join(layout, 'layer')
  await tar('-C', root, '--numeric-owner', '--use-compress-program=gzip -1', '-cf', layer, '.')
  const unpacked = createHash('sha256')
  for await (const chunk of createReadStream(layer).pipe(createGunzip())) unpacked.update(chunk)
  const put = (bytes: Buffer, mediaType: string) => {
    const digest = createHash('sha256').update(bytes).digest('hex')
    writeFileSync(join(blobs, digest), bytes)
    return { mediaType, digest: `sha256:${digest}`, size: bytes.length }
  }
  const oci = (what: string) => `application/vnd.oci.image.${what}`
  const json = (value: object, mediaType: string) => put(Buffer.from(JSON.stringify(value)), mediaType)
  const config = json(
    {
      ...{ architecture: process.arch === 'x64' ? 'amd64' : process.arch, os: 'linux', config: {} },
      rootfs: { type: 'layers', diff_ids: [`sha256:${unpacked.digest('hex')}`] },
    },
    oci('config.v1+json'),
  )
  const layers = [put(readFileSync(layer), oci('layer.v1.tar+gzip'))]
  rmSync(layer)
  const manifest = json({ schemaVersion: 2, config, layers }, oci('manifest.v1+json'))
  const annotations = { 'org.opencontainers.image.ref.name': 'latest' }
  writeFileSync(join(layout, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }))
  writeFileSync(
    join(layout, 'index.json'),
    JSON.stringify({ schemaVersion: 2, manifests: [{ ...manifest, annotations }] }),
  )
  const archive = `${layout}.tar`
  await tar('-C', layout, '-cf', archive, '.')
  return archive
}

async function unpackBy(peers: Peers, source: string, ...options: readonly string[]): Promise<void> {
  const copy = join(peers.directory, 'copy')
  const bundle = join(peers.directory, 'bundle')
  for (const directory of [copy, bundle]) rmSync(directory, { recursive: true, force: true })
  await peers.skopeo('copy', ...options, source, `oci:${copy}:latest`)
  await peers.umoci('unpack', '--image', `${copy}:latest`, bundle)
}

/** @throws ApiError policy_forbidden unless the API was started with BERTH_INSECURE_REGISTRIES=127.0.0.1:5999 */
async function pullBy(client: Client, reference: string): Promise<string> {
  const done = await client.call(pullImage, { query: { wait: 'done' }, body: { reference } })
  const [image] = done?.images ?? []
  if (!image) throw new Error('nothing was pulled')
  return image.digest
}

async function loadBy(client: Client, archive: string): Promise<string> {
  const done = await client.send(loadImages, { query: { wait: 'done' } }, createReadStream(archive))
  const [image] = done?.images ?? []
  if (!image) throw new Error('nothing was loaded')
  return image.digest
}
