// postgres.ts: a private Postgres cluster. It belongs to the distribution's user `postgres`, because the server refuses
// root; it listens on a unix socket in its own directory only; and there is no password, because the kernel tells the
// server who connects: root becomes `berth` (or the superuser, on demand), everybody else is refused.
import { existsSync, readdirSync, readFileSync, readlinkSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Fault, ignore } from '@berth/contracts'
import { expectSuccess, removeTree, run } from '@berth/host'
import {
  awaitReady,
  type DaemonPlaces,
  ensureDaemon,
  ownDirectory,
  readDaemon,
  requireSocketPath,
  type SystemUser,
  stopDaemon,
  systemUser,
  until,
} from './daemon.js'
import { isAlive, processStart } from './process.js'

export interface Service {
  readonly url: string
  /** False when it ran already, unchanged. */
  readonly started: boolean
  stop(): Promise<void>
}

export interface PostgresOptions extends DaemonPlaces {
  /** Made where it is missing; holds `cluster/` and the socket. */
  readonly dataDir: string
}

const name = 'postgres'

/**
 * Has the cluster running and ready; makes it at first.
 * @returns url in the form that `pg` and libpq take for a socket: `postgresql://berth@/berth?host=<directory>`. The
 *   role `berth` owns the database `berth` and may create others.
 * @throws Fault with the server's log, or naming what is missing
 */
export async function startPostgres(options: PostgresOptions): Promise<Service> {
  const user = systemUser('postgres', 'postgresql')
  const { dataDir } = options
  requireSocketPath(join(dataDir, '.s.PGSQL.5432'))
  ownDirectory(dataDir, user)
  const cluster = join(dataDir, 'cluster')
  const bin = binaries(cluster)
  if (!existsSync(cluster)) await createCluster(cluster, bin, user)
  const files = configuration(dataDir)
  for (const [file, text] of Object.entries(files)) writeFileSync(join(cluster, file), text)
  const former = await readDaemon(options, name)
  if (!former || !isAlive(former)) await awaitRelease(cluster)
  const { record, started } = await ensureDaemon(options, {
    name,
    argv: [join(bin, 'postgres'), '-D', cluster],
    env: {},
    dependsOn: Object.values(files),
    user: { uid: user.uid, gid: user.gid },
    stopSignal: 'SIGINT', // "fast": clients are cut off, a checkpoint is written (postgres(1))
    stopWithinMs: 60_000,
  })
  const answers = async () =>
    (await run([join(bin, 'pg_isready'), '-q', '-h', dataDir, '-U', 'berth', '-d', 'berth'], { cwd: '/' })).exitCode ===
    0
  await awaitReady(options, name, record, answers, 120_000)
  const stop = async () => void (await stopDaemon(options, name))
  return { url: `postgresql://berth@/berth?host=${encodeURIComponent(dataDir)}`, started, stop }
}

/** A server's process that is in the middle of a statement ends with it. */
const RELEASE_MS = 60_000

/**
 * Waits for what is left of a server whose first process was killed, because a new one refuses to start beside it: its
 * other processes, which notice only after a moment and are known by their working directory, and the zombie of the
 * first, which the system's init may take seconds to reap.
 * @throws Fault naming those that stay
 */
export async function awaitRelease(cluster: string): Promise<void> {
  const left = () => [...workingIn(cluster), ...zombie(lockHolder(cluster))]
  if (await until(() => left().length === 0, RELEASE_MS)) return
  const cause = new Error(`processes of a former server are still there: ${left().join(', ')}`)
  throw new Fault(`start ${name}`, { cause })
}

const workingIn = (directory: string): readonly number[] =>
  readdirSync('/proc')
    .filter((pid) => /^\d+$/.test(pid) && workingDirectory(pid) === directory)
    .map(Number)

function workingDirectory(pid: string): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/cwd`)
  } catch (error) {
    // EACCES: it may do more than we, so it is no server that was started from here. ENAMETOOLONG: a process of a
    // sandbox can be deeper than any path names.
    return ignore(error, 'ENOENT', 'ESRCH', 'EACCES', 'ENAMETOOLONG')
  }
}

/** The first line of `postmaster.pid`. */
function lockHolder(cluster: string): number | undefined {
  try {
    return Number.parseInt(readFileSync(join(cluster, 'postmaster.pid'), 'utf8'), 10)
  } catch (error) {
    return ignore(error, 'ENOENT')
  }
}

const zombie = (pid: number | undefined): readonly number[] =>
  pid !== undefined && existsSync(`/proc/${pid}`) && processStart(pid) === undefined ? [pid] : []

const installed = '/usr/lib/postgresql'

/** The programs of the cluster's own version, or of the newest for a new cluster. */
function binaries(cluster: string): string {
  const versions = existsSync(installed) ? readdirSync(installed).filter((version) => /^\d+$/.test(version)) : []
  const having = versions.filter((version) => existsSync(join(installed, version, 'bin', 'initdb')))
  const made = existsSync(cluster) ? readFileSync(join(cluster, 'PG_VERSION'), 'utf8').trim() : undefined
  const version = made ?? having.sort((a, b) => Number(b) - Number(a))[0]
  if (version && having.includes(version)) return join(installed, version, 'bin')
  const why = made
    ? `${cluster} was made by Postgres ${made}: install postgresql-${made}, or migrate it with pg_upgrade(1)`
    : 'install the package postgresql'
  throw new Fault('find Postgres', { cause: new Error(why) })
}

/** Makes role and database too before the directory gets its name: a cluster that is there is whole. */
async function createCluster(cluster: string, bin: string, user: SystemUser): Promise<void> {
  const fresh = `${cluster}.new`
  await removeTree(fresh)
  const as = ['setpriv', `--reuid=${user.uid}`, `--regid=${user.gid}`, '--clear-groups', '--'] as const
  const locale = ['--encoding=UTF8', '--locale=C.UTF-8', '--auth=peer', '--data-checksums']
  const initdb = [...as, join(bin, 'initdb'), '-D', fresh, '-U', 'postgres', ...locale] as const
  expectSuccess(await run(initdb, { cwd: '/', timeoutMs: 300_000 }))
  const single = [...as, join(bin, 'postgres'), '--single', '-j', '-D', fresh, 'postgres'] as const
  const statements = ['CREATE ROLE berth LOGIN CREATEDB', 'CREATE DATABASE berth OWNER berth']
  // In `-j` mode a statement ends with a semicolon and two newlines. Its errors do not end the server.
  const stdin = statements.map((statement) => `${statement};\n\n`).join('')
  const result = expectSuccess(await run(single, { cwd: '/', timeoutMs: 120_000, stdin }))
  if (/ERROR|FATAL/.test(result.stderr)) throw new Fault('create the database', { cause: new Error(result.stderr) })
  renameSync(fresh, cluster)
}

const quoted = (text: string) => `'${text.replaceAll("'", "''")}'`

/** The cluster's files, written whole at every start. What an operator adds belongs in `local.conf` beside them. */
function configuration(dataDir: string): Readonly<Record<string, string>> {
  const settings = [
    "listen_addresses = ''",
    `unix_socket_directories = ${quoted(dataDir)}`,
    'unix_socket_permissions = 0700',
    'max_connections = 200',
    'shared_buffers = 128MB',
    // A job that was accepted must survive a power cut: these are the defaults, stated because it depends on them.
    'fsync = on',
    'synchronous_commit = on',
    'full_page_writes = on',
    // One machine, no replica: the log holds what recovery needs and no more.
    'wal_level = minimal',
    'max_wal_senders = 0',
    // Our statements are short; compiling one costs more than running it.
    'jit = off',
    "timezone = 'UTC'",
    "log_timezone = 'UTC'",
    "lc_messages = 'C'",
    "log_line_prefix = '%m [%p] %q%u@%d '",
    "include_if_exists = 'local.conf'",
  ]
  return {
    'postgresql.conf': `${settings.join('\n')}\n`,
    'pg_hba.conf': 'local all all peer map=berth\n',
    'pg_ident.conf': 'berth root berth\nberth root postgres\nberth postgres postgres\n',
  }
}
