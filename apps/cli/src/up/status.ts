import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { Fault } from '@berth/contracts'
import { loadCredentials } from '../credentials.js'
import type { Places } from './config.js'
import { logPath, readDaemon } from './daemon.js'
import { isAlive } from './process.js'

const services = ['postgres', 'redis', 'api', 'agent'] as const

/** Prints what runs; the exit code is 1 when something that was started does not. */
export async function showStatus(places: Places): Promise<void> {
  let dead = 0
  for (const name of services) {
    const record = await readDaemon({ runDir: places.run, logDir: places.logs }, name)
    const alive = record !== undefined && isAlive(record)
    if (record && !alive) dead++
    const text = alive
      ? `running  pid ${record.pid} since ${record.startedAt}`
      : record
        ? 'dead     (./berth up starts it)'
        : '-'
    process.stdout.write(`${name.padEnd(10)}${text}\n`)
  }
  const credentials = await loadCredentials(places)
  if (credentials) {
    const ready = await fetch(`${credentials.url}/readyz`)
      .then((r) => r.status === 200)
      .catch(() => false)
    process.stdout.write(`${'url'.padEnd(10)}${credentials.url} (${ready ? 'ready' : 'not ready'})\n`)
  }
  process.exitCode = dead > 0 ? 1 : 0
}

/** Shows the end of one log, or of all; with `follow` until interrupted. */
export function showLogs(places: Places, service: string | undefined, follow: boolean): Promise<void> {
  const wanted = services.filter((name) => service === undefined || name === service)
  const files = wanted
    .map((name) => logPath({ runDir: places.run, logDir: places.logs }, name))
    .filter((path) => existsSync(path))
  if (files.length === 0) throw new Fault('show logs', { cause: `there are none for ${service ?? 'any service'}` })
  const child = spawn('tail', [...(follow ? ['-F'] : []), '-n', '100', '--', ...files], { stdio: 'inherit' })
  return new Promise((done) => child.once('close', () => done()))
}
