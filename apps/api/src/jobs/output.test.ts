import { AttemptId, NodeId } from '@berth/contracts'
import type { AttemptOutput } from '@berth/persistence'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { inlineStream, keptInline } from './output.js'

const whole = (data: Buffer) => inlineStream({ data, bytes: data.length })

describe('inlineStream', () => {
  test('UTF-8 stays text, anything else is base64', () => {
    expect(whole(Buffer.from('grün ☃'))).toEqual({ data: 'grün ☃', encoding: 'utf8', bytes: 9, truncated: false })
    expect(whole(Buffer.from([0xff, 0]))).toEqual({ data: '/wA=', encoding: 'base64', bytes: 2, truncated: false })
    expect(whole(Buffer.alloc(0))).toEqual({ data: '', encoding: 'utf8', bytes: 0, truncated: false })
  })

  test.each([1, 2, 3])('a snowflake cut by %i bytes is left out, the text before it stays text', (cut) => {
    const text = Buffer.from('ab💥')
    const part = text.subarray(0, text.length - cut)
    expect(inlineStream({ data: part, bytes: text.length })).toMatchObject({
      data: 'ab',
      encoding: 'utf8',
      truncated: true,
    })
  })

  test('bytes that only look cut are kept: nothing is dropped from binary data', () => {
    const data = Buffer.from([0xff, 0x61, 0xe2])
    expect(inlineStream({ data, bytes: 100 })).toMatchObject({ encoding: 'base64', data: data.toString('base64') })
  })

  test('whole bytes come back as they were', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        const { data, encoding } = whole(Buffer.from(bytes))
        expect(Buffer.from(data, encoding)).toEqual(Buffer.from(bytes))
      }),
    )
  })

  test('any cut of any text is text', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', minLength: 1 }), fc.nat(), (text, at) => {
        const all = Buffer.from(text)
        const data = all.subarray(0, at % all.length)
        const shown = inlineStream({ data, bytes: all.length })
        expect(shown.encoding).toBe('utf8')
        expect(text.startsWith(shown.data)).toBe(true)
      }),
    )
  })
})

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
