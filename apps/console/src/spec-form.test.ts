import { createBatch, createJob, createSandbox, SandboxLimits, SandboxSpec, updateSandbox } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { commandLine } from './format.js'
import {
  batchBodies,
  FormProblem,
  jobBody,
  limitsBody,
  optionalLimits,
  pairsOf,
  sandboxBody,
  splitWords,
} from './spec-form.js'

test.each<[string, readonly string[]]>([
  ['', []],
  ['  ls  -l\t/tmp\n', ['ls', '-l', '/tmp']],
  [`echo 'a b' "c d" e\\ f`, ['echo', 'a b', 'c d', 'e f']],
  [`a'b'"c"d`, ['abcd']],
  [`'' ""`, ['', '']],
  [`"say \\"hi\\" \\n" 'it\\s'`, ['say "hi" \\n', 'it\\s']],
])('%j splits into %j', (text, words) => expect(splitWords(text)).toEqual(words))

test.each(["echo 'a", 'echo "a', 'echo \\'])('%j is refused', (text) => {
  expect(() => splitWords(text)).toThrow(FormProblem)
})

test('what is shown as a command line splits into the same words', () => {
  fc.assert(
    fc.property(fc.array(fc.string({ unit: 'grapheme' })), (argv) =>
      expect(splitWords(commandLine(argv))).toEqual(argv),
    ),
  )
})

test('pairs are lines; values keep their spaces and equals signs', () => {
  expect(pairsOf('A=1\r\n\n# no\n B = x=y \n', 'env')).toEqual({ A: '1', B: ' x=y ' })
  expect(() => pairsOf('A=1\nB', 'env')).toThrow('“B” is not NAME=value')
  expect(() => pairsOf('=x', 'labels')).toThrow(FormProblem)
})

test('an empty form asks for a sandbox with all defaults', () => {
  const body = sandboxBody({ name: '', image: '', command: '', memory: '', cpus: '', env: '', idleTimeout: '' })
  expect(body).toEqual({ runImage: false, env: {}, labels: {}, limits: {}, clocks: {} })
  expect(createSandbox.body.safeParse(body).success).toBe(true)
})

test('a full form asks for all that was typed', () => {
  const body = sandboxBody({
    ...{ name: 'web', image: 'python', run: 'words', command: 'python3 -m http.server', user: 'nobody' },
    ...{ memory: '256m', cpus: '0.5', disk: '2g', pids: '64', env: 'A=b c', labels: 'team=x' },
    ...{ maxLifetime: '1h', idleTimeout: '10m', pausedFor: '', deleteAfter: '1d', restart: 'on-failure' },
  })
  expect(SandboxSpec.parse(createSandbox.body.parse(body))).toMatchObject({
    name: 'web',
    command: ['python3', '-m', 'http.server'],
    limits: { memoryBytes: 268_435_456, cpus: 0.5, diskBytes: 2_147_483_648, pids: 64 },
    env: { A: 'b c' },
    clocks: { maxLifetimeMs: 3_600_000, idleTimeoutMs: 600_000, pausedForMs: null, deleteAfterMs: 86_400_000 },
    restart: { policy: 'on-failure' },
  })
})

test('a form of limits sends what was typed; emptied, a limit that need not be there is unset', () => {
  const now = SandboxLimits.parse({ cpuset: '0-1', cpuShares: 512, memoryReservationBytes: '100m' })
  const untouched = { memory: '', cpus: '', disk: '', pids: '', ...optionalLimits(now) }
  expect(untouched).toMatchObject({ reservation: '100 MiB', cpuset: '0-1', cpuShares: '512', ioWeight: '' })
  expect(limitsBody(untouched, now)).toEqual({ limits: {} })
  const typed = { ...untouched, pids: '9', reservation: ' ', cpuset: '', cpuShares: '700', ioWeight: '20' }
  expect(updateSandbox.body.parse(limitsBody(typed, now))).toEqual({
    limits: { pids: 9, memoryReservationBytes: null, cpuset: null, cpuShares: 700, ioWeight: 20 },
  })
  for (const wrong of [{ cpuShares: 'lots' }, { cpus: 'all' }, { ioWeight: 'Infinity' }])
    expect(() => limitsBody({ ...untouched, ...wrong }, now)).toThrow('must be a number')
})

test('a job is a script unless words are asked for', () => {
  const body = jobBody({ image: 'debian', command: 'echo $HOME | wc', attempts: '3', timeout: '5m' })
  expect(createJob.body.parse(body)).toMatchObject({
    command: ['sh', '-c', 'echo $HOME | wc'],
    retry: { maxAttempts: 3 },
    timeoutMs: 300_000,
  })
})

test('a batch is a job a line', () => {
  const jobs = batchBodies({ name: 'b', command: 'true\n\nfalse\n', run: 'words', memory: '64m' })
  expect(jobs).toMatchObject([
    { name: 'b-1', command: ['true'], limits: { memoryBytes: '64m' } },
    { name: 'b-2', command: ['false'] },
  ])
  expect(createBatch.body.safeParse({ jobs }).success).toBe(true)
  expect(() => batchBodies({ command: '\n' })).toThrow(FormProblem)
})
