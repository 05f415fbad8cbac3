import { spawn } from 'node:child_process'
import { Fault } from '@berth/contracts'
import type { Places } from './up/config.js'
import { readDaemon } from './up/daemon.js'
import { agentProgram } from './up/up.js'

/**
 * Checks the images of this machine's node, and prints what is wrong with them; beside an agent that runs too.
 * @returns exit code: 0 nothing is wrong, 1 something is, 125 it could not be checked
 */
export async function checkImages(places: Places): Promise<number> {
  const agent = await readDaemon({ runDir: places.run, logDir: places.logs }, 'agent')
  if (!agent) throw new Fault('check images', { cause: 'no agent was started here; "./berth up" does' })
  const child = spawn(process.execPath, [agentProgram, '--fsck'], {
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...agent.env, PATH: process.env.PATH ?? '' },
  })
  return new Promise((done, failed) => {
    child.once('error', failed)
    child.once('close', (code) => done(code === 0 || code === 1 ? code : 125))
  })
}
