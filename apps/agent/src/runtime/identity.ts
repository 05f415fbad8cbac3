// identity.ts: who a command runs as. `user[:group]`, as Docker's USER takes it, is looked up in the image's own
// /etc/passwd and /etc/group. They are read from the image's layers on the host, where root reads, so nothing in them
// may lead elsewhere: no link is followed, and whatever is not a regular file counts as missing.

import { closeSync, constants, fstatSync, lstatSync, openSync, readSync } from 'node:fs'
import { ignore } from '@berth/contracts'

export interface Identity {
  readonly uid: number
  readonly gid: number
  /** Supplementary groups: those that /etc/group lists the user in, and what was asked for besides. */
  readonly groups: readonly number[]
  readonly home: string
}

/** The user or group does not exist in the image, or its number is not available to sandboxes. */
export class UserNotFound extends Error {
  constructor(message: string) {
    super(message)
    this.name = 'UserNotFound'
  }
}

export interface Accounts {
  /** Text of /etc/passwd; empty where there is none. */
  readonly passwd: string
  readonly group: string
}

/** What `accounts` say, by field. Commands of one sandbox are given the same again and again. */
function parsed(accounts: Accounts): Parsed {
  const known = parsedOf.get(accounts)
  if (known) return known
  const fresh = { users: records(accounts.passwd, 7), groups: records(accounts.group, 4) }
  parsedOf.set(accounts, fresh)
  return fresh
}

interface Parsed {
  readonly users: readonly Fields[]
  readonly groups: readonly Fields[]
}
type Fields = readonly string[]
const parsedOf = new WeakMap<Accounts, Parsed>()

/** Lines with fewer fields or without a number are skipped, as getpwent(3) does. */
const records = (text: string, fields: number): readonly Fields[] =>
  text
    .split('\n')
    .map((line) => line.split(':'))
    .filter((parts) => parts.length >= fields && /^\d{1,10}$/.test(parts[2] ?? ''))

/** The kernel takes so many (NGROUPS_MAX is more; berth-init's frame holds this many). */
const MAX_GROUPS = 256

/**
 * @param user `name`, `uid`, `name:group`, …; undefined is root
 * @param ids how many ids a sandbox has; larger ones cannot be mapped
 * @param more names or numbers of further groups
 * @throws UserNotFound when a name is unknown or a number is too large
 */
export function identify(
  user: string | undefined,
  accounts: Accounts,
  ids: number,
  more: readonly string[] = [],
): Identity {
  const [name = '0', groupName] = (user === undefined || user === '' ? '0' : user).split(':')
  const { users, groups: known } = parsed(accounts)
  const account = users.find((parts) => parts[0] === name || parts[2] === name)
  const uid = numberOf(account?.[2] ?? name, `user ${JSON.stringify(name)}`, ids)
  const gid = groupName === undefined ? Number(account?.[3] ?? 0) : groupOf(groupName, known, ids)
  if (gid >= ids) throw new UserNotFound(`group ${gid} of user ${JSON.stringify(name)} is outside of 0..${ids - 1}`)
  const asked = more.map((group) => groupOf(group, known, ids))
  const groups = [...new Set([...asked, ...memberships(account?.[0], known, ids)])].slice(0, MAX_GROUPS)
  return { uid, gid, groups, home: account?.[5] || '/' }
}

/** The shell that passwd gives the user of `user[:group]`; /bin/sh where it gives none. */
export function shellOf(user: string | undefined, { passwd }: Pick<Accounts, 'passwd'>): string {
  const [name = '0'] = (user === undefined || user === '' ? '0' : user).split(':')
  const shell = records(passwd, 7).find((parts) => parts[0] === name || parts[2] === name)?.[6] ?? ''
  return shell.startsWith('/') && !/\/(nologin|false)$/.test(shell) ? shell : '/bin/sh'
}

/** Names of users by number; of several that share one, the first. @param passwd text of /etc/passwd */
export function userNames(passwd: string): ReadonlyMap<number, string> {
  const names = new Map<number, string>()
  for (const [name, , uid] of records(passwd, 7)) if (name && !names.has(Number(uid))) names.set(Number(uid), name)
  return names
}

function groupOf(name: string, groups: readonly Fields[], ids: number): number {
  const found = groups.find((parts) => parts[0] === name || parts[2] === name)
  return numberOf(found?.[2] ?? name, `group ${JSON.stringify(name)}`, ids)
}

function numberOf(text: string, what: string, ids: number): number {
  if (!/^\d{1,10}$/.test(text)) throw new UserNotFound(`${what} is not known in the image`)
  if (Number(text) >= ids) throw new UserNotFound(`${what} is outside of 0..${ids - 1}, the ids of a sandbox`)
  return Number(text)
}

function memberships(name: string | undefined, groups: readonly Fields[], ids: number): readonly number[] {
  if (name === undefined) return []
  const gids = groups.filter((parts) => (parts[3] ?? '').split(',').includes(name)).map((parts) => Number(parts[2]))
  return gids.filter((gid) => gid < ids)
}

/** Far above what accounts need; every lookup goes through all of it. */
const MAX_FILE_BYTES = 256 * 1024

/**
 * /etc/passwd and /etc/group as a sandbox sees them. Synchronous: a dozen small calls, 30 µs.
 * @param layers directories of unpacked layers, topmost first; a sandbox that runs has its writable one above them
 * @throws UserNotFound when a file is too large to be one of accounts
 */
export function readAccounts(layers: readonly string[]): Accounts {
  return { passwd: readFromLayers(layers, 'passwd'), group: readFromLayers(layers, 'group') }
}

/**
 * The same for a sandbox that runs, again and again: files are read only when the writable layer has others than last
 * time. Two calls that find nothing, 5 us, where reading takes 110.
 * @param layers unpacked layers, which never change, topmost first
 */
export function accountsReader(writable: string, layers: readonly string[]): () => Accounts {
  let known: { readonly stamp: string; readonly accounts: Accounts } | undefined
  return () => {
    const stamp = `${stampOf(`${writable}/etc/passwd`)} ${stampOf(`${writable}/etc/group`)}`
    if (known?.stamp !== stamp) known = { stamp, accounts: readAccounts([writable, ...layers]) }
    return known.accounts
  }
}

/** Follows whatever the sandbox has made of the way there: it says whether something changed, and nothing else. */
function stampOf(path: string): string {
  try {
    const found = lstatSync(path, { bigint: true, throwIfNoEntry: false })
    return found ? `${found.ino}:${found.ctimeNs}:${found.size}` : '-'
  } catch (error) {
    ignore(error, 'ELOOP', 'ENOTDIR', 'EACCES')
    return '?'
  }
}

/** Looks through the layers as the overlay would; an opaque directory is no concern, what it hides is only older. */
function readFromLayers(layers: readonly string[], name: string): string {
  for (const layer of layers) {
    const found = readBelow(layer, name)
    if (found !== undefined) return found
  }
  return ''
}

/**
 * Each part is opened from the directory before it and none may be a link, so nothing leads out of the layer even while
 * its sandbox moves things about.
 * @returns undefined where there is nothing of that name; empty where it is no file
 */
function readBelow(layer: string, name: string): string | undefined {
  const etc = openPart(`${layer}/etc`, constants.O_DIRECTORY)
  if (typeof etc !== 'number') return etc
  try {
    const file = openPart(`/proc/self/fd/${etc}/${name}`, constants.O_NONBLOCK)
    if (typeof file !== 'number') return file
    try {
      return readSmall(file, name)
    } finally {
      closeSync(file)
    }
  } finally {
    closeSync(etc)
  }
}

function openPart(path: string, flags: number): number | '' | undefined {
  const found = lstatSync(path, { throwIfNoEntry: false })
  if (!found) return undefined
  if (!found.isFile() && !found.isDirectory()) return ''
  try {
    return openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | flags)
  } catch (error) {
    // It has just become something else, or has gone.
    ignore(error, 'ENOENT', 'ENOTDIR', 'ELOOP', 'ENXIO')
    return ''
  }
}

function readSmall(file: number, name: string): string {
  const found = fstatSync(file)
  if (!found.isFile()) return ''
  if (found.size > MAX_FILE_BYTES)
    throw new UserNotFound(`no user is looked up in a file of ${found.size} bytes: /etc/${name}`)
  const bytes = Buffer.alloc(found.size)
  return bytes.toString('utf8', 0, readSync(file, bytes, 0, bytes.length, 0))
}
