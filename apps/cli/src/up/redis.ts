// redis.ts: a private Redis for queues and wake-ups. It belongs to the distribution's user `redis`, listens on a unix
// socket only and asks for a password; each node gets a user of its own from the API (ACL SETUSER). It appends to a
// file, so a restart loses at most a second; Postgres knows what to queue again.
import { createHash, randomBytes } from 'node:crypto'
import { chownSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { createConnection } from 'node:net'
import { join } from 'node:path'
import { ignore } from '@berth/contracts'
import {
  awaitReady,
  type DaemonPlaces,
  ensureDaemon,
  ownDirectory,
  requireSocketPath,
  stopDaemon,
  systemUser,
} from './daemon.js'
import type { Service } from './postgres.js'

export interface RedisOptions extends DaemonPlaces {
  /** Made where it is missing; holds data, socket, password and ACL. */
  readonly dataDir: string
}

const name = 'redis'

/**
 * Has the server running and ready.
 * @returns url in the form that ioredis takes for a socket: `<path of the socket>?username=default&password=<password>`
 * @throws Fault with the server's log, or naming what is missing
 */
export async function startRedis(options: RedisOptions): Promise<Service> {
  const user = systemUser('redis', 'redis-server')
  const { dataDir } = options
  const socket = join(dataDir, 'redis.sock')
  requireSocketPath(socket)
  ownDirectory(dataDir, user)
  const own = (file: string, text: string) => {
    const path = join(dataDir, file)
    writeFileSync(`${path}.tmp`, text, { mode: 0o600 })
    chownSync(`${path}.tmp`, user.uid, user.gid)
    renameSync(`${path}.tmp`, path)
    return path
  }
  const password = readIfThere(join(dataDir, 'password')) ?? randomBytes(32).toString('hex')
  own('password', password)
  own('users.acl', accessList(readIfThere(join(dataDir, 'users.acl')) ?? '', password))
  const settings = configuration(dataDir, socket)
  const { record, started } = await ensureDaemon(options, {
    name,
    argv: ['/usr/bin/redis-server', own('redis.conf', settings)],
    env: {},
    dependsOn: [settings, password],
    user: { uid: user.uid, gid: user.gid },
    stopSignal: 'SIGTERM',
    stopWithinMs: 30_000,
  })
  await awaitReady(options, name, record, () => answers(socket, password), 60_000)
  const stop = async () => void (await stopDaemon(options, name))
  return { url: `${socket}?username=default&password=${password}`, started, stop }
}

function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    return ignore(error, 'ENOENT')
  }
}

/** The list with our password for `default`; other users, saved by ACL SAVE, stay. */
export function accessList(current: string, password: string): string {
  const others = current.split('\n').filter((line) => line.startsWith('user ') && !line.startsWith('user default '))
  const hash = createHash('sha256').update(password).digest('hex')
  return [`user default on #${hash} ~* &* +@all`, ...others, ''].join('\n')
}

function configuration(dataDir: string, socket: string): string {
  const settings: readonly (readonly [string, ...string[]])[] = [
    ['port', '0'],
    ['unixsocket', socket],
    ['unixsocketperm', '700'],
    ['dir', dataDir],
    ['aclfile', join(dataDir, 'users.acl')],
    ['daemonize', 'no'],
    ['appendonly', 'yes'],
    ['appendfsync', 'everysec'],
    ['save', ''],
    // BullMQ needs every key it wrote: a full memory is an error to the writer, never a silent loss.
    ['maxmemory-policy', 'noeviction'],
    ['databases', '1'],
  ]
  return settings.map((words) => `${words.map((word) => JSON.stringify(word)).join(' ')}\n`).join('')
}

/** True once the server takes the password and answers a ping; false while it loads or does not listen. */
function answers(socket: string, password: string): Promise<boolean> {
  return new Promise((resolve) => {
    const connection = createConnection(socket)
    let said = ''
    connection.setTimeout(2000, () => connection.destroy())
    connection.on('data', (chunk) => {
      said += chunk.toString('utf8')
      if (said.split('\r\n').length > 2) connection.destroy()
    })
    connection.on('error', () => connection.destroy()) // not listening yet: `close` follows and answers false
    connection.on('close', () => resolve(said === '+OK\r\n+PONG\r\n'))
    connection.write(`AUTH ${password}\r\nPING\r\n`)
  })
}
