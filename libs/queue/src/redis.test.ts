import { describe, expect, test } from '@jest/globals'
import { parseRedisUrl, replyCode, withoutCredentials } from './redis.js'

describe('parseRedisUrl', () => {
  test.each([
    ['redis://h', { host: 'h', port: 6379, db: 0 }],
    ['redis://u:p%40%2F@h:7000/3', { host: 'h', port: 7000, db: 3, username: 'u', password: 'p@/' }],
    ['redis://:p@127.0.0.1:7000', { host: '127.0.0.1', port: 7000, db: 0, password: 'p' }],
    ['redis://[::1]:7000/', { host: '::1', port: 7000, db: 0 }],
    ['rediss://h/1', { host: 'h', port: 6379, db: 1, tls: {} }],
    ['unix:///run/a/redis.sock', { path: '/run/a/redis.sock', db: 0 }],
    ['unix:///r.sock?username=u&password=p%3F&db=2', { path: '/r.sock', db: 2, username: 'u', password: 'p?' }],
    ['redis+unix://:p%40@/r.sock', { path: '/r.sock', db: 0, password: 'p@' }],
    ['redis+unix://u:p@/r%20d.sock?db=4', { path: '/r d.sock', db: 4, username: 'u', password: 'p' }],
  ])('%s', (url, address) => expect(parseRedisUrl(url)).toEqual(address))

  test.each([
    '',
    'h:6379',
    'http://h',
    'redis://',
    'unix://relative',
    'redis://h/x',
    'redis://:hunter2@h/-1',
    'redis://h/1.5',
  ])('refuses %j without repeating it', (url) => {
    expect(() => parseRedisUrl(url)).toThrow('REDIS_URL')
    expect(() => parseRedisUrl(url)).not.toThrow('hunter2')
  })
})

test.each([
  ['redis://u:p@h:7000/3', 'redis://h:7000/3'],
  ['rediss://:p@[::1]/', 'rediss://[::1]:6379/0'],
  ['redis+unix://u:p@/r%20d.sock?db=4', 'unix:///r%20d.sock?db=4'],
  ['unix:///r.sock?password=p', 'unix:///r.sock'],
])('withoutCredentials(%s)', (url, shown) => {
  expect(withoutCredentials(url)).toBe(shown)
  const { username: _u, password: _p, ...address } = parseRedisUrl(url)
  expect(parseRedisUrl(shown)).toEqual(address)
})

test.each([
  [new Error('WRONGPASS invalid username-password pair'), 'WRONGPASS'],
  [new Error("NOPERM User x has no permissions to run the 'info' command"), 'NOPERM'],
  [new Error('ReplyError: LOADING Redis is loading'), 'LOADING'],
  [new Error('connect ECONNREFUSED 127.0.0.1'), undefined],
  ['WRONGPASS', undefined],
])('replyCode(%s)', (error, code) => expect(replyCode(error)).toBe(code))
