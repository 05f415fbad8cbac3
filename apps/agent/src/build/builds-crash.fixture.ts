// A node that builds what it reads on stdin, and kills itself with SIGKILL at a named point:
// `node builds-crash.fixture.js DIRECTORY CGROUP_PARENT POINT`. A point is the event of a log line, with its step where it has
// one: `step.acquired layer`.

import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { TenantId } from '@berth/contracts'
import { spawnThrough } from '@berth/host'
import { createLogger } from '@berth/telemetry'
import { z } from 'zod'
import { TestBuilder } from './builds.fixture.js'

const Line = z.object({ event: z.string(), step: z.string().optional() })
const Task = z.object({ tenantId: TenantId, dockerfile: z.string() })

const [, , directory = '', cgroupParent = '', point = ''] = process.argv
const { tenantId, dockerfile } = Task.parse(JSON.parse(await text(process.stdin)))

const destination = {
  write(line: string): void {
    const { event, step } = Line.parse(JSON.parse(line))
    if ([event, ...(step === undefined ? [] : [step])].join(' ') === point) process.kill(process.pid, 'SIGKILL')
  },
}
const log = createLogger({ name: 'agent', level: 'debug', destination })
await spawnThrough(join(import.meta.dirname, '../../../../libs/init/build/berth-run')) // as the agent does
const builder = await TestBuilder.open({ directory, cgroupParent }, { log })
await builder.build(dockerfile, { tenantId })
