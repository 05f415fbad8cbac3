// request.plan.ts: query and headers of a build → what is asked for. What is secret comes in a header, since URLs end up in
// logs of proxies.
import {
  BUILD_SECRET_HEADER,
  type BuildLimits,
  type BuildOptions,
  type BuildQuery,
  BuildSecrets,
  DOCKERFILE_HEADER,
  InvalidRequest,
} from '@berth/contracts'
import { nameToGive } from '../images/names.plan.js'

export interface AskedBuild {
  /** In full. */
  readonly names: readonly string[]
  readonly options: BuildOptions
  /** Of each command. */
  readonly limits: BuildLimits
  readonly parallel: number
  readonly timeoutMs: number
  readonly queueMs: number
  /** Instead of a Dockerfile of the context. */
  readonly dockerfileText: string | null
  readonly secrets: BuildSecrets
}

/** @throws InvalidRequest */
export function askedBuild(
  query: BuildQuery,
  headers: Readonly<Record<string, string | string[] | undefined>>,
): AskedBuild {
  const { dockerfile, target = null, arg, label, noCache, pull, network, platform = null } = query
  const { cpus, memoryBytes, diskBytes, pids, parallel, timeoutMs, queueMs } = query
  return {
    names: [...new Set(query.tag.map((tag) => nameToGive(tag, 'tag')))],
    options: { dockerfile, target, args: arg, labels: label, noCache, pull, network, platform },
    limits: { cpus, memoryBytes, diskBytes, pids },
    ...{ parallel, timeoutMs, queueMs },
    dockerfileText: dockerfileOf(headers[DOCKERFILE_HEADER]),
    secrets: secretsOf(headers[BUILD_SECRET_HEADER]),
  }
}

/** `ID=BASE64`, by commas: as Node joins a header that is repeated. No value is told in what is wrong with it. */
function secretsOf(header: string | string[] | undefined): BuildSecrets {
  const texts = [header ?? []].flat().flatMap((text) => text.split(','))
  const pairs = texts.map((text): [string, string] => {
    const at = text.indexOf('=')
    return at < 0 ? [text.trim(), ''] : [text.slice(0, at).trim(), text.slice(at + 1).trim()]
  })
  const parsed = BuildSecrets.safeParse(Object.fromEntries(pairs))
  if (parsed.success && new Set(pairs.map(([id]) => id)).size === pairs.length) return parsed.data
  const [issue] = parsed.error?.issues ?? []
  const why = issue?.code === 'invalid_key' ? issue.issues[0]?.message : issue?.message
  const message = `must be ID=BASE64, each id once: ${why ?? 'an id is there twice'}`
  throw new InvalidRequest([{ field: 'Berth-Build-Secret', message }])
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: false })

function dockerfileOf(header: string | string[] | undefined): string | null {
  if (header === undefined) return null
  const text = String(header)
  try {
    if (/^[A-Za-z0-9+/]*={0,2}$/.test(text)) return utf8.decode(Buffer.from(text, 'base64'))
  } catch {
    // Told below: it is not UTF-8.
  }
  throw new InvalidRequest([{ field: 'Berth-Dockerfile', message: 'must be the base64 of UTF-8 text' }])
}
