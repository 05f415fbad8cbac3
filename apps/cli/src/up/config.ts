import { createHash } from 'node:crypto'
import { join, resolve } from 'node:path'

/** Where everything of one installation lives; see docs/architecture.md for what is in each directory. */
export interface Places {
  readonly data: string
  readonly postgres: string
  readonly redis: string
  readonly images: string
  readonly imageCache: string
  readonly agent: string
  readonly apiSecrets: string
  /** One record for each process that `up` started. */
  readonly run: string
  readonly logs: string
  readonly credentials: string
  /** Control group above all sandboxes. */
  readonly cgroupParent: string
}

const DEFAULT_DATA = '/var/lib/berth'

/**
 * An agent ends whatever runs below its group and is not on its record, so two installations must never share one: a
 * data directory other than the default has a group named after it.
 */
export const cgroupParentOf = (data: string) =>
  data === DEFAULT_DATA ? 'berth' : `berth-${createHash('sha256').update(data).digest('hex').slice(0, 12)}`

/** Built base images are shared by all installations of a machine. Environment: BERTH_IMAGE_CACHE. */
export const defaultImageCache = (env: NodeJS.ProcessEnv) => resolve(env.BERTH_IMAGE_CACHE || '/var/cache/berth/images')

/** @param env BERTH_DATA (default `/var/lib/berth`), BERTH_IMAGE_CACHE and BERTH_CGROUP_PARENT */
export function placesFrom(env: NodeJS.ProcessEnv): Places {
  const data = resolve(env.BERTH_DATA || DEFAULT_DATA)
  return {
    data,
    postgres: join(data, 'postgres'),
    redis: join(data, 'redis'),
    images: join(data, 'images'),
    imageCache: defaultImageCache(env),
    agent: join(data, 'agent'),
    apiSecrets: join(data, 'api', 'secrets.json'),
    run: join(data, 'run'),
    logs: join(data, 'logs'),
    credentials: join(data, 'credentials.json'),
    cgroupParent: env.BERTH_CGROUP_PARENT || cgroupParentOf(data),
  }
}
