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
}

/** Built base images are shared by all installations of a machine. Environment: BERTH_IMAGE_CACHE. */
export const defaultImageCache = (env: NodeJS.ProcessEnv) => resolve(env.BERTH_IMAGE_CACHE || '/var/cache/berth/images')

/** @param env BERTH_DATA (default `/var/lib/berth`) and BERTH_IMAGE_CACHE */
export function placesFrom(env: NodeJS.ProcessEnv): Places {
  const data = resolve(env.BERTH_DATA || '/var/lib/berth')
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
  }
}
