// app.module.ts: everything there is, in one list. What may use what is decided by imports (.dependency-cruiser.mjs), not
// by modules.
import { randomBytes } from 'node:crypto'
import { mintId } from '@berth/contracts'
import { openStreams } from '@berth/node-rpc'
import { type Clock, type Database, openDatabase } from '@berth/persistence'
import { type NodeQueues, openNodeQueues, parseRedisUrl } from '@berth/queue'
import type { Logger } from '@berth/telemetry'
import { BullModule } from '@nestjs/bullmq'
import { type DynamicModule, Module } from '@nestjs/common'
import { BaseImages } from './builds/base-images.js'
import { BuildNodes } from './builds/build-nodes.js'
import { BuildRuns } from './builds/build-runs.js'
import { BuildingService } from './builds/building.service.js'
import { BuildsController } from './builds/builds.controller.js'
import { BuildsService } from './builds/builds.service.js'
import type { Config } from './config.js'
import { EventsController } from './events/events.controller.js'
import { EventsService } from './events/events.service.js'
import { Auth } from './http/auth.js'
import { Idempotency } from './http/idempotency.js'
import { OpenApiController } from './http/openapi.controller.js'
import { RateLimit } from './http/rate-limit.js'
import { SessionsController } from './http/sessions.controller.js'
import { SessionsService } from './http/sessions.service.js'
import { ImageNames } from './images/image-names.js'
import { ImageNodes } from './images/image-nodes.js'
import { ImageSources } from './images/image-sources.service.js'
import { ImagesController } from './images/images.controller.js'
import { ImagesService } from './images/images.service.js'
import { NodeImagesController } from './images/node-images.controller.js'
import { RegistriesService } from './images/registries.service.js'
import { TemplatesController } from './images/templates.controller.js'
import { TemplatesService } from './images/templates.service.js'
import { TransfersService } from './images/transfers.service.js'
import { BatchesService } from './jobs/batches.service.js'
import { JobsController } from './jobs/jobs.controller.js'
import { JobsService } from './jobs/jobs.service.js'
import { Waiters } from './jobs/waiters.js'
import { NodeUsers } from './nodes/node-users.js'
import { NodesController } from './nodes/nodes.controller.js'
import { NodesService } from './nodes/nodes.service.js'
import { ProtocolService } from './nodes/protocol.service.js'
import { ConsoleController } from './operations/console.js'
import { Drain } from './operations/drain.js'
import { HealthController } from './operations/health.controller.js'
import { ExecsController } from './sandboxes/execs.controller.js'
import { ExecsService } from './sandboxes/execs.service.js'
import { FilesController } from './sandboxes/files.controller.js'
import { FilesService } from './sandboxes/files.service.js'
import { ObservationController } from './sandboxes/observation.controller.js'
import { ObservationService } from './sandboxes/observation.service.js'
import { SandboxSignals } from './sandboxes/sandbox-signals.js'
import { SandboxWaits } from './sandboxes/sandbox-waits.js'
import { SandboxesController } from './sandboxes/sandboxes.controller.js'
import { SandboxesService } from './sandboxes/sandboxes.service.js'
import { SnapshotsController } from './sandboxes/snapshots.controller.js'
import { SnapshotsService } from './sandboxes/snapshots.service.js'
import { TerminalDoors } from './sandboxes/terminal-doors.js'
import { TerminalsController } from './sandboxes/terminals.controller.js'
import { TerminalsService } from './sandboxes/terminals.service.js'
import { signatureOf } from './scan/database-files.js'
import { ImageGate } from './scan/image-gate.js'
import { ImageScans } from './scan/image-scans.js'
import { ImageVerdicts } from './scan/image-verdicts.js'
import { ImageWarnings } from './scan/image-warnings.js'
import { KnownVulnerabilities } from './scan/known-vulnerabilities.js'
import { PlainThread } from './scan/plain-thread.js'
import { startScanThread } from './scan/scan-thread.js'
import { ScansController } from './scan/scans.controller.js'
import { ScansService } from './scan/scans.service.js'
import { Changes } from './scheduling/changes.js'
import { Dispatcher } from './scheduling/dispatcher.js'
import { Placer } from './scheduling/placer.js'
import { Reconciler } from './scheduling/reconciler.js'
import { Reports } from './scheduling/reports.js'
import { TIMERS, TIMERS_PREFIX, Timers, TimersProcessor } from './scheduling/timers.js'
import { Wakes } from './scheduling/wakes.js'
import { Secrets } from './secrets.js'
import { Follow } from './streams/follow.js'
import { NodeCalls } from './streams/node-calls.js'
import { NodeDoors } from './streams/node-doors.js'
import { NodeOutput } from './streams/node-output.js'
import { SandboxCalls } from './streams/sandbox-calls.js'
import { Watch } from './streams/watch.js'
import { TenantsController } from './tenants/tenants.controller.js'
import { TenantsService } from './tenants/tenants.service.js'
import { CLOCK, CONFIG, DATABASE, LOG, QUEUES, STREAMS } from './tokens.js'
import { UsageController } from './usage/usage.controller.js'

/** What the process opens before Nest is started, and closes after it. */
export interface Outside {
  readonly config: Config
  readonly log: Logger
  readonly secrets: Secrets
  readonly database: Database
  readonly queues: NodeQueues
}

const clock: Clock = { now: () => new Date() }
const ids = { mint: (kind: Parameters<typeof mintId>[0]) => mintId(kind, Date.now(), randomBytes(10)) }

/** Opens Postgres and Redis; connects to them when they are first needed. @throws Fault on malformed URLs */
export function openOutside(config: Config, log: Logger, secrets: Secrets): Outside {
  const database = openDatabase({ url: config.DATABASE_URL.reveal(), poolSize: config.BERTH_DB_POOL, clock, ids })
  const queues = openNodeQueues({ redisUrl: config.REDIS_URL.reveal(), log })
  return { config, log, secrets, database, queues }
}

const vulnerabilitiesOf = ({ BERTH_VULNERABILITIES: path }: Config, log: Logger) => ({
  ...{ path, signature: signatureOf, open: startScanThread, clock, log },
})

@Module({})
class AppModule {}

export function appModule({ config, log, secrets, database, queues }: Outside): DynamicModule {
  const connection = { ...parseRedisUrl(config.REDIS_URL.reveal()), maxRetriesPerRequest: null }
  return {
    module: AppModule,
    imports: [
      BullModule.forRoot({ connection, prefix: TIMERS_PREFIX, skipVersionCheck: true }),
      BullModule.registerQueue({ name: TIMERS }),
    ],
    controllers: [
      JobsController,
      SandboxesController,
      SnapshotsController,
      ObservationController,
      ExecsController,
      TerminalsController,
      FilesController,
      EventsController,
      TenantsController,
      NodesController,
      ImagesController,
      BuildsController,
      NodeImagesController,
      ScansController,
      TemplatesController,
      UsageController,
      SessionsController,
      OpenApiController,
      ConsoleController,
      HealthController,
    ],
    providers: [
      { provide: CLOCK, useValue: clock },
      { provide: CONFIG, useValue: config },
      { provide: DATABASE, useValue: database },
      { provide: LOG, useValue: log },
      { provide: QUEUES, useValue: queues },
      { provide: STREAMS, useFactory: openStreams },
      { provide: Secrets, useValue: secrets },
      { provide: KnownVulnerabilities, useValue: new KnownVulnerabilities(vulnerabilitiesOf(config, log)) },
      { provide: RateLimit, useValue: new RateLimit(config.BERTH_API_REPLICAS) },
      ...[Auth, SessionsService, Idempotency, Drain],
      ...[JobsService, BatchesService, Waiters, Follow, NodeOutput, NodeDoors, NodeCalls],
      ...[Watch, SandboxCalls],
      ...[
        SandboxesService,
        SnapshotsService,
        SandboxWaits,
        SandboxSignals,
        ExecsService,
        FilesService,
        ObservationService,
        EventsService,
      ],
      ...[TerminalsService, TerminalDoors],
      ...[ImageNames, ImageNodes, ImageSources, ImagesService, TemplatesService, TransfersService, RegistriesService],
      ...[BaseImages, BuildNodes, BuildRuns, BuildingService, BuildsService],
      ...[ImageScans, ImageVerdicts, ImageWarnings, ImageGate, PlainThread, ScansService],
      ...[TenantsService, NodesService, NodeUsers, ProtocolService],
      ...[Changes, Dispatcher, Placer, Reconciler, Reports, Timers, TimersProcessor, Wakes],
    ],
  }
}
