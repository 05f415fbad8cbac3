import { describe, expect, test } from '@jest/globals'
import { checkUrl, follow, mayConnect, nearnessOf } from './reach.js'

test.each([
  ['93.184.216.34', 'public'],
  ['172.32.0.1', 'public'],
  ['2606:4700::1111', 'public'],
  ['127.0.0.1', 'private'],
  ['127.255.0.9', 'private'],
  ['10.1.2.3', 'private'],
  ['172.16.0.1', 'private'],
  ['192.168.1.1', 'private'],
  ['100.64.0.1', 'private'],
  ['0.0.0.0', 'private'],
  ['224.0.0.1', 'private'],
  ['255.255.255.255', 'private'],
  ['::', 'private'],
  ['::1', 'private'],
  ['fd12:3456::1', 'private'],
  ['169.254.169.254', 'link-local'],
  ['168.63.129.16', 'link-local'],
  ['fe80::1', 'link-local'],
  ['fd00:ec2::254', 'link-local'],
  // The same, written as another family.
  ['::ffff:127.0.0.1', 'private'],
  ['::ffff:a9fe:a9fe', 'link-local'],
  ['::ffff:8.8.8.8', 'public'],
  ['::7f00:1', 'private'],
  ['64:ff9b::10.0.0.1', 'private'],
  ['64:ff9b::169.254.169.254', 'link-local'],
  ['::ffff:0:10.0.0.1', 'private'],
  ['::ffff:0:169.254.169.254', 'link-local'],
  ['2002:7f00:1::', 'private'],
  ['2002:a9fe:a9fe::1', 'link-local'],
])('%s is %s', (address, nearness) => expect(nearnessOf(address)).toBe(nearness))

test.each([
  ['8.8.8.8', false, 'other', true],
  ['127.0.0.1', false, 'registry', false],
  ['127.0.0.1', true, 'registry', true],
  ['10.0.0.1', true, 'other', true],
  ['169.254.169.254', false, 'registry', false],
  ['169.254.169.254', true, 'other', false],
  ['169.254.169.254', true, 'registry', true],
])('a connection to %s, private addresses %s, of %s: %s', (address, privateAddresses, host, allowed) =>
  expect(mayConnect(host, address, { privateAddresses, endpointHost: 'registry' })).toBe(allowed),
)

describe('a redirect', () => {
  const endpoint = new URL('https://registry.example/')
  const from = new URL('https://registry.example/v2/a/blobs/x')

  test('to the same place keeps the login, to another loses it', () => {
    expect(follow(endpoint, from, '/b?c')).toEqual({ to: new URL('https://registry.example/b?c'), keepsLogin: true })
    for (const url of ['https://cdn.example/b', 'https://registry.example:8443/b'])
      expect(follow(endpoint, from, url)).toEqual({ to: new URL(url), keepsLogin: false })
  })

  test.each([
    ['http://registry.example/b', 'from https to http'],
    ['ftp://cdn.example/b', 'to ftp:'],
    ['file:///etc/passwd', 'to file:'],
    ['https://user:pass@cdn.example/', 'with a login'],
    ['https://', 'no URL'],
  ])('to %s is refused', (url, why) =>
    expect(follow(endpoint, from, url)).toEqual({ refused: expect.stringContaining(why) }),
  )

  test('of a registry over http may lead to http, but not once it was at https', () => {
    const insecure = new URL('http://registry.example/')
    expect(follow(insecure, new URL('http://registry.example/x'), 'http://cdn.example/b')).toMatchObject({
      keepsLogin: false,
    })
    expect(follow(insecure, new URL('https://cdn.example/x'), 'http://cdn.example/b')).toHaveProperty('refused')
    expect(checkUrl(insecure, new URL('http://auth.example/'))).toBeUndefined()
    expect(checkUrl(endpoint, new URL('http://auth.example/'))).toBe('from https to http')
  })
})
