// An agent that kills itself with SIGKILL at a named point: `node crash.fixture.js DIRECTORY CGROUP_PARENT POINT`, the
// command to run on stdin. A point is the event of a log line, with its step where it has one: `step.acquired layer`.

import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { RunAttempt } from '@berth/contracts'
import { spawnThrough } from '@berth/host'
import { createLogger } from '@berth/telemetry'
import { z } from 'zod'
import { TestNode } from './node.fixture.js'

const Line = z.object({ event: z.string(), step: z.string().optional() })

const [, , directory = '', cgroupParent = '', point = ''] = process.argv
const command = RunAttempt.parse(JSON.parse(await text(process.stdin)))

const destination = {
  write(line: string): void {
    const { event, step } = Line.parse(JSON.parse(line))
    if ([event, ...(step === undefined ? [] : [step])].join(' ') === point) process.kill(process.pid, 'SIGKILL')
  },
}
const log = createLogger({ name: 'agent', level: 'debug', destination })
await spawnThrough(join(import.meta.dirname, '../../../../libs/init/build/berth-run')) // as the agent does
const node = await TestNode.open({ directory, cgroupParent, log })
process.stdout.write('ready\n')
await node.supervisor.run(command)
