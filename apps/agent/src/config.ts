// config.ts: the environment, read once. Every option has a description, a check and, where there can be one, a
// default; all problems are told in one message. `main.js --config` prints what is in effect.

import { isAbsolute, resolve } from 'node:path'
import { parseBytes } from '@berth/contracts'
import { logLevels } from '@berth/telemetry'
import { z } from 'zod'
import { runtimeNames } from './runtime/oci-runtime.js'

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

const directory = (fallback: string) =>
  z
    .string()
    .refine(isAbsolute, 'must be an absolute path')
    .default(fallback)
    .transform((path) => resolve(path))

const bytes = z.string().transform((text, context) => {
  const value = parseBytes(text)
  if (value !== undefined && value > 0) return value
  context.addIssue({ code: 'custom', message: 'must be a size such as "16g"' })
  return z.NEVER
})

const whole = (min: number, max: number) => z.coerce.number().int().min(min).max(max)

/** The same from src/ and dist/. */
const builtInit = resolve(import.meta.dirname, '../../../libs/init/build')

const Environment = z.object({
  BERTH_API_URL: z.url({ protocol: /^https?$/ }).describe('The API, e.g. https://berth.example.com'),
  BERTH_NODE_TOKEN: z
    .string()
    .min(16)
    .transform((value) => new Secret(value))
    .describe("The node's token, as POST /v1/nodes answered it"),
  BERTH_AGENT_DATA: directory('/var/lib/berth/agent').describe(
    'Everything that the agent keeps. Others must be able to pass the directories above it (mode o+x)',
  ),
  BERTH_IMAGES_DIR: directory('/var/lib/berth/images').describe('OCI image layout whose images jobs can use'),
  BERTH_INIT_DIR: directory(builtInit).describe('Where berth-init, berth-enter and berth-run are'),
  BERTH_CGROUP_PARENT: z
    .string()
    .regex(/^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$/, 'must be a name of letters, digits, "_" or "-"')
    .default('berth')
    .describe('Control group above all sandboxes of this agent'),
  BERTH_RUNTIME: z
    .enum(['auto', ...runtimeNames])
    .default('auto')
    .describe('OCI runtime; auto takes crun where it is installed'),
  BERTH_EXEC_DRIVER: z
    .enum(['init', 'oci'])
    .default('init')
    .describe('How commands are run in a sandbox: by berth-init, or by the OCI runtime where berth-init has no socket'),
  BERTH_AGENT_HOST: z
    .string()
    .min(1)
    .default('127.0.0.1')
    .describe('Address to serve output on, as the API reaches it'),
  BERTH_AGENT_PORT: whole(0, 65_535).default(0).describe('Port to serve output on; 0: any'),
  BERTH_MAX_SANDBOXES: whole(1, 10_000).default(256).describe('How many sandboxes may exist at once'),
  BERTH_CAPACITY_CPUS: z.coerce
    .number()
    .min(0.01)
    .max(4096)
    .optional()
    .describe('CPUs to offer. Default: four for each of the machine: a CPU limit is a ceiling that few jobs reach'),
  BERTH_CAPACITY_MEMORY: bytes.optional().describe("Memory to offer. Default: 80 % of the machine's"),
  BERTH_CAPACITY_DISK: bytes
    .optional()
    .describe(
      'Space for writable layers. The pool is made a fifth larger, for what builds keep in cache mounts and for copies of ' +
        "sandboxes' files. Default: so that all of it is 80 % of what is free then",
    ),
  LOG_LEVEL: z.enum(logLevels).default('info').describe('Least severe level that is logged'),
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
  const parsed = Environment.safeParse(given)
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
    .map(([name, schema]) => `${name}=${values[name] ?? ''}\n    ${schema.description ?? ''}\n`)
    .join('')
}
