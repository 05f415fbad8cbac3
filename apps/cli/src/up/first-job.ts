// first-job.ts: the end of `./berth up`: a job that runs shows that all of it works.
import { createJob, Fault, listImages } from '@berth/contracts'
import type { Client } from '@berth/sdk'
import { until } from './daemon.js'

const IMAGE = 'python'

/** @throws Fault where no node reports its image in time, or it does not succeed */
export async function firstJob(client: Client): Promise<void> {
  if (!(await until(() => isThere(client, IMAGE), 30_000)))
    throw new Fault('run a first job', { cause: `the node reports no image ${IMAGE}` })
  const command = [
    'python3',
    '-c',
    'import os, platform; print("hello from a sandbox:", platform.platform(), "uid", os.getuid())',
  ]
  const job = await client.call(createJob, {
    query: { wait: 'finished', output: 'true', timeoutMs: '60s' },
    body: { image: IMAGE, command },
  })
  if (job.state !== 'succeeded')
    throw new Fault('run a first job', { cause: `${job.state}: ${job.reason?.message ?? ''}` })
  process.stdout.write(job.output?.stdout.data ?? '')
}

/** Asked for by its name: the tenant may have so many images that it is on no first page. */
export const isThere = async (client: Client, reference: string): Promise<boolean> =>
  (await client.call(listImages, { query: { reference } })).items.length > 0
