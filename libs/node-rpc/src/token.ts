// token.ts: grants. The API signs what one caller may do with one attempt on one node, for a minute; the node checks
// with the public key that it was told when it joined. So a node needs no list of users, and a grant that leaks opens
// one attempt, on one node, for a short time.
import { createPrivateKey, createPublicKey, generateKeyPairSync } from 'node:crypto'
import { type AttemptId, Failure, type NodeId } from '@berth/contracts'
import { errors, jwtVerify, SignJWT } from 'jose'

/** What a grant lets its bearer do, closed. */
export type GrantAction = 'output'

export interface Grant {
  readonly nodeId: NodeId
  readonly action: GrantAction
  readonly attemptId: AttemptId
}

/** How long a grant is good for, in milliseconds: long enough to connect, no longer. */
export const GRANT_LIFETIME_MS = 60_000

/** Clocks of API and node may differ by this much, in seconds. */
const CLOCK_TOLERANCE_S = 10

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
 * Signs a grant as a compact JWS (RFC 7515): the node is its audience, the attempt its subject.
 * @param privateKey Ed25519, PKCS #8 PEM
 * @param grant `expiresAt` at most a minute or so ahead; see GRANT_LIFETIME_MS
 */
export function signGrant(privateKey: string, grant: Grant & { readonly expiresAt: Date }): Promise<string> {
  return new SignJWT({ action: grant.action })
    .setProtectedHeader({ alg: ALGORITHM })
    .setIssuer(ISSUER)
    .setAudience(grant.nodeId)
    .setSubject(grant.attemptId)
    .setExpirationTime(grant.expiresAt)
    .sign(createPrivateKey(privateKey))
}

/**
 * Checks that `token` grants exactly `expected`, now.
 * @param publicKey Ed25519, SPKI PEM
 * @throws Failure unauthenticated: not signed by this key, expired, or for another node, attempt or action
 */
export async function verifyGrant(publicKey: string, token: string, expected: Grant, now = new Date()): Promise<void> {
  try {
    const { payload } = await jwtVerify(token, createPublicKey(publicKey), {
      algorithms: [ALGORITHM],
      issuer: ISSUER,
      audience: expected.nodeId,
      subject: expected.attemptId,
      requiredClaims: ['exp'],
      clockTolerance: CLOCK_TOLERANCE_S,
      currentDate: now,
    })
    if (payload.action !== expected.action) throw new errors.JWTClaimValidationFailed('another action', payload)
  } catch (error) {
    if (error instanceof errors.JOSEError) throw new Failure('unauthenticated', `grant refused: ${error.message}`)
    throw error
  }
}
