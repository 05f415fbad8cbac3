// A node whose data directory is a small disk of its own: `full-disk.fixture.js DIRECTORY CGROUP_PARENT`, in a mount namespace
// of its own, with the disk at DIRECTORY/agent. Builds and commits while the disk fills up, makes room, and tries again.
// Writes what came of it as JSON on stdout.

import { spawnSync } from 'node:child_process'
import { closeSync, openSync, rmSync, statfsSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { type BuildStep, errnoOf, Failure, MiB } from '@berth/contracts'
import { spawnThrough } from '@berth/host'
import { createLogger } from '@berth/telemetry'
import { fsck } from '../images/fsck.js'
import { forever } from '../images/store.fixture.js'
import { clean } from '../sandbox/recovery.js'
import { loop, sh } from '../sandbox/residents.fixture.js'
import { SnapshotImages } from '../sandbox/snapshot-images.js'
import { TestBuilder } from './builds.fixture.js'

const [, , directory = '', cgroupParent = ''] = process.argv
const log = createLogger({ name: 'agent', level: 'error', destination: process.stderr })
await spawnThrough(join(import.meta.dirname, '../../../../libs/init/build/berth-run')) // as the agent does
const builder = await TestBuilder.open({ directory, cgroupParent }, { log })
const { node, images } = builder
const ballast = join(directory, 'agent', 'ballast')

/** Takes whatever the disk has left: most of it at once, the rest by little. */
function fill(): void {
  const { bavail, bsize } = statfsSync(join(directory, 'agent'))
  for (let bytes = bavail * bsize; bytes >= MiB; bytes -= 2 * MiB)
    if (spawnSync('fallocate', ['--length', String(bytes), ballast]).status === 0) break
  const file = openSync(ballast, 'a')
  try {
    for (;;) writeSync(file, Buffer.alloc(4096))
  } catch (error) {
    if (errnoOf(error) !== 'ENOSPC') throw error
  } finally {
    closeSync(file)
  }
}
const makeRoom = () => rmSync(ballast, { force: true })

/** What of the pool only something that goes on may have. */
const layersLeft = async () => (await node.shop.pool.list()).filter((name) => !/^(cache|sbx)_/.test(name))
/** What is wrong with the store: to look takes room. */
const problems = async () => (await fsck(images, false, forever)).problems

const results: Record<string, unknown> = {}

const orFailure = <T>(work: Promise<T>): Promise<T | Failure> =>
  work.catch((error: unknown) => {
    if (error instanceof Failure) return error
    throw error
  })

/** @param isFull when the disk fills up */
async function builds(name: string, dockerfile: string, isFull: 'before' | ((step: BuildStep) => boolean)) {
  const build = (onStep: (step: BuildStep) => void) =>
    builder.build(dockerfile, {
      files: { noise: Buffer.alloc(MiB, name) },
      noCache: true,
      limits: { cpus: 2, memoryBytes: 256 * MiB, pids: 256, diskBytes: 512 * MiB },
      onStep,
    })
  if (isFull === 'before') fill()
  const told = await orFailure(
    build((step) => {
      if (isFull !== 'before' && isFull(step)) fill()
    }),
  )
  const { code, message } = told instanceof Failure ? told : told.failed
  const left = await layersLeft()
  makeRoom()
  if (name !== TOO_LARGE && (await build(() => undefined)).steps.at(-1)?.step !== 'done') left.push('not built again')
  results[name] = { code, message, left: [...left, ...(await problems()), ...(await layersLeft())] }
}

async function commits(): Promise<void> {
  const { sandboxId: id } = await node.up(sh(loop))
  await node.inside(id, 'head -c 4000000 /dev/urandom > /noise')
  const snapshots = new SnapshotImages({
    residents: {
      find: (of) => {
        const live = node.residents.find(of)
        const { ids, spec, tenantId, upper, state, image } = live
        const based = image && { ...image, digest: builder.busybox.digest }
        return { ...Object.create(live), id: of, image: based, ids, spec, tenantId, upper, state }
      },
      still: (of, freeze, work) => node.residents.still(of, freeze, work),
    },
    images,
    copies: node.copies,
    shop: node.shop,
    log,
  })
  const asked = { pause: true, comment: '', author: '', changes: {}, maxBytes: 1e9 }
  const commit = () => orFailure(snapshots.commit(id, asked, forever))
  fill()
  const refused = await commit()
  const left = await layersLeft()
  if (node.shop.cgroups.frozen(node.residents.find(id).group)) left.push('a sandbox that stands still')
  makeRoom()
  const again = await commit()
  if (again instanceof Failure) left.push(again.message)
  const { code, message } = refused instanceof Failure ? refused : { code: '', message: 'done' }
  results.commit = { code, message, left: [...left, ...(await problems()), ...(await layersLeft())] }
  node.residents.discard(id)
}

const TOO_LARGE = 'a layer that is too large'
const begins = (instruction: string) => (step: BuildStep) => step.step === 'begin' && step.name.includes(instruction)
try {
  await builds(TOO_LARGE, 'FROM busybox\nRUN head -c 80000000 /dev/zero > /zeros', () => false)
  await builds('before a build', 'FROM busybox\nRUN true', 'before')
  await builds('before a command', 'FROM busybox\nRUN true', begins('RUN'))
  await builds('before a layer', 'FROM busybox\nRUN echo now; sleep 0.3', ({ step }) => step === 'output')
  await builds('before a copy', 'FROM busybox\nRUN true\nCOPY noise /', begins('COPY'))
  await commits()
} finally {
  await builder.builds.close()
  await Promise.all([node.supervisor.close(), node.residents.close()])
  node.shop.tenants.close()
  await clean(node.shop)
  await node.shop.pool.close()
}
process.stdout.write(JSON.stringify(results))
