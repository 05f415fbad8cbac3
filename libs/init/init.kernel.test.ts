import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { afterAll, beforeAll, expect, test } from '@jest/globals'
import {
  type Agent,
  ALL_CAPS,
  errorOf,
  exitOf,
  failureOf,
  frame,
  holdOnly,
  MAIN,
  NO_NEW_PRIVS,
  Sandbox,
  STDERR_TO_STDOUT,
  STDIN,
  spawnPayload,
  TTY,
  u32,
  u64,
} from './test/agent.js'

const sh = (script: string) => ['/bin/sh', '-c', script]
holdOnly(BigInt(`0x${/CapEff:\s*(\w+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'}`))

test('runs a program', async () => {
  await using sandbox = await Sandbox.start()
  const agent = await sandbox.connect()
  expect(await agent.run(1, { argv: sh('echo out; echo err >&2; exit 3') })).toMatchObject({
    kind: 'exited',
    code: 3,
    cause: 0,
  })
  expect([agent.text(1), agent.text(1, 2)]).toEqual(['out\n', 'err\n'])
})
