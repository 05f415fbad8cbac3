import { Failure } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { addressGroup, SignInLimit } from './sign-in-limit.js'

const failures = (limit: SignInLimit, address: string, tries: number, at = 0): number => {
  for (let i = 0; i < tries; i++) {
    try {
      limit.take(address, at)
    } catch (error) {
      if (error instanceof Failure && error.code === 'rate_limited') return i
      throw error
    }
  }
  return tries
}

test('ten failures in a row are let through, then one every six seconds', () => {
  const limit = new SignInLimit()
  expect(failures(limit, '192.0.2.1', 50)).toBe(10)
  expect(failures(limit, '192.0.2.1', 50, 5999)).toBe(0)
  expect(failures(limit, '192.0.2.1', 50, 6000)).toBe(1)
  expect(failures(limit, '192.0.2.1', 50, 3_600_000)).toBe(10)
  expect(failures(limit, '192.0.2.2', 1)).toBe(1)
})

test('who is refused is told how long to wait', () => {
  const limit = new SignInLimit()
  failures(limit, '192.0.2.1', 10)
  expect(() => limit.take('192.0.2.1', 1500)).toThrow('try again in 5 s')
})

test('a good sign-in costs nothing', () => {
  const limit = new SignInLimit()
  for (let i = 0; i < 100; i++) {
    limit.take('192.0.2.1', i)
    limit.giveBack('192.0.2.1', i)
  }
  expect(failures(limit, '192.0.2.1', 50, 100)).toBe(10)
})

test('a clock that is set back lets nobody out, and locks nobody in', () => {
  const limit = new SignInLimit()
  failures(limit, '192.0.2.1', 10, 1_000_000)
  expect(failures(limit, '192.0.2.1', 1, 0)).toBe(0)
  expect(failures(limit, '192.0.2.1', 1, 1_006_000)).toBe(1)
})

test('who failed longest ago is forgotten first, so memory has an end', () => {
  const limit = new SignInLimit()
  failures(limit, '192.0.2.1', 10)
  for (let i = 0; i < 9999; i++) failures(limit, `10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`, 1)
  expect(failures(limit, '192.0.2.1', 1)).toBe(0)
  failures(limit, '172.16.0.1', 1)
  expect(failures(limit, '192.0.2.1', 1)).toBe(1)
})

test.each([
  ['192.0.2.1', '192.0.2.1'],
  ['::ffff:192.0.2.1', '192.0.2.1'],
  ['2001:db8:0:1::5', '2001:db8:0:1::/64'],
  ['2001:DB8::1:0:0:0:5', '2001:db8:0:1::/64'],
  ['2001:0db8:0000:0001:0002:0003:0004:0005', '2001:db8:0:1::/64'],
  ['::1', '0:0:0:0::/64'],
  ['fe80::1%eth0', 'fe80:0:0:0::/64'],
  ['not an address', 'not an address'],
])('%s counts as %s', (address, group) => expect(addressGroup(address)).toBe(group))
