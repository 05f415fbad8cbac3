// An agent that kills itself with SIGKILL at a named point: `node crash.fixture.js DIRECTORY CGROUP_PARENT POINT`, what it
// is to do on stdin: the command of a job, or a script for sandboxes that stay. A point is the event of a log line, with
// its step or phase where it has one: `step.acquired layer`. It says `ready`, and `done` when the script is over.

import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { ApplySandbox, RunAttempt, SandboxState } from '@berth/contracts'
import { spawnThrough } from '@berth/host'
import { createLogger } from '@berth/telemetry'
import { z } from 'zod'
import { TestNode } from './node.fixture.js'

const Line = z.object({ event: z.string(), step: z.string().optional(), phase: z.string().optional() })
/** Each command is applied when the sandboxes of those before are in the state that they name. */
const Script = z.array(z.object({ command: ApplySandbox, until: SandboxState.optional() }))

const [, , directory = '', cgroupParent = '', point = ''] = process.argv
const task = z.union([RunAttempt, Script]).parse(JSON.parse(await text(process.stdin)))

const destination = {
  write(line: string): void {
    const { event, step, phase } = Line.parse(JSON.parse(line))
    const where = step ?? (event === 'sandbox.reached' ? phase : undefined)
    if ([event, ...(where === undefined ? [] : [where])].join(' ') === point) process.kill(process.pid, 'SIGKILL')
  },
}
const log = createLogger({ name: 'agent', level: 'debug', destination })
await spawnThrough(join(import.meta.dirname, '../../../../libs/init/build/berth-run')) // as the agent does
const node = await TestNode.open({ directory, cgroupParent, log })
process.stdout.write('ready\n')
if (!Array.isArray(task)) await node.supervisor.run(task)
else {
  for (const { command, until } of task) {
    await node.residents.apply(command)
    const { sandboxId: id, generation } = command
    if (until) await node.reported(id, (report) => report.state === until && report.generation >= generation)
  }
  process.stdout.write('done\n')
}
