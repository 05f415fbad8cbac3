import type { BuildStep } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { patternsOf } from './mask.js'
import { CommandOutput, StepStream } from './step-stream.js'

const secrets = patternsOf([Buffer.from('s3cr3t-value')])
const textOf = (steps: readonly BuildStep[], stream: string) =>
  steps.map((step) => (step.step === 'output' && step.stream === stream ? step.data : '')).join('')

const last: BuildStep = { step: 'failed', code: 'build_canceled', message: 'over', line: null, instruction: null }

async function all(steps: StepStream): Promise<readonly BuildStep[]> {
  const read: BuildStep[] = []
  for await (const step of steps) read.push(step)
  return read
}

test('output is told in order, secrets covered across pieces, characters whole, and stored when it was taken', async () => {
  const steps = new StepStream()
  const output = new CommandOutput(steps, 3, secrets)
  const stored: number[] = []
  const pieces = [Buffer.from('a s3cr3'), Buffer.from('t-value é').subarray(0, 9), Buffer.from([0xa9, 0x0a])]
  let at = 0
  for (const piece of pieces) {
    output.sinks.stdout.append(at, piece, (offset) => stored.push(offset))
    at += piece.length
  }
  output.sinks.stderr.append(0, Buffer.from('s3cr'), () => undefined)
  const reading = all(steps)
  await output.sinks.stdout.settled()
  expect(stored).toEqual([7, 16, 18])
  await output.end()
  steps.end(last)
  const told = await reading
  expect(textOf(told, 'stdout')).toBe('a *** é\n')
  expect(textOf(told, 'stderr')).toBe('s3cr')
})

test('nothing is stored, and so nothing more comes, while nobody reads', async () => {
  const steps = new StepStream()
  const output = new CommandOutput(steps, 0, [])
  const stored: number[] = []
  output.sinks.stdout.append(0, Buffer.from('one'), (offset) => stored.push(offset))
  output.sinks.stdout.append(3, Buffer.from('two'), (offset) => stored.push(offset))
  const reader = steps[Symbol.asyncIterator]()
  expect((await reader.next()).value).toMatchObject({ data: 'one' })
  expect(stored).toEqual([])
  expect((await reader.next()).value).toMatchObject({ data: 'two' })
  expect(stored).toEqual([3])
  // A reader that leaves holds up nobody.
  await reader.return(undefined)
  await output.sinks.stdout.settled()
  expect(stored).toEqual([3, 6])
})

test('what is cut is told no more, and holds up nobody; its end is told', async () => {
  const steps = new StepStream()
  const output = new CommandOutput(steps, 0, [])
  output.sinks.stdout.append(0, Buffer.from('never told'), () => undefined)
  await new Promise((resolve) => setImmediate(resolve))
  steps.cut()
  output.sinks.stdout.append(10, Buffer.from('nor this'), () => undefined)
  await output.sinks.stdout.settled()
  steps.end(last)
  expect(await all(steps)).toEqual([last])
})

test('a flood is clipped, and goes on without being told', async () => {
  const steps = new StepStream()
  const output = new CommandOutput(steps, 0, [])
  const reading = all(steps)
  const piece = Buffer.alloc(64 * 1024, 'x')
  let stored = 0
  for (let i = 0; i < 40; i++)
    output.sinks.stdout.append(i * piece.length, piece, (offset) => {
      stored = offset
    })
  await output.sinks.stdout.settled()
  await output.end()
  steps.end(last)
  const text = textOf(await reading, 'stdout')
  expect(stored).toBe(40 * piece.length)
  expect(text).toBe(`${'x'.repeat(2 * 1024 ** 2)}\n[output clipped, log limit 2MiB reached]\n`)
})
