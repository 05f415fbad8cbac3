import { existsSync, readdirSync, rmdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { ignore } from '@berth/contracts'
import { expectSuccess, run, unmount } from '@berth/host'
import type { Places } from './config.js'
import { endDaemon, forgetDaemon, readDaemon, stopDaemon } from './daemon.js'
import { agentProgram } from './up.js'

/** Ends everything that `up` started, sandboxes, mounts and cgroups included. Repeatable. */
export async function down(places: Places, withData: boolean): Promise<void> {
  const daemons = { runDir: places.run, logDir: places.logs }
  const agent = await readDaemon(daemons, 'agent')
  const say = (what: string) => process.stderr.write(`berth: ${what}\n`)
  if (await endDaemon(daemons, 'agent')) say('agent stopped')
  if (agent) {
    expectSuccess(
      await run(['node', agentProgram, '--clean'], {
        env: { ...agent.env, PATH: process.env.PATH ?? '' },
        timeoutMs: 300_000,
      }),
    )
    say('sandboxes, mounts and cgroups removed')
    // Not before: the record is how another `down` knows that there is something to remove, should this one be killed.
    forgetDaemon(daemons, 'agent')
  }
  for (const name of ['api', 'redis', 'postgres']) if (await stopDaemon(daemons, name)) say(`${name} stopped`)
  if (withData) {
    // Of an agent that has no record; a mounted pool could be emptied, but not removed.
    await unmount(join(places.agent, 'pool'))
    for (const name of existsSync(places.data) ? readdirSync(places.data) : [])
      rmSync(join(places.data, name), { recursive: true, force: true })
    say(`${places.data} ${removed(places.data) ? 'deleted' : 'emptied: it is a disk that is mounted there, or a link'}`)
  } else say(`data is kept in ${join(places.data)}`)
}

/** @returns whether an empty directory is gone; one where something is mounted stays, and a link to one */
function removed(directory: string): boolean {
  try {
    rmdirSync(directory)
    return true
  } catch (error) {
    ignore(error, 'EBUSY', 'ENOTDIR', 'ENOENT')
    return !existsSync(directory)
  }
}
