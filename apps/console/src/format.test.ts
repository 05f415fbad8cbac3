import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { actor, ago, bytes, commandLine, counted, duration, number, plainText } from './format.js'

test.each([
  [0, '0 B'],
  [999, '999 B'],
  [1000, '0.98 KiB'],
  [1024, '1 KiB'],
  [1536, '1.5 KiB'],
  [10_240, '10 KiB'],
  [268_435_456, '256 MiB'],
  [1_073_741_823, '1 GiB'],
  [1_610_612_736, '1.5 GiB'],
  [-2048, '-2 KiB'],
  [2 ** 50 * 5000, '5000 PiB'],
])('%d bytes are %s', (value, text) => expect(bytes(value)).toBe(text))

test.each([
  [0, '0 ms'],
  [0.42, '0.4 ms'],
  [340.4, '340 ms'],
  [999.6, '1 s'],
  [2500, '2.5 s'],
  [59_940, '59.9 s'],
  [59_960, '1 min'],
  [60_000, '1 min'],
  [200_000, '3 min 20 s'],
  [3_599_900, '1 h'],
  [3_600_000, '1 h'],
  [5_430_000, '1 h 31 min'],
  [442_800_000, '5 d 3 h'],
])('%d ms are %s', (ms, text) => expect(duration(ms)).toBe(text))

test('a duration never shows a part as large as the unit above it', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 10 ** 10 }), (ms) => {
      expect(duration(ms)).not.toMatch(/\b60 (s|min)\b|\b24 h\b/)
    }),
  )
})

test.each([
  ['2026-01-01T00:00:00Z', 'just now'],
  ['2025-12-31T23:59:50Z', '10 s ago'],
  ['2025-12-31T23:57:00Z', '3 min ago'],
  ['2025-12-30T00:00:00Z', '2 d ago'],
  ['2026-01-01T02:00:00Z', 'in 2 h'],
  ['2026-01-01T00:00:01Z', 'in a moment'],
])('%s is %s', (at, text) => expect(ago(at, Date.parse('2026-01-01T00:00:00Z'))).toBe(text))

test('numbers keep three digits that count, and whole ones all', () => {
  expect([0.25, 12.54, 1200.4, 1234567, 0].map(number)).toEqual(['0.25', '12.5', '1,200', '1,234,567', '0'])
  expect([counted(1, 'job'), counted(2, 'job'), counted(2, 'process', 'processes')]).toEqual([
    '1 job',
    '2 jobs',
    '2 processes',
  ])
})

test('a command can be copied into a shell', () => {
  expect(commandLine(['sh', '-c', "echo 'a b'", ''])).toBe(`sh -c 'echo '\\''a b'\\''' ''`)
})

test('plain text keeps lines and drops what would colour or move', () => {
  expect(plainText('\x1b[1;31mred\x1b[0m\tok\r\n\x1b]0;title\x07x\x1b(By\x07\x1b[?25l')).toBe('red\tok\nxy')
})

test('who did something is shown short where it is an id', () => {
  expect([actor('api'), actor(`key_${'0'.repeat(18)}abcdefgh`)]).toEqual(['api', 'key …abcdefgh'])
})
