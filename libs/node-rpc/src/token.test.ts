import { createHmac } from 'node:crypto'
import { AttemptId, Failure, mintId, NodeId, SandboxId } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { GRANT_LIFETIME_MS, type Grant, GrantCheck, Grants, newGrantKeys, signGrant, verifyGrant } from './token.js'

const node = (n: number) => NodeId.parse(mintId('node', n, Buffer.alloc(10)))
const attempt = (n: number) => AttemptId.parse(mintId('attempt', n, Buffer.alloc(10)))
const keys = newGrantKeys()
const grant: Grant = { nodeId: node(1), action: 'output', subject: attempt(1) }
const now = new Date('2026-01-01T00:00:00Z')
const later = (ms: number) => new Date(now.getTime() + ms)
const sign = (privateKey = keys.privateKey) => signGrant(privateKey, { ...grant, expiresAt: later(GRANT_LIFETIME_MS) })

describe('a grant', () => {
  test('opens what it was signed for, until it expires', async () => {
    const token = await sign()
    await verifyGrant(keys.publicKey, token, grant, now)
    await verifyGrant(keys.publicKey, token, grant, later(GRANT_LIFETIME_MS - 1000))
    await expect(verifyGrant(keys.publicKey, token, grant, later(GRANT_LIFETIME_MS + 11_000))).rejects.toThrow(Failure)
  })

  test.each<[string, Grant]>([
    ['another node', { ...grant, nodeId: node(2) }],
    ['another attempt', { ...grant, subject: attempt(2) }],
    ['a sandbox of the same number', { ...grant, subject: SandboxId.parse(attempt(1).replace('att', 'sbx')) }],
    ['the node itself', { ...grant, subject: node(1) }],
    ['another action', { ...grant, action: 'files' }],
  ])('does not open %s', async (_what, expected) => {
    await expect(verifyGrant(keys.publicKey, await sign(), expected, now)).rejects.toMatchObject({
      code: 'unauthenticated',
    })
  })

  test('of another key is refused', async () => {
    const token = await sign(newGrantKeys().privateKey)
    await expect(verifyGrant(keys.publicKey, token, grant, now)).rejects.toMatchObject({ code: 'unauthenticated' })
  })

  test('that was tampered with, or signed in a way that anyone could, is refused', async () => {
    const token = await sign()
    const [head = '', body = '', signature = ''] = token.split('.')
    const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url')
    const claims: object = JSON.parse(Buffer.from(body, 'base64url').toString())
    // The public key as an HMAC secret: the classic confusion of algorithms.
    const confused = `${part({ alg: 'HS256' })}.${body}`
    const mac = createHmac('sha256', keys.publicKey).update(confused).digest('base64url')
    const { exp: _, ...endless } = { exp: 0, ...claims }
    const forged = [
      '',
      'x',
      `${head}.${body}.`,
      `${part({ alg: 'none' })}.${body}.`,
      `${confused}.${mac}`,
      `${head}.${part({ ...claims, sub: attempt(2) })}.${signature}`,
      `${head}.${part(endless)}.${signature}`,
    ]
    for (const one of forged)
      await expect(verifyGrant(keys.publicKey, one, grant, now)).rejects.toMatchObject({ code: 'unauthenticated' })
  })
})

describe('a remembered grant', () => {
  test('is signed anew after half its life, and one for each node, subject and action', async () => {
    const grants = new Grants(keys.privateKey)
    const first = await grants.get(grant, now)
    expect(await grants.get({ ...grant }, later(GRANT_LIFETIME_MS / 2 - 1))).toBe(first)
    const second = await grants.get(grant, later(GRANT_LIFETIME_MS / 2))
    expect(second).not.toBe(first)
    await verifyGrant(keys.publicKey, second, grant, later(GRANT_LIFETIME_MS))
    for (const other of [{ nodeId: node(2) }, { subject: attempt(2) }, { action: 'files' as const }]) {
      const wanted = { ...grant, ...other }
      await verifyGrant(keys.publicKey, await grants.get(wanted, now), wanted, now)
    }
  })

  test('still opens nothing else, nothing after its end, and nothing once the API has another key', async () => {
    const check = new GrantCheck()
    const token = await sign()
    for (const at of [now, later(1000)]) await check.verify(keys.publicKey, token, grant, at)
    const refused = { code: 'unauthenticated' }
    const { publicKey: other } = newGrantKeys()
    await expect(check.verify(keys.publicKey, token, { ...grant, action: 'files' }, now)).rejects.toMatchObject(refused)
    await expect(check.verify(keys.publicKey, token, { ...grant, subject: attempt(2) }, now)).rejects.toMatchObject(
      refused,
    )
    await expect(check.verify(other, token, grant, now)).rejects.toMatchObject(refused)
    const end = later(GRANT_LIFETIME_MS + 11_000)
    await expect(check.verify(keys.publicKey, token, grant, end)).rejects.toMatchObject(refused)
    await check.verify(keys.publicKey, token, grant, later(2000))
  })
})
