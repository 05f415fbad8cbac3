// What every exec driver does, on a real container with busybox.

import { defaultCapabilityMask } from '@berth/oci'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { type SpawnRequest, spawnFlags } from '../runtime/init-wire.js'
import type { MainEnd, OutputSink, SandboxProcess } from '../runtime/processes.js'
import type { ExecDriver } from './exec-driver.js'

export interface GivenDriver extends AsyncDisposable {
  readonly driver: ExecDriver
}

/** Keeps what comes, and stores it when it likes. */
class Kept implements OutputSink {
  bytes = Buffer.alloc(0)
  holding = false
  #held: (() => void)[] = []
  #waiting: (() => void)[] = []

  resume(): void {
    expect(this.bytes).toHaveLength(0)
  }
  append(offset: number, bytes: Buffer, stored: (offset: number) => void): void {
    this.bytes = Buffer.concat([this.bytes.subarray(0, offset), bytes])
    const end = this.bytes.length
    if (this.holding) this.#held.push(() => stored(end))
    else stored(end)
    for (const wake of this.#waiting.splice(0)) wake()
  }
  release(): void {
    this.holding = false
    for (const store of this.#held.splice(0)) store()
  }
  settled(): Promise<void> {
    return Promise.resolve()
  }
  get text(): string {
    return this.bytes.toString()
  }
  async until(found: (text: string) => boolean): Promise<void> {
    while (!found(this.text)) await new Promise<void>((resolve) => this.#waiting.push(resolve))
  }
}

const request = (argv: readonly string[], more: Partial<SpawnRequest> = {}): SpawnRequest => ({
  flags: spawnFlags.noNewPrivs,
  uid: 0,
  gid: 0,
  groups: [],
  capabilities: { bounding: defaultCapabilityMask, effective: defaultCapabilityMask, inheritable: 0n, ambient: 0n },
  // Equal: Go programs such as runc raise the soft limit to the hard one, and some hand that on.
  limits: [{ resource: 7, soft: 77n, hard: 77n }],
  timeoutMs: 0,
  graceMs: 0,
  oomScoreAdj: 0,
  rows: 0,
  columns: 0,
  ringBytes: 0,
  cwd: '/',
  argv,
  env: ['PATH=/bin', 'HOME=/root'],
  ...more,
})
const sh = (script: string, more: Partial<SpawnRequest> = {}) => request(['sh', '-c', script], more)

/** What the two do not have in common. */
export interface Abilities {
  /** An end by a signal is told from exit code 128 + n. */
  readonly signals: boolean
  /** The end is told while something that was left behind holds the output. */
  readonly heldOutput: boolean
}

export function execDriverContract(
  name: string,
  open: () => Promise<GivenDriver>,
  { signals, heldOutput }: Abilities,
): void {
  describe(`the ${name} driver`, () => {
    let given: GivenDriver
    beforeAll(async () => {
      given = await open()
      await given.driver.ready()
    })
    afterAll(async () => given[Symbol.asyncDispose]())

    interface Run {
      readonly process: SandboxProcess
      readonly stdout: Kept
      readonly stderr: Kept
    }
    function start(spawn: SpawnRequest): Run {
      const sinks = { stdout: new Kept(), stderr: new Kept() }
      return { ...sinks, process: given.driver.start(given.driver.allocate(), spawn, sinks) }
    }
    async function run(spawn: SpawnRequest): Promise<Run & { readonly end: MainEnd }> {
      const started = start(spawn)
      const end = await started.process.ended
      started.process.forget()
      return { ...started, end }
    }
    const exited = (exitCode: number) => ({ kind: 'exited', exit: { exitCode, signal: undefined, cause: 'itself' } })
    const killed = (signal: number) => (signals ? { exitCode: undefined, signal } : { exitCode: 128 + signal })

    test('keeps the streams apart, and tells the exit code after the last of them', async () => {
      const { end, stdout, stderr } = await run(sh('echo out; echo err >&2; exit 3'))
      expect(end).toMatchObject(exited(3))
      expect([stdout.text, stderr.text]).toEqual(['out\n', 'err\n'])
    })

    test('tells when it runs, and as which process', async () => {
      const { process, stdout } = start(sh('echo $$; exec sleep 1000'))
      const started = await process.started
      await stdout.until((text) => text.includes('\n'))
      expect(started).toMatchObject({ kind: 'started', pid: Number(stdout.text) })
      process.signal(9, 'process')
      expect(await process.ended).toMatchObject({ exit: killed(9) })
      process.forget()
    })

    test('runs as user and groups, in directory and environment, within limits and capabilities', async () => {
      const script =
        'id -u; id -g; id -G; pwd; echo $A; ulimit -n; grep -E "^(CapEff|CapBnd|NoNewPrivs)" /proc/self/status'
      const as = { uid: 1000, gid: 1001, groups: [1001, 7], cwd: '/tmp', env: ['PATH=/bin', 'A=b c'] }
      const none = { bounding: 1n, effective: 0n, inheritable: 0n, ambient: 0n }
      const { stdout } = await run(sh(script, { ...as, capabilities: none }))
      const [uid, gid, groups, cwd, a, files, ...status] = stdout.text.trim().split('\n')
      expect([uid, gid, cwd, a, files]).toEqual(['1000', '1001', '/tmp', 'b c', '77'])
      expect(groups?.split(' ').toSorted()).toEqual(['1001', '7'])
      const values = status.map((line) => line.split(/\s+/)[1])
      expect(values).toEqual(['0000000000000000', '0000000000000001', '1'])
    })

    test.each<[string, SpawnRequest, object]>([
      ['a program that does not exist', request(['/no/such/program']), { stage: 'exec', errno: 2 }],
      ['one that is not in PATH', request(['no-such-program']), { stage: 'exec', errno: 2 }],
      ['one that is not executable', request(['/bin/not-executable']), { stage: 'exec', errno: 13 }],
      ['a directory', request(['/etc']), { stage: 'exec', errno: 13 }],
      ['a directory to be in that is not there', request(['true'], { cwd: '/nowhere' }), { stage: 'cwd', errno: 2 }],
    ])('%s fails as what it is, without output', async (_, spawn, failure) => {
      const { process, end, stdout, stderr } = await run(spawn)
      expect(end).toMatchObject({ kind: 'failed', ...failure })
      expect(await process.started).toEqual(end)
      await process.outputEnded
      expect([stdout.text, stderr.text]).toEqual(['', ''])
    })

    test('takes input by offset, drops repeats, refuses a gap, and ends it', async () => {
      const { process, stdout } = start(request(['cat'], { flags: spawnFlags.stdin }))
      await process.write(0, Buffer.from('hello '))
      await process.write(3, Buffer.from('lo world'))
      await expect(process.write(99, Buffer.from('x'))).rejects.toMatchObject({ code: 'input_gap' })
      await stdout.until((text) => text === 'hello world')
      await process.write(undefined, Buffer.from('!'))
      expect(process.stdinAccepted).toBe(12)
      expect(await process.endInput()).toBe(12)
      expect(await process.ended).toMatchObject(exited(0))
      expect(stdout.text).toBe('hello world!')
      process.forget()
    })

    test('without input there is none, and none can be given', async () => {
      const { process, end } = await run(request(['cat']))
      expect(end).toMatchObject(exited(0))
      await expect(process.write(0, Buffer.from('x'))).rejects.toMatchObject({ code: 'wrong_state' })
    })

    test('more input than any buffer holds arrives whole', async () => {
      const { process, stdout } = start(request(['busybox', 'sha256sum'], { flags: spawnFlags.stdin }))
      for (let i = 0; i < 40; i++) await process.write(i * 65_536, Buffer.alloc(65_536, i))
      await process.endInput(40 * 65_536)
      await process.ended
      const { createHash } = await import('node:crypto')
      const hash = createHash('sha256')
      for (let i = 0; i < 40; i++) hash.update(Buffer.alloc(65_536, i))
      expect(stdout.text.split(' ')[0]).toBe(hash.digest('hex'))
      process.forget()
    })

    test('a writer waits while its output is not stored, and others do not', async () => {
      const flood = start(sh('yes | head -c 3000000'))
      flood.stdout.holding = true
      await flood.stdout.until((text) => text.length > 0)
      expect((await run(sh('echo beside'))).stdout.text).toBe('beside\n')
      expect(flood.stdout.bytes.length).toBeLessThan(1_000_000)
      flood.stdout.release()
      expect(await flood.process.ended).toMatchObject(exited(0))
      expect(flood.stdout.bytes.length).toBe(3_000_000)
      flood.process.forget()
    })

    test('a signal goes to the process, or to all of its group', async () => {
      const script = 'trap "echo caught; exit 5" TERM; echo ready; while :; do sleep 0.05; done'
      const one = start(sh(script))
      await one.stdout.until((text) => text === 'ready\n')
      one.process.signal(15, 'process')
      expect(await one.process.ended).toMatchObject(exited(5))
      expect(one.stdout.text).toBe('ready\ncaught\n')
      const group = start(sh('sleep 1000 & sleep 1000 & echo $!; wait'))
      await group.stdout.until((text) => text.includes('\n'))
      group.process.signal(9, 'group')
      expect(await group.process.ended).toMatchObject({ exit: killed(9) })
      await group.process.outputEnded
      for (const { process } of [one, group]) process.forget()
    })

    test('a timeout is SIGTERM to the group, and SIGKILL after the grace', async () => {
      const polite = await run(request(['sleep', '1000'], { timeoutMs: 50, graceMs: 60_000 }))
      expect(polite.end).toMatchObject({ exit: { ...killed(15), cause: 'timeout' } })
      const stubborn = await run(sh('trap "" TERM; while :; do sleep 0.05; done', { timeoutMs: 50, graceMs: 50 }))
      expect(stubborn.end).toMatchObject({ exit: { ...killed(9), cause: 'timeout' } })
    })

    test('what it left behind goes on and may write', async () => {
      const { process, stdout } = start(sh('(sleep 0.5; echo later) & echo now'))
      expect(await process.ended).toMatchObject(exited(0))
      expect(stdout.text).toBe(heldOutput ? 'now\n' : 'now\nlater\n')
      await process.outputEnded
      expect(stdout.text).toBe('now\nlater\n')
      process.forget()
    })

    const testHeld = heldOutput ? test : test.skip
    testHeld('forgetting cuts off who still holds its output', async () => {
      const { process } = start(sh('sleep 1000 & echo $! > /tmp/left'))
      await process.ended
      process.forget()
      await process.outputEnded
      expect((await run(sh('kill $(cat /tmp/left)'))).end).toMatchObject(exited(0))
    })

    test('a terminal has a size that changes, is one stream, and takes the end of input as a key', async () => {
      const tty = { flags: spawnFlags.tty | spawnFlags.stdin, rows: 7, columns: 40 }
      const size = 'busybox stty size'
      const loop = `while read -r x; do echo "got $x"; ${size}; done; echo over`
      const { process, stdout, stderr } = start(sh(`test -t 0 && test -t 2 && ${size}; echo error >&2; ${loop}`, tty))
      await stdout.until((text) => text.includes('error'))
      expect(stdout.text).toBe('7 40\r\nerror\r\n')
      process.resize(11, 22)
      // A runtime between hears of the size by a signal, perhaps after the line.
      for (let lines = 1; !stdout.text.includes('got grün\r\n11 22\r\n'); lines++) {
        await process.write(undefined, Buffer.from('grün\n'))
        await stdout.until((text) => (text.match(/got grün\r\n\d+ \d+\r\n/g) ?? []).length === lines)
      }
      await process.endInput()
      expect(await process.ended).toMatchObject(exited(0))
      await process.outputEnded
      expect(stdout.text).toMatch(/over\r\n$/)
      expect(stderr.text).toBe('')
      process.forget()
    })

    test('many at once do not mix', async () => {
      const runs = await Promise.all(Array.from({ length: 16 }, (_, i) => run(sh(`echo ${i}; exit ${i}`))))
      for (const [i, { end, stdout }] of runs.entries()) {
        expect(end).toMatchObject(exited(i))
        expect(stdout.text).toBe(`${i}\n`)
      }
    })
  })
}
