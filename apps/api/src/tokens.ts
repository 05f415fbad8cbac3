// tokens.ts: names under which app.module.ts provides what is not a class of its own.
import type { Clock, Database } from '@berth/persistence'
import type { NodeQueues } from '@berth/queue'
import type { Logger } from '@berth/telemetry'

export type { Clock, Database, Logger, NodeQueues }

export const CLOCK = Symbol('Clock')
export const CONFIG = Symbol('Config')
export const DATABASE = Symbol('Database')
export const LOG = Symbol('Logger')
export const QUEUES = Symbol('NodeQueues')
export const STREAMS = Symbol('Streams')
