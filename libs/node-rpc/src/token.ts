// token.ts: grants. The API signs what one caller may do with one subject (a sandbox, an attempt of a job, or the node
// itself) on one node, for a minute; the node checks with the public key that it was told when it joined. So a node needs no list of
// users, and a grant that leaks opens one kind of thing, of one subject, on one node, for a short time.
//
// A signature and its check cost some tenths of a millisecond each, which is much beside an exec. Both ends therefore
// remember: the API reuses a grant for half its life, the node knows one that it has checked until it expires.
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { type AttemptId, Failure, type NodeId, type SandboxId } from '@berth/contracts'
import { errors, jwtVerify, SignJWT } from 'jose'
import type { GrantAction } from './wire.js'

export interface Grant {
  readonly nodeId: NodeId
  readonly action: GrantAction
  readonly subject: SandboxId | AttemptId | NodeId
}

/** How long a grant is good for, in milliseconds: long enough to connect, no longer. */
export const GRANT_LIFETIME_MS = 60_000

/** Clocks of API and node may differ by this much, in seconds. */
const CLOCK_TOLERANCE_S = 10
const MAX_REMEMBERED = 10_000

const ALGORITHM = 'EdDSA'
const ISSUER = 'berth-api'

/** Makes an Ed25519 key pair for grants, as PEM (PKCS #8 and SPKI). */
export function newGrantKeys(): { readonly privateKey: string; readonly publicKey: string } {
  return generateKeyPairSync('ed25519', {
    privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
    publicKeyEncoding: { type: 'spki', format: 'pem' },
  })
}

/**
 * Signs a grant as a compact JWS (RFC 7515): the node is its audience, what it opens its subject.
 * @param privateKey Ed25519, PKCS #8 PEM
 * @param grant `expiresAt` at most a minute or so ahead; see GRANT_LIFETIME_MS
 */
export function signGrant(
  privateKey: string | KeyObject,
  grant: Grant & { readonly expiresAt: Date },
): Promise<string> {
  return new SignJWT({ action: grant.action })
    .setProtectedHeader({ alg: ALGORITHM })
    .setIssuer(ISSUER)
    .setAudience(grant.nodeId)
    .setSubject(grant.subject)
    .setExpirationTime(grant.expiresAt)
    .sign(typeof privateKey === 'string' ? createPrivateKey(privateKey) : privateKey)
}

/**
 * Checks that `token` grants exactly `expected`, now.
 * @param publicKey Ed25519, SPKI PEM
 * @returns until when it may be taken as checked
 * @throws Failure unauthenticated: not signed by this key, expired, or for another node, subject or action
 */
export async function verifyGrant(publicKey: string, token: string, expected: Grant, now = new Date()): Promise<Date> {
  try {
    const { payload } = await jwtVerify(token, createPublicKey(publicKey), {
      algorithms: [ALGORITHM],
      issuer: ISSUER,
      audience: expected.nodeId,
      subject: expected.subject,
      requiredClaims: ['exp'],
      clockTolerance: CLOCK_TOLERANCE_S,
      currentDate: now,
    })
    if (payload.action !== expected.action) throw new errors.JWTClaimValidationFailed('another action', payload)
    return new Date((payload.exp ?? 0) * 1000)
  } catch (error) {
    if (error instanceof errors.JOSEError) throw new Failure('unauthenticated', `grant refused: ${error.message}`)
    throw error
  }
}

/** The API's end: grants signed in the last half minute are used again. */
export class Grants {
  readonly #key: KeyObject
  readonly #signed = new Remembered<Promise<string>>()

  /** @param privateKey Ed25519, PKCS #8 PEM */
  constructor(privateKey: string) {
    this.#key = createPrivateKey(privateKey)
  }

  /** A grant that is good for at least half of GRANT_LIFETIME_MS. */
  get(grant: Grant, now = new Date()): Promise<string> {
    const key = `${grant.nodeId} ${grant.subject} ${grant.action}`
    const known = this.#signed.get(key, now)
    if (known) return known
    const expiresAt = new Date(now.getTime() + GRANT_LIFETIME_MS)
    const signed = signGrant(this.#key, { ...grant, expiresAt })
    this.#signed.set(key, signed, new Date(now.getTime() + GRANT_LIFETIME_MS / 2))
    return signed
  }
}

/** The node's end: a grant that was found good is known until it expires. */
export class GrantCheck {
  readonly #good = new Remembered<string>()

  /** @throws as `verifyGrant` */
  async verify(publicKey: string, token: string, expected: Grant, now = new Date()): Promise<void> {
    const wanted = `${expected.nodeId} ${expected.subject} ${expected.action} ${publicKey}`
    if (this.#good.get(token, now) === wanted) return
    this.#good.set(token, wanted, await verifyGrant(publicKey, token, expected, now))
  }
}

/** A map whose entries end; beyond MAX_REMEMBERED the oldest go. */
class Remembered<V> {
  readonly #entries = new Map<string, { readonly value: V; readonly from: number; readonly until: number }>()

  get(key: string, now: Date): V | undefined {
    const entry = this.#entries.get(key)
    // A clock that was set back makes an entry old, not young for ever.
    if (entry && now.getTime() >= entry.from && now.getTime() < entry.until) return entry.value
    return undefined
  }

  set(key: string, value: V, until: Date, from = new Date(until.getTime() - 2 * GRANT_LIFETIME_MS)): void {
    this.#entries.delete(key)
    const [oldest] = this.#entries.size >= MAX_REMEMBERED ? this.#entries.keys() : []
    if (oldest !== undefined) this.#entries.delete(oldest)
    this.#entries.set(key, { value, from: from.getTime(), until: until.getTime() })
  }
}
