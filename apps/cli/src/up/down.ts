import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { expectSuccess, run } from '@berth/host'
import type { Places } from './config.js'
import { readDaemon, stopDaemon } from './daemon.js'
import { agentProgram } from './up.js'

/** Ends everything that `up` started, sandboxes, mounts and cgroups included. Repeatable. */
export async function down(places: Places, withData: boolean): Promise<void> {
  const daemons = { runDir: places.run, logDir: places.logs }
  const agent = await readDaemon(daemons, 'agent')
  const say = (what: string) => process.stderr.write(`berth: ${what}\n`)
  if (await stopDaemon(daemons, 'agent')) say('agent stopped')
  if (agent) {
    expectSuccess(
      await run(['node', agentProgram, '--clean'], {
        env: { ...agent.env, PATH: process.env.PATH ?? '' },
        timeoutMs: 300_000,
      }),
    )
    say('sandboxes, mounts and cgroups removed')
  }
  for (const name of ['api', 'redis', 'postgres']) if (await stopDaemon(daemons, name)) say(`${name} stopped`)
  if (withData) {
    rmSync(places.data, { recursive: true, force: true })
    say(`${places.data} deleted`)
  } else say(`data is kept in ${join(places.data)}`)
}
