import { randomBytes } from 'node:crypto'
import { chmodSync, mkdirSync, statSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { createNode, createTenant, createTenantKey, Fault, listNodes, listTenants } from '@berth/contracts'
import { expectSuccess, run } from '@berth/host'
import { Client } from '@berth/sdk'
import { type Credentials, loadCredentials, saveCredentials } from '../credentials.js'
import { ensureBaseImages } from './base-images.js'
import type { Places } from './config.js'
import { awaitReady, type DaemonSpec, ensureDaemon } from './daemon.js'
import { firstJob } from './first-job.js'
import { startPostgres } from './postgres.js'
import { startRedis } from './redis.js'

const root = resolve(import.meta.dirname, '../../../..')
const apiProgram = join(root, 'apps/api/dist/main.js')
export const agentProgram = join(root, 'apps/agent/dist/main.js')

const DEFAULT_PORT = 7433

interface Complete extends Credentials {
  readonly nodeToken: string
  readonly apiKey: string
}

/** A step is told when it begins and, with its time, when it is done. */
async function step<T>(what: string, work: () => Promise<T>): Promise<T> {
  const started = performance.now()
  const slow = setTimeout(() => process.stderr.write(`berth: ${what} …\n`), 1000)
  try {
    const result = await work()
    process.stderr.write(`berth: ${what}: ${((performance.now() - started) / 1000).toFixed(1)} s\n`)
    return result
  } finally {
    clearTimeout(slow)
  }
}

/** Starts everything and runs a first job. Each part that runs already, unchanged, is left alone. */
export async function up(places: Places, port: number | undefined): Promise<void> {
  if (process.getuid?.() !== 0)
    throw new Fault('start Berth', { cause: 'root is needed for namespaces, cgroups, mounts and packages' })
  mkdirSync(places.data, { recursive: true, mode: 0o711 })
  chmodSync(places.data, 0o711)
  const daemons = { runDir: places.run, logDir: places.logs }
  const known = await loadCredentials(places)
  const url = port === undefined && known ? known.url : `http://127.0.0.1:${port ?? DEFAULT_PORT}`
  const credentials: Credentials = {
    ...known,
    url,
    operatorKey: known?.operatorKey ?? `brt_${randomBytes(32).toString('base64url')}`,
  }
  await saveCredentials(places, credentials)

  const images = step('base images', () =>
    ensureBaseImages({ imagesDir: places.images, cacheDir: places.imageCache, say }),
  )
  // Whoever fails first is told; the other's failure must not end the process unheard.
  images.catch(() => undefined)
  const databaseUrl =
    process.env.DATABASE_URL ||
    (await step('Postgres', () => startPostgres({ ...daemons, dataDir: places.postgres }))).url
  await step('migrations', () => migrate(databaseUrl))
  const redisUrl =
    process.env.REDIS_URL ||
    `unix://${(await step('Redis', () => startRedis({ ...daemons, dataDir: places.redis }))).url}`
  await step('API', () => startApi(places, credentials, databaseUrl, redisUrl))
  await images

  await using operator = new Client({ url, apiKey: credentials.operatorKey })
  const complete = await enroll(operator, places, credentials)
  await step('agent', () => startAgent(operator, places, complete))
  await using client = new Client({ url, apiKey: complete.apiKey })
  await firstJob(client)
  process.stdout.write(
    `\nBerth is up at ${url} (API document: ${url}/docs)\n  console: ${url}/console\n  key:     ${complete.apiKey}\n  shell:   eval "$(./berth env)"\n  try:     ./berth run --image python -- python3 -c 'print(6 * 7)'\n  stop:    ./berth down\n`,
  )
}

const say = (what: string) => void process.stderr.write(`berth: ${what}\n`)

async function migrate(databaseUrl: string): Promise<void> {
  const program = join(root, 'libs/persistence/dist/migrate.js')
  const env = { DATABASE_URL: databaseUrl, PATH: process.env.PATH ?? '' }
  expectSuccess(await run(['node', program], { env, timeoutMs: 300_000 }))
}

/** Settings of API and agent that a caller of `up` may give by environment. */
const passed = (prefixes: readonly string[]) =>
  Object.fromEntries(
    Object.entries(process.env).flatMap(([name, value]) =>
      value !== undefined && prefixes.some((prefix) => name.startsWith(prefix)) ? [[name, value]] : [],
    ),
  )

/**
 * Of API and agent. glibc keeps what threads free in an arena of each, and V8 up to 48 MiB of young objects: together a
 * third of what they held, for no speed that could be measured. Not so the agent, where a flood of output passes: it
 * would collect for a fifth of its time, so `flags` are the API's only. The units of infra/systemd have the same.
 */
const thrift = {
  flags: ['--max-semi-space-size=4'],
  env: { MALLOC_ARENA_MAX: '1', MALLOC_TRIM_THRESHOLD_: '131072' },
} as const

/** A new build means a new process. */
const builtAt = () => `${statSync(join(root, 'node_modules/.berth-built')).mtimeMs} ${process.versions.node}`

async function startApi(
  places: Places,
  credentials: Credentials,
  databaseUrl: string,
  redisUrl: string,
): Promise<void> {
  const { hostname, port } = new URL(credentials.url)
  const spec: DaemonSpec = {
    name: 'api',
    argv: [process.execPath, ...thrift.flags, apiProgram],
    env: {
      ...thrift.env,
      ...passed(['LOG_LEVEL', 'BERTH_DB_POOL', 'BERTH_RETENTION', 'BERTH_PUBLIC_URL', 'BERTH_TRUSTED_PROXIES']),
      ...passed(['BERTH_REGISTRY_', 'BERTH_INSECURE_REGISTRIES', 'BERTH_PRIVATE_REGISTRIES']),
      ...passed(['BERTH_VULNERABILITIES', 'BERTH_IMAGE_POLICY', 'BERTH_BUILD_CACHE']),
      BERTH_API_HOST: hostname,
      BERTH_API_PORT: port,
      DATABASE_URL: databaseUrl,
      REDIS_URL: redisUrl,
      BERTH_OPERATOR_KEY: credentials.operatorKey,
      BERTH_SECRETS_FILE: places.apiSecrets,
    },
    dependsOn: [builtAt()],
    stopSignal: 'SIGTERM',
    stopWithinMs: 20_000,
  }
  const daemons = { runDir: places.run, logDir: places.logs }
  const { record } = await ensureDaemon(daemons, spec)
  const ready = () =>
    fetch(`${credentials.url}/readyz`)
      .then((answer) => answer.status === 200)
      .catch(() => false)
  await awaitReady(daemons, 'api', record, ready, 30_000)
}

/** Has a node, a tenant and a key, and notes their secrets as soon as they are made. */
async function enroll(operator: Client, places: Places, known: Credentials): Promise<Complete> {
  const nodeToken =
    known.nodeToken ??
    (await operator.call(createNode, { body: { name: `local-${randomBytes(3).toString('hex')}` } })).token
  await saveCredentials(places, { ...known, nodeToken })
  const apiKey = known.apiKey ?? (await newKey(operator))
  const complete = { ...known, nodeToken, apiKey }
  await saveCredentials(places, complete)
  return complete
}

async function newKey(operator: Client): Promise<string> {
  const { items } = await operator.call(listTenants, { query: { name: 'default' } })
  const tenant = items[0] ?? (await operator.call(createTenant, { body: { name: 'default' } }))
  const key = await operator.call(createTenantKey, { params: { tenantId: tenant.id }, body: { name: 'berth-up' } })
  return key.secret
}

async function startAgent(operator: Client, places: Places, credentials: Complete): Promise<void> {
  const spec: DaemonSpec = {
    name: 'agent',
    argv: [process.execPath, agentProgram],
    env: {
      ...thrift.env,
      ...passed(['LOG_LEVEL', 'BERTH_RUNTIME', 'BERTH_MAX_SANDBOXES', 'BERTH_CAPACITY_']),
      BERTH_API_URL: credentials.url,
      BERTH_NODE_TOKEN: credentials.nodeToken,
      BERTH_AGENT_DATA: places.agent,
      BERTH_CGROUP_PARENT: places.cgroupParent,
      BERTH_IMAGES_DIR: places.images,
    },
    dependsOn: [builtAt()],
    stopSignal: 'SIGTERM',
    stopWithinMs: 20_000,
  }
  const daemons = { runDir: places.run, logDir: places.logs }
  const { record } = await ensureDaemon(daemons, spec)
  const ready = async () => {
    const { items } = await operator.call(listNodes, { query: {} })
    return items.some((node) => node.state === 'ready' && node.images.length > 0)
  }
  await awaitReady(daemons, 'agent', record, ready, 120_000)
}
