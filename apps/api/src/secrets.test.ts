import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { NodeId } from '@berth/contracts'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { loadSecrets, newSecrets, Secrets } from './secrets.js'

let dir: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'berth-secrets-'))
})
afterEach(() => rmSync(dir, { recursive: true }))

const node = (last: string) => NodeId.parse(`nod_0000000000000000000000000${last}`)

test('the first start makes the file for its owner only, a second one reads the same', async () => {
  const file = join(dir, 'api', 'secrets.json')
  const first = await loadSecrets(file, undefined)
  expect(statSync(file).mode & 0o777).toBe(0o600)
  const second = await loadSecrets(file, undefined)
  expect(second.grantPublicKey).toBe(first.grantPublicKey)
  expect(second.queuePassword(node('1'))).toBe(first.queuePassword(node('1')))
})

test('replicas that start at once agree, and leave no drafts', async () => {
  const file = join(dir, 'secrets.json')
  const all = await Promise.all(Array.from({ length: 20 }, () => loadSecrets(file, undefined)))
  expect(new Set(all.map(({ grantPublicKey }) => grantPublicKey)).size).toBe(1)
  expect(readdirSync(dir)).toEqual(['secrets.json'])
})

test('a file that others may read is refused', async () => {
  const file = join(dir, 'secrets.json')
  await loadSecrets(file, undefined)
  chmodSync(file, 0o640)
  await expect(loadSecrets(file, undefined)).rejects.toThrow('its mode is 640')
})

test.each(['', '{}', '{"root":"hunter2"}', 'hunter2'])(
  '%j is refused, and not repeated in the message',
  async (text) => {
    const file = join(dir, 'secrets.json')
    writeFileSync(file, text, { mode: 0o600 })
    const failure = await loadSecrets(file, undefined).catch(String)
    expect(failure).toContain('reading secrets')
    expect(failure).not.toContain('hunter2')
    expect(readFileSync(file, 'utf8')).toBe(text)
  },
)

test('the environment may hold the content instead', async () => {
  const stored = newSecrets()
  const secrets = await loadSecrets(join(dir, 'none'), JSON.stringify(stored))
  expect(secrets.grantPublicKey).toBe(stored.grantPublicKey)
  expect(readdirSync(dir)).toEqual([])
})

test('each node has its own password', () => {
  const secrets = new Secrets(newSecrets())
  expect(secrets.queuePassword(node('1'))).not.toBe(secrets.queuePassword(node('2')))
  expect(secrets.queuePassword(node('1'))).toMatch(/^[\w-]{43}$/)
})

test('what is sealed opens with the same keys in the same context only', () => {
  const stored = newSecrets()
  const secrets = new Secrets(stored)
  const sealed = secrets.seal('the answer', 'key_1\norder-17')
  expect(sealed).not.toContain('answer')
  expect(new Secrets(stored).open(sealed, 'key_1\norder-17')).toBe('the answer')
  expect(secrets.open(sealed, 'key_2\norder-17')).toBeUndefined()
  expect(new Secrets(newSecrets()).open(sealed, 'key_1\norder-17')).toBeUndefined()
  expect(secrets.open('', 'key_1\norder-17')).toBeUndefined()
})

test('a login opens where it was sealed only: not elsewhere, not with other keys, not as an answer', () => {
  const [mine, other] = [new Secrets(newSecrets()), new Secrets(newSecrets())]
  const sealed = mine.sealLogin('hunter2', 'tenant registry')
  expect(sealed).not.toContain('hunter2')
  expect(Buffer.from(sealed, 'base64').toString('latin1')).not.toContain('hunter2')
  expect(mine.openLogin(sealed, 'tenant registry')).toBe('hunter2')
  expect(mine.openLogin(sealed, 'tenant another')).toBeUndefined()
  expect(other.openLogin(sealed, 'tenant registry')).toBeUndefined()
  expect(mine.open(sealed, 'tenant registry')).toBeUndefined()
  expect(mine.openLogin(mine.seal('x', 'c'), 'c')).toBeUndefined()
})
