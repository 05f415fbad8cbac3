// Looking at real sandboxes, asked over HTTPS as the API asks.
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import {
  type ApplySandbox,
  type LogEntry,
  mintId,
  NodeId,
  type SandboxId,
  type SandboxProcess,
  type SandboxStats,
} from '@berth/contracts'
import {
  Grants,
  newGrantKeys,
  nodeCertificate,
  openStreams,
  type Query,
  type StreamServerHandle,
  sandboxPath,
  serveStreams,
} from '@berth/node-rpc'
import { createLogger } from '@berth/telemetry'
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals'
import { SandboxLogs } from '../logs/sandbox-logs.js'
import { newNodeDirectory, TestNode } from '../sandbox/node.fixture.js'
import { holdings } from '../sandbox/recovery.js'
import { observationHandler } from './observation-handler.js'

const log = createLogger({ name: 'test', level: 'silent' })
const place = newNodeDirectory()
const keys = newGrantKeys()
const grants = new Grants(keys.privateKey)
const nodeId = NodeId.parse(mintId('node', Date.now(), randomBytes(10)))
const streams = openStreams()
const never = new AbortController().signal

let node: TestNode
let logs: SandboxLogs
let server: StreamServerHandle
let certificate: string

/** The agent comes, and goes on with what there is. */
async function comeUp(): Promise<void> {
  logs = new SandboxLogs(log)
  node = await TestNode.open({ ...place, companions: [logs] })
  const diff = join(import.meta.dirname, '../../../../libs/init/build/berth-diff')
  const identity = await nodeCertificate(place.directory)
  certificate = identity.certificate
  server = await serveStreams({
    ...{ ...identity, host: '127.0.0.1', port: 0, nodeId, log },
    grantKey: () => keys.publicKey,
    output: () => Promise.reject(new Error('there are no attempts here')),
    sandbox: {
      observation: observationHandler({ find: (id) => node.residents.find(id), logs, shop: node.shop, diff }),
    },
  })
}

/** It goes, and leaves the sandboxes alone. */
async function goDown(): Promise<void> {
  await server.close()
  await Promise.all([node.supervisor.close(), node.residents.close()])
  node.shop.tenants.close()
}

beforeAll(comeUp)
afterEach(async () => {
  for (const { id } of node.residents.standing()) node.residents.discard(id)
  await until('all gone', () => node.residents.standing().length === 0)
  await until('nothing held', async () => Object.values(await holdings(node.shop)).every((held) => held.length === 0))
})
afterAll(async () => {
  await streams.close()
  await server.close()
  await node.destroy()
})

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; i < 6000; i++) {
    if (await condition()) return
    await delay(5)
  }
  throw new Error(`never: ${what}`)
}

async function ask(id: SandboxId, path: string, query: Query = {}, signal = never) {
  const grant = await grants.get({ nodeId, subject: id, action: 'observation' })
  return streams.call({
    ...{ node: { id: nodeId, url: server.url, certificate }, grant, method: 'GET', signal, answerWithinMs: 0 },
    path: sandboxPath(id, ['observation', ...path.split('/')], query),
  })
}
const textOf = async (...asked: Parameters<typeof ask>) =>
  Buffer.concat(await (await ask(...asked)).body.toArray()).toString()
// biome-ignore lint/suspicious/noExplicitAny: answers of every shape, checked by each test
const json = async (...asked: Parameters<typeof ask>): Promise<any> => JSON.parse(await textOf(...asked))
const linesOf = (text: string) =>
  text
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line))
const entries = async (id: SandboxId, query: Query = {}): Promise<LogEntry[]> =>
  linesOf(await textOf(id, 'logs', query))
const logged = async (id: SandboxId, query: Query = {}) => (await entries(id, query)).map(({ text }) => text).join('')
const top = async (id: SandboxId): Promise<SandboxProcess[]> => (await json(id, 'top')).items
const stats = (id: SandboxId): Promise<SandboxStats> => json(id, 'stats')
const diff = async (id: SandboxId) =>
  linesOf(await textOf(id, 'diff')).map(({ kind, path }) => `${kind.charAt(0).toUpperCase()} ${path}`)

const sh = (script: string) => ({ command: ['sh', '-c', script] })
const loop = 'while :; do sleep 0.02; done'

describe('the log of a sandbox', () => {
  test('has both streams of all runs, and outlives them', async () => {
    const before = await node.up(sh('echo out; echo err >&2; exec sleep 1000'))
    const { sandboxId: id } = before
    await until('it is there', async () => (await logged(id)).includes('err'))
    const stopped = await node.become(before, 'stopped')
    expect(await logged(id, { stream: 'stdout' })).toBe('out\n')
    expect(await logged(id, { stream: 'stderr' })).toBe('err\n')
    await node.become(stopped, 'running', { run: 2 })
    await until('again', async () => (await logged(id, { stream: 'stderr' })) === 'err\nerr\n')
    const all = await entries(id)
    expect(all.map(({ offset }) => offset)).toEqual([...all.map(({ offset }) => offset)].sort((a, b) => a - b))
    expect(await logged(id, { tail: 1, stream: 'stdout' })).toBe('out\n')
    expect(await logged(id, { since: all[0]?.offset ?? 0 })).toHaveLength(12)
    expect(await logged(id, { until: all[0]?.at ?? '' })).toBe('')
    expect(await logged(id, { since: new Date(Date.now() + 60_000).toISOString() })).toBe('')
    expect(await textOf(id, 'logs/raw', { stream: 'stdout' })).toBe('out\nout\n')
  })

  test('is complete after the agent was away in the middle of a flood, with no byte doubled', async () => {
    const { sandboxId: id } = await node.up(sh('seq 1 300000; exec sleep 1000'))
    await until('it is flowing', async () => (await logged(id, { tail: 1 })).length > 0)
    await goDown()
    await delay(200)
    await comeUp()
    await until('it ran to its end', async () => (await logged(id, { tail: 1 })) === '300000\n')
    const text = await textOf(id, 'logs/raw')
    expect(text).toBe(`${Array.from({ length: 300_000 }, (_, i) => i + 1).join('\n')}\n`)
  })

  test('is followed while it is written, and ends with the sandbox', async () => {
    const before = await node.up(sh('for i in 1 2 3; do echo $i; sleep 0.1; done; exec sleep 1000'))
    const { body } = await ask(before.sandboxId, 'logs', { follow: true, stream: 'stdout' })
    let text = ''
    body.on('data', (chunk) => {
      text += chunk
    })
    await until(
      'all three',
      () =>
        linesOf(text)
          .map((entry) => entry.text)
          .join('') === '1\n2\n3\n',
    )
    const closed = new Promise((resolve) => body.once('end', resolve))
    await node.become(before, 'deleted')
    await closed
  })

  test('of a flood is rotated by what the spec says, with flat memory', async () => {
    const bytes = 100 * 1024 ** 2
    const spec = {
      ...sh(`yes 0123456789abcde | head -c ${bytes}; exec sleep 1000`),
      logs: { maxBytes: '1m', maxFiles: 4 },
    }
    const before = process.memoryUsage.rss()
    let peak = before
    const watch = setInterval(() => {
      peak = Math.max(peak, process.memoryUsage.rss())
    }, 20)
    const { sandboxId: id } = await node.up(spec)
    const live = await logs.of(node.residents.find(id))
    await until('all of it', () => live.end === bytes)
    clearInterval(watch)
    expect(peak - before).toBeLessThan(128 * 1024 ** 2)
    const kept = await textOf(id, 'logs/raw')
    expect(kept.length).toBe(bytes - live.from)
    expect(kept.length).toBeGreaterThan(2.5 * 1024 ** 2)
    expect(kept.length).toBeLessThanOrEqual(4 * 1024 ** 2)
    expect(await logged(id, { tail: 2 })).toBe('0123456789abcde\n'.repeat(2))
  }, 120_000)
})

describe('top', () => {
  test('shows the processes as the sandbox sees them', async () => {
    const { sandboxId: id } = await node.up({
      ...sh('sleep 1001 & sleep 1002 & exec sleep 1003'),
      user: 'app',
    })
    await until('all three', async () => (await top(id)).filter(({ command }) => command[0] === 'sleep').length === 3)
    const [init, ...others] = await top(id)
    expect(init).toMatchObject({ pid: 1, parentPid: 0, uid: 0, user: 'root', command: ['/dev/.berth/init'] })
    const main = others.find(({ command }) => command[1] === '1003')
    expect(main).toMatchObject({ parentPid: 1, uid: 1000, user: 'app', state: 'S', threads: 1 })
    expect(main?.residentBytes).toBeGreaterThan(10_000)
    expect(Math.abs(Date.now() - Date.parse(main?.startedAt ?? ''))).toBeLessThan(60_000)
    expect(
      others
        .filter(({ parentPid }) => parentPid === main?.pid)
        .map(({ command }) => command[1])
        .sort(),
    ).toEqual([...['1001', '1002']])
    expect((await node.inside(id, 'ps -o pid,user | grep app | wc -l')).out.trim()).toBe('3')
  })

  test('bears arguments of a megabyte, names of any kind, users of the sandbox’ own, zombies, and processes that end', async () => {
    const { sandboxId: id } = await node.up(sh(loop))
    await node.inside(
      id,
      `echo 'new:x:77:77::/:' >> /etc/passwd; (exec 3<>/dev/null; setsid sleep 999 >/dev/null 2>&1 &)`,
    )
    const long = 'x'.repeat(100_000)
    await node.inside(id, `setsid sh -c 'sleep 998; : $1' sh ${long} >/dev/null 2>&1 &`)
    await node.inside(
      id,
      `cp /bin/busybox '/tmp/a) S 1 (b c' 2>/dev/null || dd if=/bin/busybox of='/tmp/sleep) S 1 (' 2>/dev/null; true`,
    )
    const churn = node.inside(id, 'i=0; while [ $i -lt 300 ]; do true & i=$((i+1)); done; wait')
    for (let i = 0; i < 20; i++) expect((await top(id))[0]?.pid).toBe(1)
    await churn
    const found = (await top(id)).find(({ command }) => command.some((word) => word.startsWith('xxx')))
    expect(found?.command.join(' ').length).toBeLessThan(5000)
    expect(found?.command.at(-1)?.endsWith('…')).toBe(true)
  })

  test('of a stopped sandbox is refused, of a frozen one is not', async () => {
    const before = await node.up(sh(loop))
    const paused = await node.become(before, 'paused')
    expect((await top(before.sandboxId)).length).toBeGreaterThan(1)
    await node.become(await node.become(paused, 'running'), 'stopped')
    await expect(top(before.sandboxId)).rejects.toMatchObject({ code: 'wrong_state', data: { state: 'stopped' } })
    await expect(stats(before.sandboxId)).rejects.toMatchObject({ code: 'wrong_state' })
  })
})

describe('stats', () => {
  test('tell a known load', async () => {
    const mib = 1024 ** 2
    const spec = { limits: { memoryBytes: '256m', cpus: 0.5, pids: 50, diskBytes: '512m', shmBytes: '128m' } }
    const { sandboxId: id } = await node.up({ ...sh('while :; do :; done'), ...spec })
    const before = await stats(id)
    expect(before).toMatchObject({
      ...{ cpus: null, memoryLimitBytes: 256 * mib, pidsLimit: 50, diskLimitBytes: 512 * mib, oomKills: 0 },
      ...{ pids: 1, receivedBytes: 0, sentBytes: 0 },
    })
    // 64 MiB of memory, and 32 MiB of disk whose page cache does not count.
    await node.inside(id, 'dd if=/dev/zero of=/dev/shm/x bs=1M count=64 2>/dev/null')
    await node.inside(id, 'dd if=/dev/zero of=/file bs=1M count=32 2>/dev/null; sync; cat /file > /dev/null')
    await until('the disk was looked at', async () => ((await stats(id)).diskBytes ?? 0) > 32 * mib)
    const after = await stats(id)
    expect(after.memoryBytes - before.memoryBytes).toBeGreaterThan(60 * mib)
    expect(after.memoryBytes - before.memoryBytes).toBeLessThan(80 * mib)
    expect(after.memoryPeakBytes).toBeGreaterThanOrEqual(after.memoryBytes)
    expect(after.diskBytes).toBeLessThan(40 * mib)
    expect(after.cpuMs).toBeGreaterThan(before.cpuMs)
    await until('it was throttled', async () => (await stats(id)).cpuThrottledMs > 50)
  })

  test('stream sample after sample, and end with the run', async () => {
    const before = await node.up({ ...sh('while :; do :; done'), limits: { cpus: 0.5 } })
    const { body } = await ask(before.sandboxId, 'stats/stream', { intervalMs: '200ms' })
    let text = ''
    body.on('data', (chunk) => {
      text += chunk
    })
    await until('some', () => linesOf(text).length >= 4)
    const [first, ...others]: SandboxStats[] = linesOf(text)
    expect(first?.cpus).toBeNull()
    for (const { cpus } of others) expect(cpus).toBeGreaterThan(0)
    expect(others.reduce((sum, { cpus }) => sum + (cpus ?? 0), 0) / others.length).toBeLessThan(0.9)
    const closed = new Promise((resolve) => body.once('end', resolve))
    await node.become(before, 'stopped')
    await closed
  })
})

describe('diff', () => {
  test('of a fresh sandbox is nothing', async () => {
    const { sandboxId: id } = await node.up(sh(loop))
    expect(await diff(id)).toEqual([])
  })

  test('tells every kind of change, sorted, of a stopped sandbox too', async () => {
    const before = await node.up({ ...sh(loop), tmpfs: [{ path: '/mem/' }] })
    const { sandboxId: id } = before
    const script = [
      'echo new > /tmp/new; mkdir -p /a/b; touch /a/b/c /a.txt "/name with\n line"',
      'rm /bin/not-executable; rm -r /root; mkdir /root; echo x > /root/file',
      'echo x >> /etc/group; echo x >> /etc/hosts; chmod 700 /tmp; ln -s /etc /link; ln -s /nowhere /bin/dangling',
      'touch /mem/hidden /dev/shm/hidden; mkdir /emptied; rmdir /emptied',
    ]
    expect((await node.inside(id, script.join(' && '))).code).toBe(0)
    const want = [
      'A /a',
      'A /a/b',
      'A /a/b/c',
      'A /a.txt',
      'C /bin',
      'A /bin/dangling',
      'D /bin/not-executable',
      'C /etc',
      'C /etc/group',
      'A /link',
      'A /name with\n line',
      'C /root',
      'A /root/file',
      'C /tmp',
      'A /tmp/new',
    ]
    expect(await diff(id)).toEqual(want)
    await node.become(before, 'stopped')
    expect(await diff(id)).toEqual(want)
  })

  test('ends when its reader goes, and does not hold up the next', async () => {
    const { sandboxId: id } = await node.up(sh(loop))
    await node.inside(
      id,
      'mkdir /many; cd /many; i=0; while [ $i -lt 20000 ]; do : > "file-with-a-long-name-$i"; i=$((i+1)); done',
    )
    for (let i = 0; i < 4; i++) (await ask(id, 'diff')).body.destroy()
    expect(await diff(id)).toHaveLength(20_001)
  })

  test('of a tenant that does not read holds up nobody else’s', async () => {
    const [mine, other] = [await node.up(sh(loop)), await node.up(sh(loop))]
    const name = 'a'.repeat(240)
    const many = `mkdir /many; cd /many; for i in $(seq 40000); do : > ${name}$i; done`
    expect((await node.inside(mine.sandboxId, many)).code).toBe(0)
    // More is told than a connection holds: these go on only once they are read.
    const waiting = [1, 2, 3].map(() => ask(mine.sandboxId, 'diff'))
    await Promise.all(waiting.slice(0, 2))
    expect(await diff(other.sandboxId)).toEqual([])
    for (const one of waiting) (await one).body.destroy()
  })

  test('never leaves the layer, while everything in it is swapped for links', async () => {
    const { sandboxId: id } = await node.up(sh(loop))
    const swap = node.inside(
      id,
      'cd /tmp; mkdir d e; touch d/mine; ln -s / l; i=0; while [ $i -lt 3000 ]; do mv d x; mv l d; mv d l; mv x d; i=$((i+1)); done',
    )
    const seen = new Set<string>()
    let over = false
    void swap.then(() => {
      over = true
    })
    while (!over) for (const line of await diff(id)) seen.add(line)
    for (const line of seen) expect(line).toMatch(/^[AC] \/tmp(\/[dexl](\/mine)?)?$/)
  })
})

test('inspect tells what it runs with', async () => {
  const { sandboxId: id } = await node.up({
    ...{ ...sh(loop), user: 'app', groups: ['extra'], env: { A: 'b' }, workingDir: '/tmp', hostname: 'box' },
    ...{ capAdd: ['NET_RAW'], capDrop: ['ALL'], stopSignal: 'SIGUSR1', limits: { memoryBytes: '64m' } },
  })
  expect(await json(id, 'inspect')).toMatchObject({
    image: { reference: 'busybox', digest: expect.any(String) },
    command: ['sh', '-c', loop],
    env: expect.arrayContaining(['A=b', 'HOME=/home/app', 'HOSTNAME=box']),
    ...{ workingDir: '/tmp', uid: 1000, gid: 1000, groups: [2000], hostname: 'box', stopSignal: 'SIGUSR1' },
    capabilities: ['CAP_NET_RAW'],
    limits: { memoryBytes: 64 * 1024 ** 2 },
    runtime: expect.stringMatching(/crun|runc/),
    hostIds: { base: expect.any(Number), count: 65_536 },
  })
})

describe('what makes no sense is refused', () => {
  test.each<[string, Query, string]>([
    ['nothing', {}, 'route_not_found'],
    ['constructor', {}, 'route_not_found'],
    ['logs', { tail: -1 }, 'invalid_request'],
    ['logs', { since: 'yesterday' }, 'invalid_request'],
    ['logs', { stream: 'stdin' }, 'invalid_request'],
    ['logs', { x: 1 }, 'invalid_request'],
    ['stats/stream', { intervalMs: '1ms' }, 'invalid_request'],
  ])('%s %j', async (path, query, code) => {
    const { sandboxId: id } = await node.up(sh(loop))
    await expect(ask(id, path, query)).rejects.toThrow(code === 'route_not_found' ? /route_not_found/ : /./)
    if (code !== 'route_not_found') await expect(ask(id, path, query)).rejects.toMatchObject({ code })
  })

  test('an unknown sandbox', async () => {
    const before: ApplySandbox = await node.up(sh(loop))
    await node.become(before, 'deleted')
    await expect(ask(before.sandboxId, 'logs')).rejects.toMatchObject({ code: 'sandbox_not_found' })
  })
})
