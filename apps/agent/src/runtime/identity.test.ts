import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { accountsReader, identify, readAccounts, UserNotFound } from './identity.js'

const accounts = {
  passwd: [
    'root:x:0:0:root:/root:/bin/sh',
    'app:x:1000:1001:App:/home/app:/bin/sh',
    'broken',
    'big:x:70000:70000::/:/bin/sh',
    'far:x:5:70000::/:/bin/sh',
    'nohome:x:6:6:::/bin/sh',
  ].join('\n'),
  group: ['root:x:0:', 'app:x:1001:', 'audio:x:29:app,root', 'video:x:44:app', 'huge:x:99999:app'].join('\n'),
}

describe('identify', () => {
  test.each<[string | undefined, ReturnType<typeof identify>]>([
    [undefined, { uid: 0, gid: 0, groups: [29], home: '/root' }],
    ['', { uid: 0, gid: 0, groups: [29], home: '/root' }],
    ['app', { uid: 1000, gid: 1001, groups: [29, 44], home: '/home/app' }],
    ['1000', { uid: 1000, gid: 1001, groups: [29, 44], home: '/home/app' }],
    ['app:video', { uid: 1000, gid: 44, groups: [29, 44], home: '/home/app' }],
    ['4242', { uid: 4242, gid: 0, groups: [], home: '/' }],
    ['4242:4243', { uid: 4242, gid: 4243, groups: [], home: '/' }],
    ['nohome', { uid: 6, gid: 6, groups: [], home: '/' }],
  ])('%s', (user, expected) => {
    expect(identify(user, accounts, 65_536)).toEqual(expected)
  })

  test.each(['nobody-here', 'app:nothing', '65536', '0:65536', 'big', 'far', 'broken'])('%s is refused', (user) => {
    expect(() => identify(user, accounts, 65_536)).toThrow(UserNotFound)
  })

  test('further groups come by name or number, once each', () => {
    expect(identify('app', accounts, 65_536, ['video', '7', 'audio', '7']).groups).toEqual([44, 7, 29])
    expect(() => identify('app', accounts, 65_536, ['nothing'])).toThrow(UserNotFound)
    expect(() => identify('app', accounts, 65_536, ['65536'])).toThrow(UserNotFound)
  })

  test('numbers need no files at all', () => {
    expect(identify('7:8', { passwd: '', group: '' }, 65_536)).toEqual({ uid: 7, gid: 8, groups: [], home: '/' })
  })
})

describe('readAccounts', () => {
  let root: string
  beforeEach(() => {
    root = mkdtempSync(join(tmpdir(), 'berth-identity-'))
  })
  afterEach(() => rmSync(root, { recursive: true }))

  const layer = (name: string, files: Readonly<Record<string, string>>) => {
    mkdirSync(join(root, name, 'etc'), { recursive: true })
    for (const [file, text] of Object.entries(files)) writeFileSync(join(root, name, 'etc', file), text)
    return join(root, name)
  }

  test('the topmost layer that has the file wins', () => {
    const layers = [layer('top', { passwd: 'new' }), layer('bottom', { passwd: 'old', group: 'groups' })]
    expect(readAccounts(layers)).toEqual({ passwd: 'new', group: 'groups' })
  })

  test('a file too large for accounts is not gone through', () => {
    expect(() => readAccounts([layer('large', { group: 'x'.repeat(300_000) })])).toThrow(UserNotFound)
  })

  test('of a sandbox that runs they are those that it sees now', () => {
    const writable = join(root, 'writable')
    mkdirSync(join(writable, 'etc'), { recursive: true })
    const read = accountsReader(writable, [layer('image', { passwd: 'image', group: 'groups' })])
    expect(read()).toEqual({ passwd: 'image', group: 'groups' })
    expect(read()).toBe(read())
    layer('writable', { passwd: 'changed' })
    expect(read()).toEqual({ passwd: 'changed', group: 'groups' })
    layer('writable', { passwd: 'changed again' })
    expect(read().passwd).toBe('changed again')
    rmSync(join(writable, 'etc'), { recursive: true })
    symlinkSync('etc', join(writable, 'etc'))
    expect(read()).toEqual({ passwd: '', group: '' })
  })

  test('no link leads out of the image', () => {
    writeFileSync(join(root, 'secret'), 'host secret')
    const linked = layer('linked', {})
    symlinkSync(join(root, 'secret'), join(linked, 'etc', 'passwd'))
    const whole = join(root, 'whole')
    mkdirSync(whole)
    symlinkSync('/etc', join(whole, 'etc'))
    expect(readAccounts([linked]).passwd).toBe('')
    expect(readAccounts([whole]).passwd).toBe('')
    const pipes = layer('pipes', {})
    execFileSync('mkfifo', [join(pipes, 'etc', 'passwd')])
    expect(readAccounts([pipes, layer('below', { passwd: 'hidden' })]).passwd).toBe('')
  })
})
