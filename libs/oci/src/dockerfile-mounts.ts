// dockerfile-mounts.ts: `RUN --mount=…` (BuildKit, frontend/dockerfile/instructions/commands_runmount.go and
// dockerfile2llb/convert_runmount.go, convert_secrets.go).
import { didYouMean, invalidDockerfile, type Place } from './dockerfile-error.js'

/** The fields of a mount; variables are not yet substituted in values. */
export interface Mount {
  readonly fields: readonly (readonly [key: string, value: string | null])[]
  readonly from: string | null
}

/** A mount with its values: what is null was not said. */
export interface MountValues {
  readonly type: 'bind' | 'cache' | 'secret' | 'tmpfs'
  readonly from: string | null
  readonly source: string
  readonly target: string
  readonly readOnly: boolean
  readonly id: string
  readonly env: string | null
  readonly required: boolean
  readonly sharing: 'shared' | 'private' | 'locked'
  readonly size: number | null
  readonly mode: number | null
  readonly uid: number | null
  readonly gid: number | null
}

/** @throws Failure dockerfile_invalid for what is wrong with it whatever its variables are */
export function parseMount(text: string, at: Place): Mount {
  if (text.length > 4096) throw invalidDockerfile('--mount: more than 4096 characters', at)
  const fields = commaFields(text, at).map((field) => {
    const equals = field.indexOf('=')
    const key = (equals < 0 ? field : field.slice(0, equals)).toLowerCase()
    return [keyNames[key] ?? key, equals < 0 ? null : field.slice(equals + 1)] as const
  })
  const from = fields.findLast(([key]) => key === 'from')?.[1] ?? null
  if (from?.includes('$'))
    throw invalidDockerfile('from takes no variable: begin a stage with "FROM $variable AS name", and name that', at)
  const mount = { fields, from: from === '' ? null : from }
  if (!text.includes('$')) mountValues(mount, (value) => value, at)
  return mount
}

const keyNames: Readonly<Record<string, string>> = {
  src: 'source',
  dst: 'target',
  destination: 'target',
  ro: 'readonly',
  rw: 'readwrite',
}
const types = ['bind', 'cache', 'secret', 'tmpfs'] as const
const sharings = ['shared', 'private', 'locked'] as const
const keys = 'type from source target readonly readwrite required size id sharing mode uid gid env'.split(' ')
/** Keys that only some types have. */
const onlyOf: Readonly<Record<string, readonly string[]>> = {
  required: ['secret'],
  env: ['secret'],
  size: ['tmpfs'],
  sharing: ['cache'],
  mode: ['secret', 'cache'],
  uid: ['secret', 'cache'],
  gid: ['secret', 'cache'],
}

/**
 * @param expand substitutes variables
 * @throws Failure dockerfile_invalid
 */
export function mountValues(mount: Mount, expand: (value: string) => string, at: Place): MountValues {
  const refuse = (message: string) => invalidDockerfile(`--mount: ${message}`, at)
  const values = new Map<string, string>()
  for (const [key, written] of mount.fields) {
    if (!keys.includes(key)) throw refuse(`unknown key ${JSON.stringify(key.slice(0, 100))}${didYouMean(key, keys)}`)
    if (written === null && key !== 'readonly' && key !== 'readwrite' && key !== 'required')
      throw refuse(`${key} needs a value`)
    values.set(key, written === null ? 'true' : expand(written))
  }
  const written = (values.get('type') ?? 'bind').toLowerCase()
  if (written === 'ssh') throw refuse('type=ssh is refused: no agent is forwarded to a build')
  const type = types.find((known) => known === written)
  if (!type) throw refuse(`unknown type ${JSON.stringify(written.slice(0, 100))}${didYouMean(written, types)}`)
  for (const key of values.keys())
    if (onlyOf[key] && !onlyOf[key].includes(type)) throw refuse(`${key} is not for type=${type}`)
  const truth = (key: string): boolean | null => {
    const value = values.get(key)
    if (value === undefined) return null
    if (/^(1|t|true)$/i.test(value)) return true
    if (/^(0|f|false)$/i.test(value)) return false
    throw refuse(`${key} must be true or false`)
  }
  const number = (key: string, base: 8 | 10): number | null => {
    const value = values.get(key)
    if (value === undefined) return null
    const parsed = (base === 8 ? /^[0-7]{1,7}$/ : /^\d{1,10}$/).test(value) ? Number.parseInt(value, base) : Infinity
    if (parsed > (base === 8 ? 0o7777 : 0xffff_fffe)) throw refuse(`${key} is no ${base === 8 ? 'octal mode' : 'id'}`)
    return parsed
  }
  const text = (key: string) => values.get(key) ?? ''
  const sharing = sharings.find((known) => known === (text('sharing') || 'shared').toLowerCase())
  if (!sharing) throw refuse(`unknown sharing${didYouMean(text('sharing'), sharings)}: ${sharings.join(', ')}`)
  const readOnly = truth('readonly')
  const readWrite = truth('readwrite')
  const found: MountValues = {
    type,
    from: mount.from,
    source: text('source'),
    target: text('target'),
    readOnly: readOnly ?? (readWrite === null ? type === 'bind' || type === 'secret' : !readWrite),
    id: text('id'),
    env: values.get('env') ?? null,
    required: truth('required') ?? false,
    sharing,
    size: values.has('size') ? bytesOf(text('size'), refuse) : null,
    mode: number('mode', 8),
    uid: number('uid', 10),
    gid: number('gid', 10),
  }
  if (type === 'secret') {
    if (found.from !== null) throw refuse('a secret has no from')
    if (found.source !== '' && found.id !== '') throw refuse('a secret has either id or source')
    if (found.source === '' && found.target === '' && found.id === '') throw refuse('a secret needs an id or a target')
    if (found.env !== null && !/^[A-Za-z_][A-Za-z0-9_]{0,255}$/.test(found.env))
      throw refuse('env must be the name of a variable')
  }
  if (type === 'tmpfs' && found.from !== null) throw refuse('a tmpfs has no from')
  return found
}

const multiples: Readonly<Record<string, number>> = {
  '': 1,
  b: 1,
  k: 2 ** 10,
  m: 2 ** 20,
  g: 2 ** 30,
  t: 2 ** 40,
  p: 2 ** 50,
}

/** `64m`, `1.5GiB` (docker/go-units, RAMInBytes). */
function bytesOf(text: string, refuse: (message: string) => Error): number {
  const [, count = '', multiple = ''] = /^(\d+(?:\.\d+)?)\s?([kmgtp]?)(?:i?b)?$/i.exec(text) ?? []
  const bytes = Math.floor(Number(count) * (multiples[multiple.toLowerCase()] ?? 0))
  if (count === '' || !Number.isSafeInteger(bytes)) throw refuse(`size ${JSON.stringify(text.slice(0, 100))} is none`)
  return bytes
}

/** A line of RFC 4180: fields may be quoted to have commas in them. */
function commaFields(text: string, at: Place): string[] {
  const fields: string[] = []
  const form = /(?:"((?:[^"]|"")*)"|([^",]*))(,|$)/y
  for (let more = true; more; ) {
    const [, quoted, bare, end] = form.exec(text) ?? []
    if (end === undefined) throw invalidDockerfile('--mount: quotes are only around a whole field', at)
    const field = quoted === undefined ? (bare ?? '') : quoted.replaceAll('""', '"')
    if (field === '') throw invalidDockerfile('--mount: a field is empty', at)
    fields.push(field)
    more = end === ','
  }
  return fields
}
