import { join } from 'node:path'
import { Readable } from 'node:stream'
import { createLogger } from '@berth/telemetry'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { Sandbox } from '../../../../libs/init/test/agent.js'
import { type SpawnRequest, spawnFlags } from './init-wire.js'
import { type OutputSink, Processes, type SandboxProcess } from './processes.js'

const log = createLogger({ name: 'test', level: 'silent' })
let sandbox: Sandbox
let processes: Processes

beforeEach(async () => {
  sandbox = await Sandbox.start()
  ;(await sandbox.connect()).drop() // the socket is there
  processes = open()
  await processes.known()
})
afterEach(async () => {
  processes.close()
  await sandbox[Symbol.asyncDispose]()
})

const open = () => Processes.open({ socket: join(sandbox.path), log, timeoutMs: 10_000 })

/** Everything that came; survives the agent like a file. */
class Kept implements OutputSink {
  readonly #parts: Buffer[] = []
  #length = 0

  get text(): string {
    return Buffer.concat(this.#parts).toString()
  }
  readonly resume = () => undefined
  append(offset: number, bytes: Buffer, stored: (offset: number) => void): void {
    const fresh = bytes.subarray(Math.max(0, this.#length - offset))
    this.#parts.push(Buffer.from(fresh))
    this.#length += fresh.length
    stored(this.#length)
  }
  settled = () => Promise.resolve()
}

const sh = (script: string, more: Partial<SpawnRequest> = {}): SpawnRequest => ({
  flags: spawnFlags.stdin,
  uid: 0,
  gid: 0,
  groups: [],
  capabilities: { bounding: 0n, effective: 0n, inheritable: 0n, ambient: 0n },
  limits: [],
  timeoutMs: 0,
  graceMs: 0,
  oomScoreAdj: 0,
  rows: 24,
  columns: 80,
  ringBytes: 0,
  cwd: '/',
  argv: ['/bin/sh', '-c', script],
  env: ['PATH=/usr/bin:/bin'],
  ...more,
})
const begin = (spawn: SpawnRequest, proc = processes.allocate()) => {
  const sinks = { stdout: new Kept(), stderr: new Kept() }
  return { ...sinks, sinks, process: processes.run(proc, spawn, sinks) }
}
async function feed(process: SandboxProcess, bytes: Buffer): Promise<void> {
  let at = process.stdinAccepted
  for await (const chunk of Readable.from(pieces(bytes.subarray(at)))) {
    await process.write(at, chunk)
    at += chunk.length
  }
  await process.endInput(bytes.length)
}
function* pieces(bytes: Buffer): Generator<Buffer> {
  for (let at = 0; at < bytes.length; at += 50_000) yield bytes.subarray(at, at + 50_000)
}

test('two hundred at once, each with its own output and exit code', async () => {
  const all = Array.from({ length: 200 }, (_, i) => begin(sh(`echo ${i}; echo e${i} >&2; exit ${i}`)))
  for (const [i, { process, stdout, stderr }] of all.entries()) {
    expect(await process.ended).toMatchObject({ kind: 'exited', exit: { exitCode: i } })
    expect([stdout.text, stderr.text]).toEqual([`${i}\n`, `e${i}\n`])
    process.forget()
  }
  // All 256 places of berth-init are free again.
  for (let i = 0; i < 256; i++) {
    const { process } = begin(sh('exit 0', { ringBytes: 4096 }))
    expect(await process.ended).toMatchObject({ kind: 'exited' })
    process.forget()
  }
})

test('a million bytes in come out again, with a half-closed input', async () => {
  const bytes = Buffer.from(Array.from({ length: 1_000_000 }, (_, i) => 97 + (i % 26)))
  const { process, stdout } = begin(sh('cat'))
  await feed(process, bytes)
  expect(await process.ended).toMatchObject({ exit: { exitCode: 0 } })
  expect(stdout.text === bytes.toString()).toBe(true)
})

test('input goes on in another agent, whatever was taken: a slow reader gets every byte once', async () => {
  const bytes = Buffer.from(Array.from({ length: 400_000 }, (_, i) => 97 + (i % 26)))
  const proc = processes.allocate()
  const { process, sinks, stdout } = begin(sh('read line; cat'), proc)
  const first = feed(process, Buffer.concat([Buffer.from('\n'), bytes])).catch(() => undefined)
  while (process.stdinAccepted < 1) await new Promise((resolve) => setTimeout(resolve, 1))
  processes.close()
  await first
  processes = open()
  const again = processes.run(proc, sh('never run'), sinks)
  processes.endOthers()
  await again.started
  await feed(again, Buffer.concat([Buffer.from('\n'), bytes]))
  expect(await again.ended).toMatchObject({ exit: { exitCode: 0 } })
  expect(stdout.text === bytes.toString()).toBe(true)
})

test('a terminal has its size, is resized, hung up', async () => {
  const script = 'stty size; trap "stty size; exit 5" WINCH; echo ready; while :; do sleep 0.05; done'
  const { process, stdout } = begin(sh(script, { flags: spawnFlags.tty }))
  await process.started
  while (!stdout.text.includes('ready')) await new Promise((resolve) => setTimeout(resolve, 5))
  process.resize(30, 100)
  expect(await process.ended).toMatchObject({ exit: { exitCode: 5 } })
  expect(stdout.text).toBe('24 80\r\nready\r\n30 100\r\n')
  const other = begin(sh('exec sleep 1000', { flags: spawnFlags.tty }))
  await other.process.started
  other.process.signal(1, 'group')
  expect(await other.process.ended).toMatchObject({ exit: { signal: 1 } })
})

test('what ended while nobody listened is told; what nobody claims is gone', async () => {
  const { process, sinks, stdout } = begin(sh('echo begin; read go; echo end; exit 9'), 50)
  const lost = begin(sh('exec sleep 1000'), 51)
  await Promise.all([process.started, lost.process.started])
  await process.write(0, Buffer.from('go\n'))
  processes.close()
  processes = open()
  const again = processes.run(50, sh('never run'), sinks)
  expect(await processes.known()).toHaveLength(2)
  processes.endOthers()
  expect(await again.ended).toMatchObject({ kind: 'exited', exit: { exitCode: 9 } })
  expect(stdout.text).toBe('begin\nend\n')
  again.forget()
  const probe = begin(sh('while pgrep -x sleep; do sleep 0.01; done'))
  await probe.process.ended
  processes.close()
  for (;;) {
    processes = open()
    const known = await processes.known()
    if (known.every(({ proc }) => proc > 51)) break
    processes.endOthers()
    await new Promise((resolve) => setTimeout(resolve, 5))
    processes.close()
  }
})

test('a shutdown ends all and the connection', async () => {
  const { process } = begin(sh('trap "exit 3" TERM; while :; do sleep 0.02; done'))
  await process.started
  processes.shutdown(5_000)
  expect(await process.ended).toMatchObject({ kind: 'exited' })
  expect(await processes.closed).toBeInstanceOf(Error)
  expect(await sandbox.exitCode()).toBe(0)
})
