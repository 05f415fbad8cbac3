import { FileEvent, FileStat } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { eventOf, RecordReader, statOf } from './records.js'

const record = (line: string, first: Buffer | string = '', second: Buffer | string = '') =>
  Buffer.concat([
    Buffer.from(`${line} ${Buffer.byteLength(first)} ${Buffer.byteLength(second)}\n`),
    Buffer.from(first),
    Buffer.from(second),
  ])
const only = (bytes: Buffer) => {
  const [found] = new RecordReader().push(bytes)
  if (!found) throw new Error('no record')
  return found
}

describe('RecordReader', () => {
  test('records cut anywhere come out whole, whatever their bytes', () => {
    const any = fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes))
    fc.assert(
      fc.property(fc.array(fc.tuple(any, any), { maxLength: 10 }), fc.array(fc.nat(400)), (pairs, cuts) => {
        const all = Buffer.concat(pairs.map(([a, b]) => record('word 1', a, b)))
        const reader = new RecordReader()
        const found = []
        let rest = all
        for (const cut of cuts) {
          found.push(...reader.push(rest.subarray(0, cut)))
          rest = rest.subarray(cut)
        }
        found.push(...reader.push(rest))
        reader.end()
        expect(found.map(({ first, second }) => [first, second])).toEqual(pairs)
      }),
    )
  })

  test.each([
    ['a line without end', Buffer.alloc(256, 'x')],
    ['a length that is none', Buffer.from('stat x -1\n')],
    ['a length beyond any path', Buffer.from('stat 9000 0\n')],
    ['no words', Buffer.from('\n')],
  ])('refuses %s', (_, bytes) => {
    expect(() => new RecordReader().push(bytes)).toThrow('nonsense')
  })

  test('an end inside a record is refused', () => {
    const reader = new RecordReader()
    reader.push(record('word 1', 'abc').subarray(0, 10))
    expect(() => reader.end()).toThrow('nonsense')
  })

  test('whatever comes, memory is bounded by one record', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 1000 })), (chunks) => {
        const reader = new RecordReader()
        try {
          for (const chunk of chunks)
            for (const { first, second } of reader.push(Buffer.from(chunk)))
              expect(first.length + second.length).toBeLessThanOrEqual(16_384)
        } catch (error) {
          expect(String(error)).toContain('nonsense')
        }
      }),
    )
  })
})

describe('statOf', () => {
  const line = 'stat f 1234 644 1000 1001 2 1700000000.123456789'

  test('of a path, and of an entry of a directory', () => {
    const stat = {
      ...{ path: '/d/f', name: 'f', kind: 'file', sizeBytes: 1234, mode: '0644', uid: 1000, gid: 1001, links: 2 },
      ...{ modifiedAt: '2023-11-14T22:13:20.123Z', target: null, nameBase64: null },
    }
    expect(statOf(only(record(line)), '/d/f')).toEqual(stat)
    expect(statOf(only(record(line, 'f')), '/d')).toEqual(stat)
    expect(statOf(only(record(line, 'f')), '/d/')).toEqual(stat)
    expect(statOf(only(record(line, 'f')), '/').path).toBe('/f')
    expect(statOf(only(record('stat d 0 755 0 0 1 0.000000000')), '/')).toMatchObject({ path: '/', name: '' })
  })

  test('a link has a target', () => {
    expect(statOf(only(record('stat l 3 777 0 0 1 0.000000000', 'l', '../x')), '/')).toMatchObject({
      kind: 'symlink',
      target: '../x',
    })
  })

  test('a name that is no UTF-8 is shown, and given as it is besides', () => {
    const name = Buffer.from([0x61, 0xff])
    expect(statOf(only(record(line, name)), '/d')).toMatchObject({
      path: '/d/a\ufffd',
      name: 'a\ufffd',
      nameBase64: name.toString('base64'),
    })
  })

  test.each(['-99999999999999', '99999999999999', '-62167219200', '0', '-1', '253402300799'])(
    'the time %s is one of the contract',
    (seconds) => {
      const stat = statOf(only(record(`stat f 1 644 0 0 1 ${seconds}.000000001`)), '/f')
      expect(FileStat.parse(stat)).toEqual(stat)
    },
  )

  test.each([
    'stat f 1 644 0 0 1',
    'stat f 1 644 0 0 1 0.0',
    'stat z 1 644 0 0 1 0.000000000',
    'stat f -1 644 0 0 1 0.000000000',
    'stat f 1 999 0 0 1 0.000000000',
    'stat f 99999999999999999999 644 0 0 1 0.000000000',
    'stat f 1 644 0 0 1 0.000000000 more',
    'other f 1 644 0 0 1 0.000000000',
  ])('%s is refused', (words) => {
    expect(() => statOf(only(record(words)), '/f')).toThrow('nonsense')
  })
})

describe('eventOf', () => {
  test.each([
    ['ready 1', '', '', { type: 'ready', path: '/d', from: null, directory: true }],
    ['created 0', 'a/f', '', { type: 'created', path: '/d/a/f', from: null, directory: false }],
    ['renamed 0', 'b', 'a', { type: 'renamed', path: '/d/b', from: '/d/a', directory: false }],
  ])('%s', (words, path, from, event) => {
    const parsed = eventOf(only(record(words, path, from)), '/d')
    expect(parsed).toEqual(event)
    expect(FileEvent.parse(parsed)).toEqual(event)
  })

  test.each(['exploded 0', 'created', 'created 0 0'])('%s is refused', (words) => {
    expect(() => eventOf(only(record(words)), '/d')).toThrow('nonsense')
  })
})
