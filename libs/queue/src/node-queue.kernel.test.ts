// A real redis-server in a directory of its own, on a unix socket.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createConnection, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import {
  AttemptId,
  CancelAttempt,
  commandSubject,
  Fault,
  ForgetAttempt,
  JobId,
  mintId,
  type NodeCommand,
  NodeId,
} from '@berth/contracts'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals'
import { Redis } from 'ioredis'
import { type ConsumeOptions, consumeNodeQueue } from './consumer.js'
import { type NodeQueues, openNodeQueues } from './node-queue.js'
import { queueKey } from './redis.js'

let minted = 0
const random = () => Buffer.from(`test${String(minted++).padStart(6, '0')}`)
const newNode = () => NodeId.parse(mintId('node', 0, random()))
const newAttempt = () => AttemptId.parse(mintId('attempt', 0, random()))
const forget = (nodeId: NodeId, generation = 1): NodeCommand =>
  ForgetAttempt.parse({ kind: 'forget', nodeId, attemptId: newAttempt(), generation })

async function until(what: string, holds: () => boolean | Promise<boolean>, limitMs = 30_000): Promise<void> {
  const end = performance.now() + limitMs
  while (!(await holds())) {
    if (performance.now() > end) throw new Error(`not within ${limitMs} ms: ${what}`)
    await delay(10)
  }
}

const logged: { level: string; event: string; fields: object }[] = []
const logger = (level: string) => (fields: object, event: string) => void logged.push({ level, event, fields })
const log = { info: logger('info'), warn: logger('warn'), error: logger('error') }

let dir: string
let server: ChildProcess
let redisUrl: string
let admin: Redis
/** Less than the 10 s after which BullMQ would find out by itself, and far more than a busy machine needs. */
const SOON_MS = 8_000
const password = 'admin secret'

async function startServer(): Promise<void> {
  const options = {
    dir,
    unixsocket: join(dir, 'redis.sock'),
    port: '0',
    save: '',
    appendonly: 'no',
    requirepass: password,
  }
  const argv = Object.entries(options).flatMap(([name, value]) => [`--${name}`, value])
  server = spawn('redis-server', argv, { stdio: 'ignore' })
  admin = new Redis({ path: options.unixsocket, password, retryStrategy: () => 20 })
  admin.on('error', () => undefined)
  await admin.ping()
}

async function stopServer(): Promise<void> {
  admin.disconnect()
  server.kill('SIGKILL')
  await once(server, 'exit')
}

let queues: NodeQueues
let node: NodeId
const opened: { close(): Promise<void> }[] = []

function consume(options: Partial<ConsumeOptions> & Pick<ConsumeOptions, 'handle'>) {
  const given = { redisUrl, username: node, password: 'node secret', nodeId: node, concurrency: 2, log }
  const consumer = consumeNodeQueue({ ...given, ...options })
  opened.push(consumer)
  return consumer
}

/** Collects what is delivered. */
function collect(options: Partial<ConsumeOptions> = {}) {
  const got: NodeCommand[] = []
  const consumer = consume({ handle: async (command) => void got.push(command), ...options })
  return { got, consumer }
}

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'berth-queue-'))
  redisUrl = `unix://${dir}/redis.sock?password=${encodeURIComponent(password)}`
  await startServer()
})
afterAll(async () => {
  await stopServer()
  await rm(dir, { recursive: true })
})
beforeEach(async () => {
  logged.length = 0
  node = newNode()
  queues = openNodeQueues({ redisUrl, log })
  opened.push(queues)
  await queues.ensureNodeUser(node, 'node secret')
})
afterEach(async () => {
  for (const one of opened.splice(0).reverse()) await one.close()
})

describe('delivery', () => {
  test('hands a command to its node, and to no other', async () => {
    const other = newNode()
    await queues.ensureNodeUser(other, 'other secret')
    const mine = collect()
    const others = collect({ username: other, password: 'other secret', nodeId: other })
    const [a, b] = [forget(node), forget(other)]
    await Promise.all([queues.send(a), queues.send(b)])
    await until('both delivered', () => mine.got.length + others.got.length === 2)
    expect([mine.got, others.got]).toEqual([[a], [b]])
  })

  test('what is sent twice while it waits is delivered once; sent again afterwards, it is delivered again', async () => {
    const command = forget(node)
    await queues.send(command)
    await queues.send(command)
    const { got } = collect()
    await until('delivered', () => got.length === 1)
    await until('gone from Redis', async () => (await admin.keys(`${queueKey(node, 'forget')}*`)).length === 0)
    expect(got).toHaveLength(1)
    await queues.send(command)
    await until('delivered again', () => got.length === 2)
  })

  test('a cancel overtakes what waits', async () => {
    const first = forget(node)
    const cancel = CancelAttempt.parse({ ...forget(node), kind: 'cancel', cause: 'canceled', by: 'user' })
    await queues.send(first)
    await queues.send(cancel)
    const { got } = collect({ concurrency: 1 })
    await until('both delivered', () => got.length === 2)
    expect(got.map(({ kind }) => kind)).toEqual(['cancel', 'forget'])
  })

  test('a command whose handler failed comes again', async () => {
    let tries = 0
    consume({
      handle: async () => {
        tries += 1
        if (tries < 3) throw new Error('disk is busy')
      },
    })
    await queues.send(forget(node))
    await until('handled', () => tries === 3)
    expect(logged.filter(({ event }) => event === 'command.failed')).toHaveLength(2)
  })

  test('what is no command of this node is logged and dropped', async () => {
    const { got } = collect({ concurrency: 1 })
    const elsewhere = { ...forget(newNode()), nodeId: node }
    await queues.send({ ...elsewhere, generation: 0 })
    await queues.send(forget(node))
    await until('the good one delivered', () => got.length === 1)
    expect(logged.map(({ event }) => event)).toContain('command.invalid')
    await until('the bad one dropped', async () => (await admin.exists(queueKey(node, 'active'))) === 0)
  })

  test('what a killed consumer had in hand comes to its successor at once', async () => {
    let held = 0
    let release = () => undefined as undefined
    const blocked = new Promise<void>((resolve) => {
      release = () => void resolve()
    })
    consume({
      handle: () => {
        held += 1
        return blocked
      },
    })
    await queues.send(forget(node))
    await queues.send(forget(node))
    await until('both in hand', () => held === 2)
    const began = performance.now()
    const { got } = collect()
    await until('both delivered again', () => got.length === 2)
    expect(performance.now() - began).toBeLessThan(SOON_MS)
    release()
  })

  test('close waits for what is in hand and takes nothing new', async () => {
    const events: string[] = []
    let release = () => undefined as undefined
    const blocked = new Promise<void>((resolve) => {
      release = () => void resolve()
    })
    const stop = new AbortController()
    const consumer = consume({
      concurrency: 1,
      signal: stop.signal,
      handle: async () => {
        events.push('begun')
        await blocked
        events.push('done')
      },
    })
    await queues.send(forget(node))
    await until('in hand', () => events.length === 1)
    stop.abort()
    const closed = consumer.close().then(() => events.push('closed'))
    await queues.send(forget(node))
    release()
    await closed
    expect(events).toEqual(['begun', 'done', 'closed'])
    expect(await admin.llen(queueKey(node, 'wait'))).toBe(1)
  })
})

describe("a node's Redis user", () => {
  test('is refused nothing that a worker needs: delivery, retry, reclaiming', async () => {
    await admin.acl('LOG', 'RESET')
    let tries = 0
    consume({
      handle: async () => {
        tries += 1
        if (tries === 1) throw new Error('once')
      },
    })
    await queues.send(forget(node))
    await until('handled', () => tries === 2)
    const { got } = collect()
    await queues.send(forget(node))
    await until('handled', () => tries + got.length >= 3)
    expect(await admin.acl('LOG')).toEqual([])
  })

  test('can touch nothing else', async () => {
    const other = newNode()
    await queues.send(forget(other))
    await admin.set('somebody', 'else')
    const path = join(dir, 'redis.sock')
    const redis = new Redis({ path, username: node, password: 'node secret', enableReadyCheck: false })
    try {
      const own = queueKey(node, 'x')
      expect(await redis.set(own, '1')).toBe('OK')
      const forbidden: [string, ...string[]][] = [
        ['get', 'somebody'],
        ['lrange', queueKey(other, 'wait'), '0', '-1'],
        ['lpush', queueKey(other, 'wait'), 'x'],
        ['set', '{berth:', 'x'],
        ['eval', `return redis.call('get', 'somebody')`, '0'],
        ['eval', `return redis.call('lpush', KEYS[1], 'x')`, '1', queueKey(other, 'wait')],
        ['eval', `return redis.call('flushall')`, '0'],
        ...['flushall', 'flushdb', 'save', 'shutdown', 'info', 'dbsize', 'randomkey'].map((name): [string] => [name]),
        ['keys', '*'],
        ['scan', '0'],
        ['config', 'get', '*'],
        ['acl', 'list'],
        ['client', 'list'],
        ['client', 'kill', 'type', 'normal'],
        ['script', 'flush'],
        ['subscribe', 'berth:wake'],
        ['publish', 'berth:wake', '[]'],
        ['migrate', 'h', '1', own, '0', '1'],
        ['rename', own, 'somebody'],
        ['monitor'],
      ]
      for (const [name, ...args] of forbidden)
        await expect(redis.call(name, ...args)).rejects.toThrow(
          /NOPERM|can't run this command|can't access at least one of the keys/,
        )
      expect(await admin.get('somebody')).toBe('else')
    } finally {
      redis.disconnect()
    }
  })

  test('is let in by its latest password only, and a repeat does not disturb its consumer', async () => {
    const { got } = collect()
    await queues.ensureNodeUser(node, 'node secret')
    await queues.send(forget(node))
    await until('delivered', () => got.length === 1)
    await queues.ensureNodeUser(node, 'newer secret')
    const refused: string[] = []
    const old = collect({ onRefused: () => void refused.push('old') })
    const fresh = collect({ password: 'newer secret' })
    await until('the old password refused', () => refused.length === 1)
    await queues.send(forget(node))
    await until('delivered', () => got.length + fresh.got.length === 2)
    expect(old.got).toEqual([])
  })

  test('is gone with its queue when the node is removed', async () => {
    const refused: string[] = []
    collect({ onRefused: () => void refused.push('node') })
    await queues.send(forget(node))
    await queues.removeNode(node)
    await until('refused', () => refused.length > 0)
    await until('no key left', async () => (await admin.keys(`{berth:${node}}*`)).length === 0)
  })
})

describe('when Redis fails', () => {
  test('FLUSHALL under a live consumer: what is sent again is delivered', async () => {
    const { got } = collect()
    await queues.send(forget(node))
    await until('delivered', () => got.length === 1)
    for (const round of [2, 3, 4]) {
      await admin.flushall()
      await queues.send(forget(node))
      await until(`delivered after FLUSHALL, round ${round}`, () => got.length === round)
    }
  })

  test('FLUSHALL while a command is in hand: the next one is still delivered', async () => {
    const got: NodeCommand[] = []
    consume({
      concurrency: 1,
      handle: async (command) => {
        if (got.push(command) === 1) await admin.flushall()
      },
    })
    await queues.send(forget(node))
    await until('in hand', () => got.length === 1)
    await queues.send(forget(node))
    await until('delivered', () => got.length === 2)
  })

  test('a restart that loses everything: users are set again and both ends go on', async () => {
    const { got } = collect()
    await queues.send(forget(node))
    await until('delivered', () => got.length === 1)
    await stopServer()
    const began = performance.now()
    await expect(queues.send(forget(node))).rejects.toThrow(Fault)
    await expect(queues.ping()).rejects.toThrow(Fault)
    expect(performance.now() - began).toBeLessThan(SOON_MS)
    await startServer()
    await until('the API is back', () =>
      queues.ping().then(
        () => true,
        () => false,
      ),
    )
    const command = forget(node)
    await queues.send(command)
    await until('delivered', () => got.length === 2)
    expect(got.at(-1)).toEqual(command)
    const away = logged.filter(({ event }) => event === 'queue.redis.away' || event === 'queue.failed')
    expect(away.length).toBeLessThanOrEqual(4)
  })

  test('a consumer that starts before its user exists asks to be let in, and works once it is', async () => {
    node = newNode()
    const refused: string[] = []
    const { got } = collect({ onRefused: () => void refused.push('node') })
    await until('refused', () => refused.length === 1)
    await queues.ensureNodeUser(node, 'node secret')
    await queues.send(forget(node))
    await until('delivered', () => got.length === 1)
  })

  test('cut connections: both ends go on', async () => {
    const sockets = new Set<Socket>()
    const proxy = createServer((socket) => {
      const upstream = createConnection(join(dir, 'redis.sock'))
      for (const end of [socket, upstream]) {
        sockets.add(end)
        end.on('error', () => undefined)
        end.on('close', () => {
          sockets.delete(end)
          socket.destroy()
          upstream.destroy()
        })
      }
      socket.pipe(upstream).pipe(socket)
    })
    const proxied = join(dir, 'proxy.sock')
    proxy.listen(proxied)
    await once(proxy, 'listening')
    const through = openNodeQueues({ redisUrl: redisUrl.replace('redis.sock', 'proxy.sock'), log })
    opened.push(through, { close: async () => void proxy.close() })
    const { got } = collect({ redisUrl: `unix://${proxied}` })
    for (const round of [1, 2, 3]) {
      const command = forget(node)
      await until('sent', () =>
        through.send(command).then(
          () => true,
          () => false,
        ),
      )
      await until(`delivered, round ${round}`, () => got.some((one) => commandSubject(one) === commandSubject(command)))
      for (const socket of sockets) socket.destroy()
    }
  })

  test('a Redis that never was there: calls fail soon, a consumer closes', async () => {
    const nowhere = `unix://${dir}/nowhere.sock`
    const away = openNodeQueues({ redisUrl: nowhere, log })
    opened.push(away)
    const began = performance.now()
    const sent = Array.from({ length: 50 }, () => away.send(forget(node)))
    for (const one of sent) await expect(one).rejects.toThrow(Fault)
    expect(performance.now() - began).toBeLessThan(SOON_MS)
    await collect({ redisUrl: nowhere }).consumer.close()
  })

  test('a Redis that stops answering: calls fail soon', async () => {
    await queues.ping()
    server.kill('SIGSTOP')
    try {
      const began = performance.now()
      await expect(queues.send(forget(node))).rejects.toThrow(Fault)
      expect(performance.now() - began).toBeLessThan(SOON_MS)
    } finally {
      server.kill('SIGCONT')
    }
    await until('back', () =>
      queues.ping().then(
        () => true,
        () => false,
      ),
    )
  })
})

test('a wake-up reaches every replica, also after a reconnection', async () => {
  const replica = openNodeQueues({ redisUrl, log })
  opened.push(replica)
  const heard: string[][] = [[], []]
  queues.subscribeWake((jobs) => void heard[0]?.push(...jobs))
  replica.subscribeWake((jobs) => void heard[1]?.push(...jobs))
  const bothHear = async () => {
    const job = JobId.parse(mintId('job', 0, random()))
    await until('heard by both', async () => {
      await queues.publishWake([job]).catch(() => undefined)
      return heard.every((jobs) => jobs.includes(job))
    })
  }
  await bothHear()
  await admin.call('CLIENT', 'KILL', 'TYPE', 'pubsub')
  await bothHear()
  await admin.publish('berth:wake', '{"not":"ids"}')
  await until('logged', () => logged.some(({ event }) => event === 'queue.wake.invalid'))
})
