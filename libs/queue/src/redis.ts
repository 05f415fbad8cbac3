// redis.ts: where Redis is, and what both ends of a node's queue must agree on.
import { Fault, type NodeId } from '@berth/contracts'

/** What this library logs through; a pino logger is one. */
export interface QueueLog {
  info(fields: object, event: string): void
  warn(fields: object, event: string): void
  error(fields: object, event: string): void
}

/** Connection options, as ioredis (and so BullMQ) takes them. */
export interface RedisAddress {
  readonly host?: string
  readonly port?: number
  /** Path of a unix socket, instead of host and port. */
  readonly path?: string
  readonly username?: string
  readonly password?: string
  readonly db: number
  readonly tls?: Record<string, never>
}

const socketUrl = /^(?:redis\+)?unix:\/\/(?:([^:@/]*)(?::([^@/]*))?@)?(\/[^?]*)(?:\?(.*))?$/

const given = (name: 'username' | 'password', value: string | null | undefined): Partial<RedisAddress> =>
  value ? { [name]: value } : {}

function databaseOf(text: string | null | undefined): number {
  const db = Number(text || '0')
  if (!Number.isInteger(db) || db < 0) throw new Fault('reading REDIS_URL', { cause: 'its database is not a number' })
  return db
}

/**
 * Reads a Redis URL: `redis://[user]:[password]@host:port/db`, the same with `rediss` for TLS, or a unix socket as
 * `unix:///path?username=&password=&db=`, also written `redis+unix://user:password@/path?db=`. Parts are
 * percent-encoded. Messages of errors never repeat the URL, which may hold a password.
 * @throws Fault when it is none of these
 */
export function parseRedisUrl(url: string): RedisAddress {
  return socketAddress(url) ?? hostAddress(url)
}

function socketAddress(url: string): RedisAddress | undefined {
  const [matched, user, password, path, query] = socketUrl.exec(url) ?? []
  if (matched === undefined || path === undefined) return undefined
  const options = new URLSearchParams(query)
  return {
    path: decodeURIComponent(path),
    db: databaseOf(options.get('db')),
    ...given('username', options.get('username') ?? decodeURIComponent(user ?? '')),
    ...given('password', options.get('password') ?? decodeURIComponent(password ?? '')),
  }
}

function hostAddress(text: string): RedisAddress {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (!url?.hostname || (url.protocol !== 'redis:' && url.protocol !== 'rediss:'))
    throw new Fault('reading REDIS_URL', { cause: 'it must be like redis://host:6379/0 or unix:///path/redis.sock' })
  return {
    host: url.hostname.replace(/^\[|\]$/g, ''),
    port: Number(url.port || '6379'),
    db: databaseOf(url.pathname.slice(1)),
    ...given('username', decodeURIComponent(url.username)),
    ...given('password', decodeURIComponent(url.password)),
    ...(url.protocol === 'rediss:' ? { tls: {} } : {}),
  }
}

/** The same address for someone else: without user and password. */
export function withoutCredentials(redisUrl: string): string {
  const { host = '', port, path, db, tls } = parseRedisUrl(redisUrl)
  if (path !== undefined) return `unix://${encodeURI(path)}${db ? `?db=${db}` : ''}`
  return `${tls ? 'rediss' : 'redis'}://${host.includes(':') ? `[${host}]` : host}:${port}/${db}`
}

/** First word of an error that Redis answered: `WRONGPASS`, `NOPERM`, …; undefined for other errors. */
export function replyCode(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined
  return /^(?:[A-Za-z]+Error: )?-?([A-Z]{3,})\b/.exec(error.message)?.[1]
}

/** Waits after the n-th failed try to connect, in milliseconds: quick at first, then once a second. */
export const reconnectDelayMs = (failures: number): number => Math.min(50 * 2 ** Math.min(failures, 10), 1000)

/** Name of every node's queue; nodes differ in their prefix. */
export const QUEUE = 'commands'

/**
 * Prefix of all keys of a node. The braces are a hash tag: all of them are in one slot of a Redis Cluster, which
 * BullMQ's scripts need, and one ACL pattern covers exactly them.
 */
export const keyPrefix = (nodeId: NodeId): string => `{berth:${nodeId}}`

/** Prefix of a key of a node's queue, BullMQ's layout: `<prefix>:<queue>:<key>`. */
export const queueKey = (nodeId: NodeId, key: string): string => `${keyPrefix(nodeId)}:${QUEUE}:${key}`
