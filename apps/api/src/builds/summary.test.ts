import type { BuildProgress } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { BuildLog, KEPT_LOG_BYTES, LEFT_OUT } from './log.js'
import { BuildSummary } from './summary.js'

const at = '2026-01-01T00:00:00.000Z'
const begin = (vertex: number, name = 'RUN x'): BuildProgress => ({ step: 'begin', vertex, name, stage: null, at })
const output = (vertex: number, data: string): BuildProgress => ({
  ...{ step: 'output', vertex, stream: 'stdout', data, at },
})
const end = (vertex: number, error: string | null = null): BuildProgress => ({
  ...{ step: 'end', vertex, at, ms: 5, exitCode: error === null ? 0 : 1, error, layer: null },
})

describe('a summary', () => {
  test('says how each instruction went, and what the failed one wrote last', () => {
    const summary = new BuildSummary()
    const steps = [begin(0), { step: 'cached', vertex: 0 } as const, begin(1), begin(2), output(1, 'a'), output(2, 'b')]
    for (const step of [...steps, end(1), output(2, 'x'.repeat(5000)), end(2, 'exit code 1'), begin(3)])
      summary.add(step)
    expect(summary.steps.map(({ vertex, state, exitCode }) => [vertex, state, exitCode])).toEqual([
      [0, 'cached', null],
      [1, 'done', 0],
      [2, 'failed', 1],
      [3, 'running', null],
    ])
    expect(summary.failedOutput).toBe('x'.repeat(4096))
  })

  test('is bounded', () => {
    const summary = new BuildSummary()
    for (let i = 0; i < 1000; i++) summary.add(begin(i, 'y'.repeat(1000)))
    expect(JSON.stringify(summary.steps).length).toBeLessThan(300_000)
  })
})

describe('a log', () => {
  test('tells of a piece that was not written down', () => {
    const log = new BuildLog()
    log.add('a\n')
    log.take()
    log.missed()
    expect(log.take()).toBeNull()
    log.add('b\n')
    expect(log.take()?.data).toEqual(Buffer.concat([LEFT_OUT, Buffer.from('b\n')]))
  })

  test('is taken in pieces, of which enough are kept', () => {
    const log = new BuildLog()
    expect(log.take()).toBeNull()
    log.add('a\n')
    log.add('b\n')
    expect(log.take()).toEqual({ number: 0, data: Buffer.from('a\nb\n'), keepFrom: 0 })
    expect(log.take()).toBeNull()
    const half = 'x'.repeat(KEPT_LOG_BYTES / 2)
    const kept = [1, 2, 3, 4].map(() => {
      log.add(half)
      return log.take()?.keepFrom
    })
    expect(kept).toEqual([0, 1, 2, 3])
  })

  test('of a flood is its end, and says so', () => {
    const log = new BuildLog()
    for (let i = 0; i < 3000; i++) log.add(`${i}`.padStart(1023, ' ').concat('\n'))
    const data = Buffer.from(log.take()?.data ?? [])
    expect(data.length).toBeLessThanOrEqual(KEPT_LOG_BYTES + LEFT_OUT.length)
    expect(data.subarray(0, LEFT_OUT.length)).toEqual(LEFT_OUT)
    expect(data.toString().endsWith('2999\n')).toBe(true)
  })
})
