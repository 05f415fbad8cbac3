// identity.ts: who a command runs as. `user[:group]`, as Docker's USER takes it, is looked up in the image's own
// /etc/passwd and /etc/group. They are read from the image's layers on the host, where root reads, so nothing in them
// may lead elsewhere: no link is followed, and whatever is not a regular file counts as missing.

import { constants, lstatSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { Fault } from '@berth/contracts'

export interface Identity {
  readonly uid: number
  readonly gid: number
  /** Supplementary groups, as /etc/group lists the user in them. */
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

/** Lines with fewer fields or without a number are skipped, as getpwent(3) does. */
const records = (text: string, fields: number) =>
  text
    .split('\n')
    .map((line) => line.split(':'))
    .filter((parts) => parts.length >= fields && /^\d{1,10}$/.test(parts[2] ?? ''))

/** The kernel takes so many (NGROUPS_MAX is more; berth-init's frame holds this many). */
const MAX_GROUPS = 256

/**
 * @param user `name`, `uid`, `name:group`, …; undefined is root
 * @param ids how many ids a sandbox has; larger ones cannot be mapped
 * @throws UserNotFound when a name is unknown or a number is too large
 */
export function identify(user: string | undefined, accounts: Accounts, ids: number): Identity {
  const [name = '0', groupName] = (user === undefined || user === '' ? '0' : user).split(':')
  const account = records(accounts.passwd, 7).find((parts) => parts[0] === name || parts[2] === name)
  const uid = numberOf(account?.[2] ?? name, `user ${JSON.stringify(name)}`, ids)
  const gid = groupName === undefined ? Number(account?.[3] ?? 0) : groupOf(groupName, accounts.group, ids)
  if (gid >= ids) throw new UserNotFound(`group ${gid} of user ${JSON.stringify(name)} is outside of 0..${ids - 1}`)
  return { uid, gid, groups: memberships(account?.[0], accounts.group, ids), home: account?.[5] || '/' }
}

function groupOf(name: string, group: string, ids: number): number {
  const found = records(group, 4).find((parts) => parts[0] === name || parts[2] === name)
  return numberOf(found?.[2] ?? name, `group ${JSON.stringify(name)}`, ids)
}

function numberOf(text: string, what: string, ids: number): number {
  if (!/^\d{1,10}$/.test(text)) throw new UserNotFound(`${what} is not known in the image`)
  if (Number(text) >= ids) throw new UserNotFound(`${what} is outside of 0..${ids - 1}, the ids of a sandbox`)
  return Number(text)
}

function memberships(name: string | undefined, group: string, ids: number): readonly number[] {
  if (name === undefined) return []
  const gids = records(group, 4)
    .filter((parts) => (parts[3] ?? '').split(',').includes(name))
    .map((parts) => Number(parts[2]))
  return [...new Set(gids)].filter((gid) => gid < ids).slice(0, MAX_GROUPS)
}

const MAX_FILE_BYTES = 1024 * 1024

/**
 * /etc/passwd and /etc/group as a sandbox on these layers sees them at its start.
 * @param layers directories of unpacked layers, topmost first
 */
export async function readAccounts(layers: readonly string[]): Promise<Accounts> {
  const [passwd, group] = await Promise.all([readFromLayers(layers, 'passwd'), readFromLayers(layers, 'group')])
  return { passwd, group }
}

/** Looks through the layers as the overlay would; an opaque directory is no concern, what it hides is only older. */
async function readFromLayers(layers: readonly string[], name: string): Promise<string> {
  for (const layer of layers) {
    const directory = lstatSync(`${layer}/etc`, { throwIfNoEntry: false })
    if (!directory) continue
    if (!directory.isDirectory()) return ''
    const file = lstatSync(`${layer}/etc/${name}`, { throwIfNoEntry: false })
    if (file) return file.isFile() ? readSmall(`${layer}/etc/${name}`) : ''
  }
  return ''
}

async function readSmall(path: string): Promise<string> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW)
  try {
    const { size } = await file.stat()
    if (size > MAX_FILE_BYTES)
      throw new Fault(`read ${path}`, { cause: new Error(`larger than ${MAX_FILE_BYTES} bytes`) })
    return await file.readFile('utf8')
  } finally {
    await file.close()
  }
}
