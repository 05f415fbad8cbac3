// registries.ts: `./berth login` and `./berth logout`: how the tenant is known to registries. The API keeps the password,
// sealed; nothing is written on this machine.
import { text } from 'node:stream/consumers'
import { deleteRegistry, Fault, listRegistries, putRegistry } from '@berth/contracts'
import { print, say, withClient } from './images.js'
import type { Places } from './up/config.js'

/** Docker's name of its own, where none is given. */
export const DOCKER_HUB = 'docker.io'

/**
 * Sets the login for a registry, with the secret from standard input: what is in argv, everybody on the machine sees.
 * @param secret what it is
 */
export async function login(
  places: Places,
  registry: string,
  username: string,
  secret: 'password' | 'identityToken',
): Promise<void> {
  if (process.stdin.isTTY)
    throw new Fault('read the password', { cause: 'pass it on standard input, e.g. `berth login … <password.txt`' })
  const given = (await text(process.stdin)).replace(/\r?\n$/, '')
  if (given === '') throw new Fault('read the password', { cause: 'standard input is empty' })
  const body = { username, [secret]: given }
  await withClient(places, (client) => client.call(putRegistry, { params: { registry }, body }))
  say(`login for ${registry} is set; the first pull or push tells whether it is right`)
}

export async function logout(places: Places, registry: string): Promise<void> {
  await withClient(places, (client) => client.call(deleteRegistry, { params: { registry } }))
}

/** Prints the registries that there is a login for, with its name. */
export function logins(places: Places): Promise<void> {
  return withClient(places, async (client) => {
    const { items } = await client.call(listRegistries, {})
    for (const { registry, username } of items) print(`${registry}\t${username}`)
  })
}
