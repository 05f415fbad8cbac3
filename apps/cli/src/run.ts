import { constants } from 'node:os'
import { buffer } from 'node:stream/consumers'
import { cancelJob, createJob, type Job, type OutputStream } from '@berth/contracts'
import { Client, followOutput, waitForJob } from '@berth/sdk'
import { readCredentials } from './credentials.js'
import type { Places } from './up/config.js'

export interface RunOptions {
  readonly image: string
  readonly memory?: string
  readonly cpus?: number
  readonly timeout?: string
  readonly env: readonly string[]
  readonly stdin: boolean
}

/** Runs a job, passes its output on as it comes, and answers with the exit code of `berth run`. */
export async function runJob(places: Places, command: readonly string[], options: RunOptions): Promise<number> {
  const { url, apiKey } = await readCredentials(places)
  await using client = new Client({ url, apiKey })
  const { memory, cpus } = options
  const body = {
    image: options.image,
    command: [...command],
    env: Object.fromEntries(options.env.map(splitVariable)),
    limits: { ...(memory === undefined ? {} : { memoryBytes: memory }), ...(cpus === undefined ? {} : { cpus }) },
    ...(options.timeout === undefined ? {} : { timeoutMs: options.timeout }),
    ...(options.stdin ? { stdin: (await buffer(process.stdin)).toString('base64') } : {}),
  }
  const { id, warnings } = await client.call(createJob, { body })
  for (const warning of warnings) process.stderr.write(`berth: warning: ${warning}\n`)
  const cancel = () => void client.call(cancelJob, { params: { jobId: id } }).catch(() => undefined)
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, cancel)
  const pass = async (stream: OutputStream, to: NodeJS.WriteStream) => {
    for await (const chunk of followOutput(client, id, stream))
      if (!to.write(chunk)) await new Promise((drained) => to.once('drain', drained))
  }
  await Promise.all([pass('stdout', process.stdout), pass('stderr', process.stderr)])
  const job = await waitForJob(client, id)
  if (!['completed', 'exit_nonzero'].includes(job.reason?.code ?? ''))
    process.stderr.write(`berth: ${job.reason?.message ?? job.state}\n`)
  return exitCodeOf(job)
}

const splitVariable = (text: string): [string, string] => {
  const at = text.indexOf('=')
  return at < 0 ? [text, process.env[text] ?? ''] : [text.slice(0, at), text.slice(at + 1)]
}

/** The job's own code; 124 timeout, 137 out of memory, 128+n signal n, 125 where Berth failed. */
export function exitCodeOf(job: Pick<Job, 'state' | 'exitCode' | 'signal' | 'oomKilled'>): number {
  if (job.state === 'timed_out') return 124
  if (job.oomKilled) return 137
  if (job.exitCode !== null) return job.exitCode
  const number = Object.entries(constants.signals).find(([name]) => name === job.signal)?.[1]
  if (number !== undefined) return 128 + number
  return job.state === 'canceled' ? 130 : 125
}
