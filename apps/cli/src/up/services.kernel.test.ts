import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expectSuccess, removeTree, run } from '@berth/host'
import { afterAll, beforeAll, expect, test } from '@jest/globals'
import { type DaemonRecord, readDaemon, stopDaemon, until } from './daemon.js'
import { startPostgres } from './postgres.js'
import { isAlive } from './process.js'
import { startRedis } from './redis.js'

const work = mkdtempSync(join(tmpdir(), 'berth-services-'))
const places = { runDir: join(work, 'run'), logDir: join(work, 'logs') }
const postgres = () => startPostgres({ ...places, dataDir: join(work, "it's a place", 'postgres') })
const redis = () => startRedis({ ...places, dataDir: join(work, 'a place', 'redis') })
beforeAll(() => chmodSync(work, 0o711))
afterAll(async () => {
  for (const name of ['postgres', 'redis']) await stopDaemon(places, name)
  await removeTree(work)
}, 60_000)

const query = async (url: string, statement: string) => {
  const result = await run(['psql', url, '-XAtqc', statement], { cwd: '/' })
  return expectSuccess(result).stdout.trim()
}

/** One command over the socket named by an ioredis URL. */
const command = async (url: string, ...words: readonly string[]) => {
  const [socket, options] = url.split('?')
  const password = new URLSearchParams(options).get('password') ?? ''
  const argv = ['redis-cli', '-s', socket ?? '', '--no-auth-warning', ...words] as const
  const env = { PATH: '/usr/bin:/bin', REDISCLI_AUTH: password }
  return expectSuccess(await run(['env', ...argv], { env })).stdout.trim()
}

const running = async (name: string): Promise<DaemonRecord> => {
  const record = await readDaemon(places, name)
  if (!record || !isAlive(record)) throw new Error(`${name} does not run: ${JSON.stringify(record)}`)
  return record
}

const killed = async (record: DaemonRecord) => {
  process.kill(record.pid, 'SIGKILL')
  if (!(await until(() => !isAlive(record), 10_000))) throw new Error(`${record.pid} lives on`)
}

test('Postgres: made, kept over kill -9, left alone when it runs, no TCP, nobody else let in', async () => {
  const first = await postgres()
  expect(await query(first.url, 'create table kept (n int); insert into kept values (42); select user')).toBe('berth')
  expect(await query(first.url, "select current_setting('fsync') || current_setting('listen_addresses')")).toBe('on')
  const before = await running('postgres')
  expect((await postgres()).started).toBe(false)
  expect((await running('postgres')).pid).toBe(before.pid)
  await killed(before)
  const again = await postgres()
  expect(again.started).toBe(true)
  expect(await query(again.url, 'select n from kept')).toBe('42')
  // A process of the server that is busy outlives the first one, and holds the cluster for as long as it is.
  const busy = run(['psql', again.url, '-XAtqc', 'select pg_sleep(3)'], { cwd: '/' })
  await until(
    async () =>
      (await query(again.url, "select count(*) from pg_stat_activity where query like 'select pg_s%'")) === '1',
    30_000,
  )
  await killed(await running('postgres'))
  const third = await postgres()
  expect(await query(third.url, 'select n from kept')).toBe('42')
  await busy
  const nobody = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', '--'] as const
  expect((await run([...nobody, 'psql', third.url, '-c', 'select 1'], { cwd: '/' })).exitCode).not.toBe(0)
  await third.stop()
  expect(isAlive(before)).toBe(false)
}, 120_000)

test('a cluster whose making was interrupted is made again', async () => {
  const dataDir = join(work, 'interrupted')
  mkdirSync(join(dataDir, 'cluster.new'), { recursive: true })
  writeFileSync(join(dataDir, 'cluster.new', 'PG_VERSION'), '15\n')
  const own = { runDir: join(work, 'run2'), logDir: join(work, 'logs2') }
  const service = await startPostgres({ ...own, dataDir })
  expect(await query(service.url, 'select 1')).toBe('1')
  await service.stop()
  expect(existsSync(join(dataDir, 'cluster.new'))).toBe(false)
}, 120_000)

test('Redis: appends to a file, asks for its password, keeps users that were saved', async () => {
  const first = await redis()
  await command(first.url, 'SET', 'kept', '42')
  await command(first.url, 'ACL', 'SETUSER', 'node1', 'on', '>secret', '~n1:*', '+@all')
  await command(first.url, 'ACL', 'SAVE')
  expect(await command(first.url.replace(/password=.*/, 'password=wrong'), 'GET', 'kept')).toMatch(/NOAUTH|WRONGPASS/)
  expect((await redis()).started).toBe(false)
  await first.stop()
  const again = await redis()
  expect(again.url).toBe(first.url)
  expect(await command(again.url, 'GET', 'kept')).toBe('42')
  expect(await command(again.url, 'ACL', 'USERS')).toBe('default\nnode1')
  expect(await command(again.url, 'CONFIG', 'GET', 'port')).toBe('port\n0')
  expect(readFileSync(join(work, 'a place/redis/users.acl'), 'utf8')).not.toContain(again.url.split('password=')[1])
  await again.stop()
})

test('a server that does not come up is a fault with what its log says', async () => {
  const dataDir = join(work, 'broken')
  const own = { runDir: join(work, 'run3'), logDir: join(work, 'logs3') }
  mkdirSync(join(dataDir, 'appendonlydir'), { recursive: true })
  writeFileSync(join(dataDir, 'appendonlydir', 'appendonly.aof.manifest'), 'this is no manifest\n')
  chmodSync(join(dataDir, 'appendonlydir'), 0o777)
  chmodSync(join(dataDir, 'appendonlydir', 'appendonly.aof.manifest'), 0o666)
  await expect(startRedis({ ...own, dataDir })).rejects.toThrow(
    /start redis: it ended; .*logs3\/redis\.log says:[\s\S]*manifest/,
  )
  await stopDaemon(own, 'redis')
})

test('a directory that the user of a service cannot reach is named', async () => {
  const closed = join(work, 'closed')
  mkdirSync(closed, { mode: 0o700 })
  const start = startRedis({ ...places, dataDir: join(closed, 'redis') })
  await expect(start).rejects.toThrow(`${closed} has mode 700`)
})

test('a pid that belongs to another process now is never signalled', async () => {
  const own = { runDir: join(work, 'run4'), logDir: join(work, 'logs4') }
  const service = await startRedis({ ...own, dataDir: join(work, 'reused') })
  const record = await readDaemon(own, 'redis')
  const forged = { ...record, pid: process.pid }
  await service.stop()
  writeFileSync(join(own.runDir, 'redis.json'), JSON.stringify(forged))
  expect(await stopDaemon(own, 'redis')).toBe(false) // and this test still runs
  expect(statSync(own.runDir).mode & 0o777).toBe(0o700)
})
