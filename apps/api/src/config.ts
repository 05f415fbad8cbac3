// config.ts: the environment, read once. Every option has a description, a check and, where there can be one, a
// default; all problems are told in one message. `main.js --config` prints what is in effect.
import { Bytes, ImagePolicy } from '@berth/contracts'
import { logLevels } from '@berth/telemetry'
import { z } from 'zod'

/** A value that must not end up in a log: shows as `[redacted]` wherever it is turned into text. */
export class Secret {
  readonly #value: string

  constructor(value: string) {
    this.#value = value
  }

  reveal(): string {
    return this.#value
  }

  toString(): string {
    return '[redacted]'
  }

  toJSON(): string {
    return '[redacted]'
  }
}

const secret = (schema: z.ZodString) => schema.transform((value) => new Secret(value))

const postgresUrl = z.string().regex(/^postgres(ql)?:\/\//, 'must be a postgresql:// URL')
const redisUrl = z.string().regex(/^(rediss?|(redis\+)?unix):\/\//, 'must be redis://host:port/db or unix:///path')

const flag = z.enum(['true', 'false'], 'must be true or false').transform((text) => text === 'true')
const size = Bytes(0, 2 ** 50)
const words = (word: RegExp) =>
  z
    .string()
    .transform((text) => text.split(',').map((one) => one.trim()))
    .refine((all) => all.every((one) => word.test(one)), `must be words like ${word.source} between commas`)

const registry = /^([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(:[0-9]{1,5})?$/
/** `registry=url,url;registry=url` */
const mirrors = z.string().transform((text, context): Readonly<Record<string, readonly string[]>> => {
  const all = text.split(';').map((one) => one.trim().split('='))
  const parsed = all.map(([name = '', urls = '', ...more]) => ({
    name,
    urls: urls.split(',').map((url) => url.trim()),
    more,
  }))
  const isOrigin = (url: string) => URL.canParse(url) && /^https?:\/\/[^/]+$/.test(url)
  if (parsed.every(({ name, urls, more }) => registry.test(name) && urls.every(isOrigin) && more.length === 0))
    return Object.fromEntries(parsed.map(({ name, urls }) => [name, urls]))
  context.addIssue({ code: 'custom', message: 'must be like docker.io=https://mirror.local;ghcr.io=https://other' })
  return z.NEVER
})

const Environment = z.object({
  BERTH_API_HOST: z.string().min(1).default('127.0.0.1').describe('Address to listen on'),
  BERTH_API_PORT: z.coerce.number().int().min(0).max(65_535).default(7433).describe('Port to listen on; 0: any'),
  BERTH_PUBLIC_URL: z
    .url({ protocol: /^https?$/ })
    .transform((url) => new URL(url).origin)
    .optional()
    .describe('Where browsers find the API, e.g. https://berth.example.com. Default: where a request is sent to'),
  BERTH_TRUSTED_PROXIES: z
    .string()
    .transform((text) => text.split(',').map((part) => part.trim()))
    .pipe(z.array(z.union([z.ipv4(), z.ipv6(), z.cidrv4(), z.cidrv6()])))
    .default([])
    .describe('Addresses and networks, with commas, of proxies whose X-Forwarded-For, -Proto and -Host are believed'),
  DATABASE_URL: secret(postgresUrl).describe('Postgres, e.g. postgresql://berth@localhost/berth?host=/run/postgresql'),
  REDIS_URL: secret(redisUrl).describe('Redis, e.g. redis://127.0.0.1:6379/0 or unix:///run/redis.sock'),
  BERTH_NODE_REDIS_URL: secret(redisUrl)
    .optional()
    .describe('Redis as nodes reach it; credentials in it are not passed on. Default: REDIS_URL'),
  BERTH_OPERATOR_KEY: secret(z.string().regex(/^brt_[\w-]{32,200}$/, 'must be brt_ and 32 or more of A-Z a-z 0-9 _ -'))
    .optional()
    .describe('Secret of a first operator key; only its hash is stored'),
  BERTH_SECRETS_FILE: z
    .string()
    .min(1)
    .default('/var/lib/berth/api/secrets.json')
    .describe('Keys of this installation, made on first start; the same for all replicas'),
  BERTH_SECRETS: secret(z.string().min(1))
    .optional()
    .describe('The content of BERTH_SECRETS_FILE, instead of the file'),
  BERTH_DB_POOL: z.coerce.number().int().min(2).max(200).default(10).describe('Connections to Postgres'),
  BERTH_API_REPLICAS: z.coerce
    .number()
    .int()
    .min(1)
    .max(1000)
    .default(1)
    .describe('Replicas behind the load balancer: each lets through its share of a tenant’s rate'),
  BERTH_SANDBOX_CAP_ADD: words(/^CAP_[A-Z_]{2,32}$/)
    .optional()
    .describe('Capabilities that sandboxes may add, by commas. Default: those that Docker gives, and a few; see docs'),
  BERTH_SANDBOX_SYSCTLS: words(/^[a-z0-9_]+(\.[a-z0-9_-]+)*(\.\*)?$/)
    .optional()
    .describe('Sysctls that sandboxes may set, by commas; `net.ipv4.*` for all below. Never more than the safe list'),
  BERTH_SANDBOX_SECCOMP: words(/^[a-z0-9][a-z0-9-]{0,31}$/)
    .optional()
    .describe('Names of seccomp profiles that sandboxes may choose, by commas. Default: default,strict'),
  BERTH_SANDBOX_NEW_PRIVILEGES: flag
    .default(false)
    .describe('Whether sandboxes may ask for noNewPrivileges: false (setuid programs work then), and builds have it'),
  BERTH_SANDBOX_CPUSET: flag.default(true).describe('Whether sandboxes may choose the CPUs that they run on'),
  BERTH_SANDBOX_MAX_OOM_SCORE: z.coerce
    .number()
    .int()
    .min(0)
    .max(1000)
    .default(1000)
    .describe('Highest oomScoreAdj of a sandbox'),
  BERTH_SANDBOX_MAX_CPUS: z.coerce
    .number()
    .min(0.01)
    .optional()
    .describe('Most CPUs of one sandbox. Default: no limit'),
  BERTH_SANDBOX_MAX_MEMORY: size.optional().describe('Most memory of one sandbox, e.g. 8g. Default: no limit'),
  BERTH_SANDBOX_MAX_DISK: size.optional().describe('Most disk of one sandbox. Default: no limit'),
  BERTH_SANDBOX_MAX_SWAP: size.default(0).describe('Most swap of one sandbox. Default: none'),
  BERTH_SANDBOX_MAX_PIDS: z.coerce.number().int().min(2).optional().describe('Most processes of one sandbox'),
  BERTH_SANDBOX_MAX_OPEN_FILES: z.coerce
    .number()
    .int()
    .min(16)
    .default(1_048_576)
    .describe('Highest hard limit of open files of a process'),
  BERTH_REGISTRY_MIRRORS: mirrors
    .default({})
    .describe(
      'Tried before a registry itself, e.g. docker.io=https://mirror.local,https://other;ghcr.io=http://10.0.0.5',
    ),
  BERTH_INSECURE_REGISTRIES: words(registry)
    .default([])
    .describe('Registries, as host:port by commas, that are spoken to by http, at any address'),
  BERTH_PRIVATE_REGISTRIES: words(registry)
    .default([])
    .describe('Registries that may be at loopback or private addresses, or have a name without a dot; by https'),
  BERTH_REGISTRY_CA: z
    .string()
    .min(1)
    .optional()
    .describe('File with certificates (PEM) of authorities that registries are trusted by, besides the usual ones'),
  BERTH_BUILD_CACHE: size
    .prefault('10g')
    .describe('Most that builds of one tenant keep on a node for the next ones, e.g. 20g'),
  BERTH_VULNERABILITIES: z
    .string()
    .min(1)
    .optional()
    .describe('File or directory with records of vulnerabilities (OSV, JSON), read again when it changes'),
  BERTH_IMAGE_POLICY: ImagePolicy.shape.mode
    .default('off')
    .describe(
      'What becomes of jobs and sandboxes from images with vulnerabilities: off, warn (logged) or refuse; a tenant’s own ' +
        'policy comes before it',
    ),
  BERTH_IMAGE_POLICY_SEVERITY: ImagePolicy.shape.severity.describe(
    'Least severity that counts: low, medium, high or critical',
  ),
  BERTH_IMAGE_POLICY_FIXABLE_ONLY: flag
    .default(false)
    .describe('Whether only vulnerabilities that a newer version mends count'),
  BERTH_IMAGE_POLICY_EXEMPT: words(/^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$/)
    .default([])
    .describe('Ids of vulnerabilities that do not count, by commas'),
  LOG_LEVEL: z.enum(logLevels).default('info').describe('Least severe level that is logged'),
})

/** What only the whole can tell. */
const Checked = Environment.superRefine((config, context) => {
  if (config.BERTH_IMAGE_POLICY === 'refuse' && config.BERTH_VULNERABILITIES === undefined)
    context.addIssue({
      code: 'custom',
      path: ['BERTH_VULNERABILITIES'],
      message: 'is needed, since BERTH_IMAGE_POLICY refuses images by it',
    })
})

export type Config = Readonly<z.output<typeof Environment>>

/** The environment cannot be used; the message has one line for each thing wrong. */
export class InvalidConfig extends Error {
  constructor(readonly problems: readonly string[]) {
    super(`the environment is not usable:\n${problems.map((problem) => `  ${problem}`).join('\n')}`)
    this.name = 'InvalidConfig'
  }
}

/**
 * Reads the configuration. An empty variable counts as not given.
 * @throws InvalidConfig naming every variable that is wrong, never its value
 */
export function readConfig(env: Readonly<Record<string, string | undefined>>): Config {
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== ''))
  const parsed = Checked.safeParse(given)
  if (parsed.success) return Object.freeze(parsed.data)
  throw new InvalidConfig(
    parsed.error.issues.map(({ path: [name = ''], message }) =>
      given[String(name)] === undefined ? `${String(name)}: is needed` : `${String(name)}: ${message}`,
    ),
  )
}

/** One line per option: value in effect (secrets redacted) and what it is for. */
export function describeConfig(config: Config): string {
  const values: Readonly<Record<string, unknown>> = config
  return Object.entries(Environment.shape)
    .map(([name, schema]) => `${name}=${shown(values[name])}\n    ${schema.description ?? ''}\n`)
    .join('')
}

/** Lists as they are given; mirrors as JSON. */
const shown = (value: unknown): string =>
  typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Secret)
    ? JSON.stringify(value)
    : String(value ?? '')
