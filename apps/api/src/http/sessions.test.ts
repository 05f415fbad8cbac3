import { Failure } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { claimsSession, cookieName, requireOwnPage, sessionCookie, sessionTokenOf } from './sessions.js'

const ownOrigin = 'https://berth.example'
const header = { 'x-berth-session': '1' }

test('over https the cookie is for this host alone, over http it cannot be', () => {
  expect(sessionCookie(ownOrigin, 'brs_x', 60)).toBe(
    '__Host-berth=brs_x; Path=/; Max-Age=60; HttpOnly; SameSite=Strict; Secure',
  )
  expect(sessionCookie('http://127.0.0.1:7433', 'brs_x', 60)).toBe(
    'berth=brs_x; Path=/; Max-Age=60; HttpOnly; SameSite=Strict',
  )
  expect(sessionCookie(ownOrigin, undefined, 60)).toContain('__Host-berth=; Path=/; Max-Age=0;')
})

test.each<[string | undefined, string | undefined]>([
  ['__Host-berth=brs_a', 'brs_a'],
  ['theme=dark; __Host-berth=brs_a ;x=y', 'brs_a'],
  ['berth=brs_a', undefined],
  ['x__Host-berth=brs_a', undefined],
  ['__Host-berth=brs_a; __Host-berth=brs_b', undefined],
  ['', undefined],
  [undefined, undefined],
])('cookies %j hold the session %j', (cookie, token) => {
  const headers = cookie === undefined ? {} : { cookie }
  expect(sessionTokenOf({ headers, ownOrigin })).toBe(token)
})

test('the name depends on the scheme alone', () => {
  expect([cookieName('http://h'), cookieName('https://h')]).toEqual(['berth', '__Host-berth'])
})

test.each([
  ['the header', header, 'ours'],
  ['the header, from our page', { ...header, origin: ownOrigin }, 'ours'],
  ['the header, from another site', { ...header, origin: 'https://evil.example' }, 'refused'],
  ['the header, from another port', { ...header, origin: `${ownOrigin}:8443` }, 'refused'],
  ['the header, from plain http', { ...header, origin: 'http://berth.example' }, 'refused'],
  ['the header, from a sandboxed frame', { ...header, origin: 'null' }, 'refused'],
  ['nothing', {}, 'refused'],
  ['no header, from our page', { origin: ownOrigin }, 'refused'],
  ['a WebSocket of our page', { upgrade: 'WebSocket', origin: ownOrigin }, 'ours'],
  ['a WebSocket of another site', { upgrade: 'websocket', origin: 'https://evil.example' }, 'refused'],
  ['a WebSocket of no page', { upgrade: 'websocket' }, 'refused'],
])('a request with %s is %3$s', (_, headers, verdict) => {
  const judge = () => requireOwnPage({ headers, ownOrigin })
  if (verdict === 'ours') expect(judge).not.toThrow()
  else expect(judge).toThrow(Failure)
})

test('a cookie counts for nothing unless the request claims the session', () => {
  expect(claimsSession({ headers: { cookie: '__Host-berth=brs_a', origin: ownOrigin } })).toBe(false)
  expect(claimsSession({ headers: { upgrade: 'websocket' } })).toBe(false)
  expect(claimsSession({ headers: header })).toBe(true)
})
