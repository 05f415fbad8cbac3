import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { SandboxSpec } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { Processes } from '../runtime/processes.js'
import { startContainer } from './container.fixture.js'
import { execDriverContract } from './exec-driver.contract.js'
import { InitDriver } from './exec-driver.js'
import { OciDriver } from './oci-driver.js'

const spec = SandboxSpec.parse({})

execDriverContract(
  'init',
  async () => {
    const container = await startContainer('auto', spec)
    const processes = Processes.open({ socket: container.socket, log: container.log, timeoutMs: 10_000 })
    return {
      driver: new InitDriver(processes),
      async [Symbol.asyncDispose]() {
        processes.close()
        await container[Symbol.asyncDispose]()
      },
    }
  },
  { signals: true, heldOutput: true },
)

execDriverContract(
  'oci',
  async () => {
    const container = await startContainer('runc', spec)
    const { runtime, id, group, log } = container
    return {
      driver: OciDriver.open({ runtime, id, group, log, directory: join(container.directory, 'execs') }),
      [Symbol.asyncDispose]: () => container[Symbol.asyncDispose](),
    }
  },
  { signals: false, heldOutput: false },
)

test('what the runtime was asked to start by an agent that is no more is ended by the next', async () => {
  await using container = await startContainer('runc', spec)
  const { runtime, id, group, log } = container
  const directory = join(container.directory, 'execs')
  const sink = { resume: () => undefined, append: () => undefined, settled: () => Promise.resolve() }
  const before = OciDriver.open({ runtime, id, group, log, directory })
  const spawn = { ...idle, argv: ['sleep', '1000'] }
  const left = before.start(before.allocate(), spawn, { stdout: sink, stderr: sink })
  await left.started
  // Not of the sandbox, whatever a file says.
  writeFileSync(join(directory, '99.pid'), String(process.pid))
  OciDriver.open({ runtime, id, group, log, directory })
  expect(await left.ended).toMatchObject({ exit: { exitCode: 137 } })
})

const idle = {
  flags: 0,
  uid: 0,
  gid: 0,
  groups: [],
  capabilities: { bounding: 0n, effective: 0n, inheritable: 0n, ambient: 0n },
  limits: [],
  timeoutMs: 0,
  graceMs: 0,
  oomScoreAdj: 0,
  rows: 0,
  columns: 0,
  ringBytes: 0,
  cwd: '/',
  env: ['PATH=/bin'],
}
