// files.plan.ts: an operation on files of a sandbox → the process that carries it out, and what went wrong with it → the
// failure that is told. The other end is berth-files; libs/init/README.md has its arguments and its failures.

import { type ErrorCode, Failure, InvalidRequest, type SandboxSpec } from '@berth/contracts'
import { FILES_PATH } from '@berth/oci'
import { type Accounts, type Identity, identify, UserNotFound } from '../runtime/identity.js'
import { type SpawnRequest, spawnFlags } from '../runtime/init-wire.js'
import type { MainEnd } from '../runtime/processes.js'
import { type ImageConfig, processRequest, sandboxConfinement } from '../sandbox/process.plan.js'

/** Bytes wanted of a file: from `first` to `last`, both included; without `first` the last so many. */
export interface ByteRange {
  readonly first?: number | undefined
  readonly last?: number | undefined
}

/** Paths are absolute; users and groups are names or numbers. */
export type FileOperation = {
  /** With whose rights. Default: those of the sandbox's user. */
  readonly user?: string | undefined
  readonly path: string
} & (
  | { readonly kind: 'stat'; readonly follow: boolean }
  | { readonly kind: 'list' }
  | { readonly kind: 'read'; readonly range: ByteRange }
  | {
      readonly kind: 'write'
      readonly mode: number | undefined
      readonly owner: string | undefined
      readonly parents: boolean
      readonly ifExists: 'replace' | 'fail'
    }
  | { readonly kind: 'mkdir'; readonly mode: number | undefined; readonly parents: boolean }
  | { readonly kind: 'rename'; readonly to: string; readonly replace: boolean }
  | { readonly kind: 'remove'; readonly recursive: boolean }
  | { readonly kind: 'watch'; readonly recursive: boolean }
  | { readonly kind: 'pack' }
  | {
      readonly kind: 'unpack'
      /** Whose the files are. */
      readonly owner: 'user' | 'archive'
      /** Of a user's files, instead of the user's own. */
      readonly group: string | undefined
    }
)

/** A user and a group by number. */
type Ids = Pick<Identity, 'uid' | 'gid'>

/** The sandbox as far as an operation depends on it. */
export interface FilesPlace {
  readonly spec: SandboxSpec
  readonly image: Pick<ImageConfig, 'user'>
  /** How many ids it has. */
  readonly ids: number
}

/**
 * berth-files as a user of the sandbox, confined as every other process of it.
 * @throws InvalidRequest for a user or group that the sandbox does not have
 */
export function filesRequest(operation: FileOperation, place: FilesPlace, accounts: Accounts): SpawnRequest {
  const named = (field: string, user: string | undefined, more?: readonly string[]) => {
    try {
      return identify(user, accounts, place.ids, more)
    } catch (error) {
      if (!(error instanceof UserNotFound)) throw error
      throw new InvalidRequest([{ field, message: error.message }])
    }
  }
  const who = named('user', operation.user ?? place.spec.user ?? place.image.user, place.spec.groups)
  const request = processRequest({
    command: [FILES_PATH, ...argumentsOf(operation, ownerOf(operation, who, named))],
    env: [],
    workingDir: '/',
    who,
    confinement: sandboxConfinement(place.spec),
    flags: takesInput(operation) ? spawnFlags.stdin : 0,
    timeoutMs: 0,
    graceMs: 0,
  })
  return { ...request, ringBytes: RING_BYTES }
}

/** Whose what is made should be, where that is not simply the user. */
function ownerOf(
  operation: FileOperation,
  who: Identity,
  named: (field: string, user: string) => Ids,
): Ids | undefined {
  if (operation.kind === 'write' && operation.owner !== undefined) return named('owner', operation.owner)
  if (operation.kind === 'unpack' && operation.owner === 'user' && operation.group !== undefined)
    return named('group', `${who.uid}:${operation.group}`)
  return undefined
}

/** Arguments of berth-files. Nothing is optional there: `-` stands for what is not given. */
export function argumentsOf(operation: FileOperation, owner: Ids | undefined): readonly string[] {
  const { kind, path } = operation
  const ids = [given(owner?.uid), given(owner?.gid)]
  switch (operation.kind) {
    case 'stat':
      return [kind, path, operation.follow ? 'follow' : 'nofollow']
    case 'list':
    case 'pack':
      return [kind, path]
    case 'read':
      return [kind, path, given(operation.range.first), given(operation.range.last)]
    case 'write':
      return [kind, path, given(operation.mode, 8), ...ids, operation.parents ? 'parents' : '-', operation.ifExists]
    case 'mkdir':
      return [kind, path, given(operation.mode, 8), operation.parents ? 'parents' : '-']
    case 'rename':
      return [kind, path, operation.to, operation.replace ? 'replace' : 'fail']
    case 'remove':
    case 'watch':
      return [kind, path, operation.recursive ? 'recursive' : '-']
    case 'unpack':
      return [kind, path, operation.owner, ...ids]
  }
}

const given = (value: number | undefined, base = 10) => value?.toString(base) ?? '-'

/** Bytes of output that may be on their way. */
const RING_BYTES = 256 * 1024

const takesInput = ({ kind }: FileOperation) => kind === 'write' || kind === 'unpack'

/**
 * `Range` of a request (RFC 9110, 14.2), where it is one range of bytes; several, or what makes no sense, are ignored,
 * as a server may.
 */
export function rangeOf(header: string | undefined): ByteRange | undefined {
  const [, first = '', last = ''] = /^bytes=(\d{0,15})-(\d{0,15})$/i.exec(header?.replaceAll(/\s/g, '') ?? '') ?? []
  if (first === '' && last === '') return undefined
  if (first === '') return { last: Number(last) }
  if (last === '') return { first: Number(first) }
  return Number(first) <= Number(last) ? { first: Number(first), last: Number(last) } : undefined
}

/** What the sandbox answered is not what berth-files answers: somebody in it has replaced or disturbed that. */
export const nonsense = () =>
  new Failure('unavailable', 'what should carry out file operations in the sandbox answered nonsense')

/**
 * What became of an operation, undefined where it succeeded.
 * @param stderr what it wrote there, as it came
 */
export function failureOf(end: MainEnd, stderr: string, spec: SandboxSpec): Failure | undefined {
  switch (end.kind) {
    case 'gone':
      return new Failure('wrong_state', 'the sandbox ended, and the operation with it')
    case 'failed':
      return notStarted(end.stage, end.errno, spec)
    case 'exited': {
      const { exitCode, signal } = end.exit
      if (exitCode === 0) return undefined
      if (signal !== undefined)
        return new Failure('unavailable', `the operation was killed in the sandbox by signal ${signal}`)
      return parseFailure(stderr) ?? nonsense()
    }
  }
}

function notStarted(stage: string, code: number, spec: SandboxSpec): Failure {
  if (stage === 'fork' && code === EAGAIN) {
    const { pids } = spec.limits
    const why = `a file operation needs a process, and the sandbox has all of its ${pids}`
    return new Failure('unavailable', why, { limit: 'pids', pids })
  }
  if (stage === 'fork' && code === ENFILE)
    return new Failure('unavailable', 'too many processes are run in the sandbox at the same time')
  if (stage === 'fork' && code === ESHUTDOWN) return new Failure('wrong_state', 'the sandbox is ending')
  return new Failure('unavailable', `the file operation could not be started in the sandbox: errno ${code} (${stage})`)
}

const EAGAIN = 11
const ENFILE = 23
const ESHUTDOWN = 108

/** errno(3) as on every architecture that is supported → its name, the code that is told, and words for it. */
const errnos: Readonly<Record<number, readonly [name: string, code: ErrorCode, text: string]>> = {
  2: ['ENOENT', 'path_not_found', 'no such file or directory'],
  20: ['ENOTDIR', 'path_not_directory', 'not a directory'],
  21: ['EISDIR', 'path_is_directory', 'is a directory'],
  17: ['EEXIST', 'path_exists', 'exists'],
  39: ['ENOTEMPTY', 'directory_not_empty', 'the directory is not empty'],
  40: ['ELOOP', 'path_loop', 'too many links'],
  13: ['EACCES', 'path_denied', 'permission denied'],
  1: ['EPERM', 'path_denied', 'operation not permitted'],
  30: ['EROFS', 'path_denied', 'the file system is read-only'],
  16: ['EBUSY', 'path_denied', 'is in use: the root, or something is mounted there'],
  26: ['ETXTBSY', 'path_denied', 'is being executed'],
  22: ['EINVAL', 'path_denied', 'the file system does not take this'],
  18: ['EXDEV', 'path_denied', 'cannot be moved to another file system, or out of the layers of the image'],
  36: ['ENAMETOOLONG', 'path_denied', 'the name is too long'],
  31: ['EMLINK', 'path_denied', 'too many links to it'],
  95: ['EOPNOTSUPP', 'path_denied', 'the file system does not take this'],
  28: ['ENOSPC', 'disk_full', 'the disk limit is reached'],
  122: ['EDQUOT', 'disk_full', 'the disk limit is reached'],
  27: ['EFBIG', 'disk_full', 'larger than a file may be'],
}

/** `WORD NUMBER PATH TEXT`; undefined for anything else. */
export function parseFailure(stderr: string): Failure | undefined {
  const [, word, digits, escaped = '', text = ''] = /^([a-z]+) (\d{1,15}) ([!-~]*) ?([ -~]*)\n$/.exec(stderr) ?? []
  const number = Number(digits)
  const path = unescaped(escaped)
  switch (word) {
    case 'path':
      return ofErrno(number, path)
    case 'kind':
      return new Failure('path_not_file', `${path}: not a regular file`, { path })
    case 'range':
      return new Failure('range_not_satisfiable', `${path}: it has ${number} bytes`, { path, sizeBytes: number })
    case 'short':
      return new Failure('unavailable', `${path}: became shorter while it was read`, { path })
    case 'archive':
      return new Failure('archive_invalid', path === '' ? text : `${path}: ${text}`, { path })
    case 'watches': {
      const most = number > 0 ? `${number} directories` : 'what its user may have watched'
      return new Failure('watch_limit', `${path}: at most ${most}`, { path })
    }
    default:
      return undefined
  }
}

function ofErrno(number: number, path: string): Failure {
  const [name, code, text] = errnos[number] ?? [`errno ${number}`, 'unavailable', 'failed']
  return new Failure(code, `${path === '' ? 'the operation' : path}: ${text} (${name})`, { path })
}

/** Bytes that are no UTF-8 come out as U+FFFD. */
function unescaped(path: string): string {
  const bytes = path.replaceAll(/%([0-9A-F]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))
  return Buffer.from(bytes, 'latin1').toString()
}
