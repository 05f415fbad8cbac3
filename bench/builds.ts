// builds.ts: a Dockerfile to an image, one HTTP call, beside buildah.
import { randomUUID } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expectSuccess, run } from '@berth/host'
import { Pool } from 'undici'
import { z } from 'zod'
import { percentiles, timed } from './load.js'
import { openPeers, type Peers } from './peers.js'
import { one, type Section, say, table } from './section.js'

const STEPS = 20
const ROUNDS = 5

const Answer = z.object({ build: z.object({ id: z.string() }), image: z.object({ digest: z.string() }) })

const kinds = ['uncached', 'cached'] as const
type Times = Record<(typeof kinds)[number], Record<'berth' | 'buildah', number[]>>

interface Builder {
  /** @returns what tells the image from others */
  build(directory: string): Promise<string>
}

export const builds: Section = {
  name: 'builds',
  title: 'Builds: context to image',
  async measure(at) {
    const apiKey = await at.tenant({})
    const pool = new Pool(at.url, { headersTimeout: 0, bodyTimeout: 0 })
    const peers = await openPeers(at.dataDir)
    try {
      await peers.buildah('pull', '--signature-policy', peers.policy, `oci:${at.imagesDir}:debian:latest`)
      const id = (await peers.buildah('images', '--quiet')).stdout.trim()
      await peers.buildah('tag', id, 'localhost/debian')
      const rows = await compare(ours(pool, apiKey), theirs(peers), peers.directory)
      return `${explained}\n\n${table(['20 × RUN', 'Berth p50', 'buildah p50', '÷ buildah'], rows)}`
    } finally {
      peers.close()
      await pool.destroy()
    }
  },
}

const explained = `A Dockerfile of \`FROM debian\` and ${STEPS} times \`RUN echo … > file\`, each a layer, built to an image: \`POST
/v1/builds?wait=done\` with the context. Beside it, in turn, \`buildah bud --layers\` of Debian with overlay storage on the same disk
and \`--isolation chroot\`, which has no namespaces, no limits and no users of its own. Cached: all of it was built before, and the same
image comes out. Milliseconds, median of ${ROUNDS}.`

async function compare(berth: Builder, buildah: Builder, directory: string): Promise<(string | number)[][]> {
  const times: Times = { uncached: { berth: [], buildah: [] }, cached: { berth: [], buildah: [] } }
  for (let round = 0; round < ROUNDS; round++) {
    const context = contextOf(join(directory, 'contexts', `${round}`))
    for (const [who, builder] of [['berth', berth] as const, ['buildah', buildah] as const]) {
      const images: string[] = []
      for (const kind of kinds)
        times[kind][who].push(await timed(async () => images.push(await builder.build(context))))
      if (new Set(images).size !== 1) throw new Error(`a cached build gave another image: ${images.join(' ')}`)
    }
    say(`round ${round + 1} of ${ROUNDS}`)
  }
  return kinds.map((kind) => {
    const [mine, other] = [percentiles(times[kind].berth).p50, percentiles(times[kind].buildah).p50]
    return [kind, one(mine), one(other), `${(mine / other).toFixed(2)}x`]
  })
}

/** A context that nobody has built before. */
function contextOf(directory: string): string {
  mkdirSync(directory, { recursive: true })
  const steps = Array.from({ length: STEPS }, (_, i) => `RUN echo ${randomUUID()} > /step-${i}\n`)
  writeFileSync(join(directory, 'Dockerfile'), `ARG BASE=debian\nFROM \${BASE}\n${steps.join('')}`)
  return directory
}

const ours = (pool: Pool, apiKey: string): Builder => ({
  async build(directory) {
    const archive = `${directory}.tar`
    expectSuccess(await run(['tar', '-C', directory, '-cf', archive, '.']))
    const { statusCode, body } = await pool.request({
      ...{ method: 'POST', path: '/v1/builds?wait=done&tag=bench', body: readFileSync(archive) },
      headers: { authorization: `Bearer ${apiKey}` },
    })
    const text = await body.text()
    if (statusCode !== 201) throw new Error(`${statusCode} ${text.slice(0, 2000)}`)
    return Answer.parse(JSON.parse(text)).image.digest
  },
})

const theirs = (peers: Peers): Builder => ({
  async build(directory) {
    const options = ['--layers', '--isolation', 'chroot', '--pull-never', '--signature-policy', peers.policy]
    const { stdout } = await peers.buildah(
      ...['bud', ...options, '--build-arg', 'BASE=localhost/debian', '--tag', 'localhost/bench', directory],
    )
    return stdout.trim().split('\n').at(-1) ?? ''
  },
})
