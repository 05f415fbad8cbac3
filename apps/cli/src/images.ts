// images.ts: `./berth pull` and `./berth images`: what the API has, over the API; and whether this machine's node holds it
// whole.
import { spawn } from 'node:child_process'
import { Fault, type Image, type ImageProgress, listImages, pullImage } from '@berth/contracts'
import { Client } from '@berth/sdk'
import { readCredentials } from './credentials.js'
import type { Places } from './up/config.js'
import { readDaemon } from './up/daemon.js'
import { agentProgram } from './up/up.js'

/** As of `berth run`. */
const OWN_FAILURE = 125

/** Runs with a client of the API that `up` started, or that the environment names. */
export async function withClient<T>(places: Places, work: (client: Client) => Promise<T>): Promise<T> {
  const client = new Client(await readCredentials(places))
  try {
    return await work(client)
  } finally {
    await client.close()
  }
}

/**
 * Pulls an image and tells what happens.
 * @returns exit code: 0 it is there, 125 it is not
 */
export function pull(places: Places, reference: string): Promise<number> {
  return withClient(places, async (client) => {
    const told = new Map<string, string>()
    for await (const step of client.values(pullImage, { body: { reference } })) {
      const line = lineOf(step, told)
      if (line !== undefined) process.stderr.write(`${line}\n`)
      if (step.step === 'failed') return OWN_FAILURE
      if (step.step === 'done') for (const { digest } of step.images) process.stdout.write(`${digest}\n`)
    }
    return 0
  })
}

/**
 * What a step is to somebody who watches; undefined where it says nothing new.
 * @param told what was said of each layer before, which this adds to
 */
export function lineOf(step: ImageProgress, told: Map<string, string>): string | undefined {
  if (step.step === 'failed') return `berth: ${step.message}`
  if (step.step === 'retry') return step.message
  if (step.step === 'done') return step.images.flatMap(({ references }) => references).join(' ') || undefined
  if (told.get(step.digest) === step.state) return undefined
  told.set(step.digest, step.state)
  return `${step.digest.slice('sha256:'.length, 19)} ${step.state}`
}

/** Prints the images that jobs and sandboxes can start from, one a line. */
export function listAll(places: Places): Promise<void> {
  return withClient(places, async (client) => {
    for (let cursor: string | undefined; ; ) {
      const page = await client.call(listImages, { query: { limit: 200, ...(cursor !== undefined && { cursor }) } })
      process.stdout.write(page.items.map(rowOf).join(''))
      if (page.nextCursor === null) return
      cursor = page.nextCursor
    }
  })
}

const MIB = 1024 ** 2

export function rowOf({ digest, references, sizeBytes, visibility, base }: Image): string {
  const names = references.length === 0 ? ['<none>'] : references
  const id = digest.slice('sha256:'.length, 19)
  return names
    .map((name) => `${name}\t${id}\t${(sizeBytes / MIB).toFixed(1)} MiB\t${base ? 'base' : visibility}\n`)
    .join('')
}

/**
 * Checks the images of this machine's node, and prints what is wrong with them; beside an agent that runs too.
 * @returns exit code: 0 nothing is wrong, 1 something is, 125 it could not be checked
 */
export async function checkImages(places: Places): Promise<number> {
  const agent = await readDaemon({ runDir: places.run, logDir: places.logs }, 'agent')
  if (!agent) throw new Fault('check images', { cause: 'no agent was started here; "./berth up" does' })
  const child = spawn(process.execPath, [agentProgram, '--fsck'], {
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...agent.env, PATH: process.env.PATH ?? '' },
  })
  return new Promise((done, failed) => {
    child.once('error', failed)
    child.once('close', (code) => done(code === 0 || code === 1 ? code : OWN_FAILURE))
  })
}
