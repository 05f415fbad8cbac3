// main.ts: starts the API, and ends it without cutting off anyone who can be answered in time.
import 'reflect-metadata'
import type { IncomingMessage } from 'node:http'
import { Fault, routes } from '@berth/contracts'
import type { Streams } from '@berth/node-rpc'
import { createLogger, type Logger } from '@berth/telemetry'
import { NestFactory } from '@nestjs/core'
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { appModule, type Outside, openOutside } from './app.module.js'
import { type Config, describeConfig, InvalidConfig, readConfig } from './config.js'
import { Auth, hashOf } from './http/auth.js'
import { Idempotency } from './http/idempotency.js'
import { version } from './http/openapi.controller.js'
import { installPipeline, requestId } from './http/pipeline.js'
import { ProblemFilter } from './http/problem.filter.js'
import { RateLimit } from './http/rate-limit.js'
import { closeAllSockets } from './http/sockets.js'
import { NestLog } from './nest-log.js'
import { NodeUsers } from './nodes/node-users.js'
import { Drain } from './operations/drain.js'
import { KnownVulnerabilities } from './scan/known-vulnerabilities.js'
import { Loop } from './scheduling/loop.js'
import { Placer } from './scheduling/placer.js'
import { Reconciler } from './scheduling/reconciler.js'
import { Timers } from './scheduling/timers.js'
import { Wakes } from './scheduling/wakes.js'
import { loadSecrets } from './secrets.js'
import { CLOCK, type Clock, STREAMS } from './tokens.js'

/** How long requests under way may take to end at shutdown, in milliseconds. */
const DRAIN_MS = 10_000
/** A request's head must have come within this, in milliseconds; for its body see bodies.ts. */
const HEAD_WITHIN_MS = 60_000
/** Largest head of a request, in bytes: secrets of builds come in it. */
const MAX_HEAD = 64 * 1024

function adapterOf(filter: ProblemFilter, config: Config): FastifyAdapter {
  return new FastifyAdapter({
    trustProxy: config.BERTH_TRUSTED_PROXIES.length > 0 && [...config.BERTH_TRUSTED_PROXIES],
    genReqId: (raw: IncomingMessage) => requestId(raw.headers['x-request-id']),
    requestIdHeader: false,
    exposeHeadRoutes: false,
    // A name of an image, percent-encoded.
    routerOptions: { maxParamLength: 2048 },
    requestTimeout: 0,
    // A client that vanished without a word is found after 20 s (libuv probes ten times, a second apart).
    http: { headersTimeout: HEAD_WITHIN_MS, maxHeaderSize: MAX_HEAD, keepAlive: true, keepAliveInitialDelay: 10_000 },
    keepAliveTimeout: 65_000,
    skipMiddie: true,
    multipart: false,
    // A URL that cannot be decoded meets no hook.
    frameworkErrors: (error: unknown, request: FastifyRequest, reply: FastifyReply) =>
      filter.answer(error, request, reply),
  })
}

async function compose(outside: Outside): Promise<NestFastifyApplication> {
  const filter = new ProblemFilter(routes, outside.log)
  const adapter = adapterOf(filter, outside.config)
  const logger = new NestLog(outside.log)
  const module = appModule(outside)
  const app = await NestFactory.create<NestFastifyApplication>(module, adapter, {
    logger,
    bodyParser: false,
    abortOnError: false,
  })
  app.useGlobalFilters(filter)
  const handled = installPipeline(adapter.getInstance(), {
    auth: app.get(Auth),
    rateLimit: app.get(RateLimit),
    idempotency: app.get(Idempotency),
    clock: app.get<Clock>(CLOCK),
    log: outside.log,
    publicOrigin: outside.config.BERTH_PUBLIC_URL,
  })
  await app.init()
  const unhandled = routes.filter((route) => !handled.has(route)).map(({ id }) => id)
  if (unhandled.length > 0) throw new Fault('starting the API', { cause: `no handler for ${unhandled.join(', ')}` })
  return app
}

/** The operator's key of the environment, so that a new installation can be spoken to at all. */
async function ensureOperator({ database, config }: Outside): Promise<void> {
  const secret = config.BERTH_OPERATOR_KEY?.reveal()
  if (secret === undefined) return
  await database.keys.ensureOperator({ name: 'environment', hash: hashOf(secret), hint: secret.slice(0, 8) })
}

interface Background {
  stop(): Promise<void>
}

function startBackground(app: NestFastifyApplication, log: Logger): Background {
  const auth = app.get(Auth)
  const keyUse = new Loop('key-use', 5000, () => auth.noteUse(), log)
  const known = app.get(KnownVulnerabilities)
  const vulnerabilities = new Loop('vulnerabilities', 10_000, () => known.check(), log)
  const loops = [
    app.get(Placer),
    app.get(Reconciler),
    app.get(Timers),
    keyUse,
    ...(known.isGiven ? [vulnerabilities] : []),
  ]
  app.get(Wakes).listen()
  for (const loop of loops) loop.start()
  app
    .get(NodeUsers)
    .ensureAll()
    .catch((err: unknown) => log.warn({ err }, 'nodes.users.failed'))
  const stop = async () => {
    known.close()
    await Promise.all(loops.map((loop) => loop.stop()))
  }
  return { stop }
}

/** Stops taking requests, answers who waits, ends what is left after DRAIN_MS, and closes everything. */
async function shutDown(app: NestFastifyApplication, outside: Outside, background: Background): Promise<void> {
  const server = app.getHttpServer()
  app.get(Drain).begin()
  // A kept-alive connection whose last answer comes after close() would hold it up until the client lets go.
  const idle = setInterval(() => server.closeIdleConnections(), 50)
  const cut = setTimeout(() => {
    server.closeAllConnections()
    closeAllSockets(0)
  }, DRAIN_MS)
  await Promise.all([app.close(), background.stop()])
  clearInterval(idle)
  clearTimeout(cut)
  await app.get<Streams>(STREAMS).close()
  await outside.queues.close()
  await outside.database.close()
}

async function start(config: Config, log: Logger): Promise<void> {
  const secrets = await loadSecrets(config.BERTH_SECRETS_FILE, config.BERTH_SECRETS?.reveal())
  const outside = openOutside(config, log, secrets)
  await ensureOperator(outside)
  await outside.database.ping()
  const app = await compose(outside)
  const background = startBackground(app, log)
  await app.listen({ host: config.BERTH_API_HOST, port: config.BERTH_API_PORT })
  log.info({ url: await app.getUrl(), version }, 'api.listening')
  endOnSignal(log, () => shutDown(app, outside, background))
}

function endOnSignal(log: Logger, end: () => Promise<void>): void {
  let ending = false
  const onSignal = (signal: NodeJS.Signals) => {
    if (ending) return
    ending = true
    log.info({ signal }, 'api.draining')
    end().then(
      () => {
        log.info({}, 'api.ended')
        process.exit(0)
      },
      (err: unknown) => {
        log.error({ err }, 'api.end.failed')
        process.exit(1)
      },
    )
  }
  process.on('SIGTERM', onSignal)
  process.on('SIGINT', onSignal)
}

async function main(): Promise<void> {
  const config = readConfig(process.env)
  if (process.argv.includes('--config')) {
    process.stdout.write(describeConfig(config))
    return
  }
  const log = createLogger({ name: 'api', level: config.LOG_LEVEL })
  // State after a bug nobody caught is unknown; rows are the truth, so another process goes on better.
  const crash = (err: unknown) => {
    log.fatal({ err }, 'api.crashed')
    process.exit(1)
  }
  process.on('uncaughtException', crash)
  process.on('unhandledRejection', crash)
  await start(config, log).catch(crash)
}

await main().catch((error: unknown) => {
  if (!(error instanceof InvalidConfig)) throw error
  process.stderr.write(`${error.message}\n`)
  process.exit(2)
})
