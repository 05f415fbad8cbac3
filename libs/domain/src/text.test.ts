import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { cutAtEnd, encoded, inlineStream } from './text.js'

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

describe('a part from the middle or the end of a stream', () => {
  test.each([1, 2, 3])('the last %i bytes of a character at its start are left out', (cut) => {
    const text = Buffer.from('💥ab')
    const data = text.subarray(4 - cut)
    expect(inlineStream({ data, from: 4 - cut, bytes: text.length })).toEqual({
      data: 'ab',
      encoding: 'utf8',
      bytes: text.length,
      truncated: true,
    })
  })

  test('any part of any text is text that is in it', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', minLength: 1 }), fc.nat(), fc.nat(), (text, a, b) => {
        const all = Buffer.from(text)
        const [from, to] = [Math.min(a % all.length, b % all.length), Math.max(a % all.length, b % all.length)]
        const shown = inlineStream({ data: all.subarray(from, to), from, bytes: all.length })
        expect(shown.encoding).toBe('utf8')
        expect(text.includes(shown.data)).toBe(true)
        expect(Buffer.from(shown.data).length).toBeGreaterThan(to - from - 7)
      }),
    )
  })

  test('nothing is dropped from binary data', () => {
    const data = Buffer.from([0x80, 0x61, 0xff, 0x61, 0xe2])
    expect(inlineStream({ data, from: 10, bytes: 100 })).toMatchObject({ ...encoded(data), truncated: true })
  })
})

test('text cut into frames at whole characters is the text', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), fc.integer({ min: 4, max: 9 }), (text, size) => {
      const all = Buffer.from(text)
      let read = ''
      for (let at = 0; at < all.length; ) {
        const frame = all.subarray(at, at + size)
        const whole = frame.subarray(0, frame.length - cutAtEnd(frame))
        expect(encoded(whole).encoding).toBe('utf8')
        read += encoded(whole).data
        at += whole.length
      }
      expect(read).toBe(all.toString('utf8'))
    }),
  )
})
