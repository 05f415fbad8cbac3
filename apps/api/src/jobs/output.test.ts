import { AttemptId, NodeId } from '@berth/contracts'
import type { AttemptOutput } from '@berth/persistence'
import { describe, expect, test } from '@jest/globals'
import { keptInline } from './output.js'

describe('keptInline', () => {
  const attempt = (change: Partial<AttemptOutput>): AttemptOutput => ({
    attemptId: AttemptId.parse('att_00000000000000000000000000'),
    nodeId: NodeId.parse('nod_00000000000000000000000000'),
    number: 1,
    state: 'succeeded',
    usage: null,
    stdout: null,
    stderr: null,
    ...change,
  })
  const usage = (bytes: number, keptBytes: number) => {
    const stream = { bytes, keptBytes, truncated: bytes > keptBytes }
    return { wallMs: 1, cpuMs: 1, peakMemoryBytes: 1, stdout: stream, stderr: stream }
  }

  test('nothing is known while it runs', () => {
    expect(keptInline(attempt({ state: 'running' }), 'stdout')).toBeUndefined()
  })

  test('what is stored is whole when nothing more was kept, even if more was written', () => {
    const data = Buffer.from('abc')
    expect(keptInline(attempt({ stdout: data, usage: usage(900, 3) }), 'stdout')).toEqual({
      data,
      bytes: 900,
      whole: true,
    })
    expect(keptInline(attempt({ stdout: data, usage: usage(900, 9) }), 'stdout')).toEqual({
      data,
      bytes: 900,
      whole: false,
    })
  })

  test('a lost attempt has what it has', () => {
    expect(keptInline(attempt({ state: 'lost' }), 'stderr')).toEqual({ data: Buffer.alloc(0), bytes: 0, whole: true })
  })
})
