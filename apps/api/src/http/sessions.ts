// sessions.ts: when a browser's session counts. A browser sends the cookie with requests that any page makes it send, so
// the cookie alone proves nothing: the request must also show that a page of this API made it. Other sites can neither
// set the header `x-berth-session` (the preflight that it needs is not answered) nor choose what `Origin` says; a
// WebSocket cannot carry the header, but always carries `Origin`.
import type { IncomingHttpHeaders } from 'node:http'
import { Failure, SESSION_HEADER } from '@berth/contracts'

/** What a request says of itself, and where it came from. */
export interface Asking {
  readonly headers: IncomingHttpHeaders
  /** Scheme, host and port under which browsers find this API: BERTH_PUBLIC_URL, or what the request was sent to. */
  readonly ownOrigin: string
  /** Of the client, or of the proxy before us where it is not a trusted one. */
  readonly address: string
}

const isHttps = (origin: string): boolean => origin.startsWith('https:')

/**
 * `__Host-` makes browsers refuse the cookie from other hosts of the same domain, and needs https (RFC 6265bis, 4.1.3.2).
 */
export const cookieName = (ownOrigin: string): string => (isHttps(ownOrigin) ? '__Host-berth' : 'berth')

/** `Set-Cookie` of a session; without a token the one that ends it. */
export function sessionCookie(ownOrigin: string, token: string | undefined, maxAgeS: number): string {
  const secure = isHttps(ownOrigin) ? '; Secure' : ''
  const age = token === undefined ? 0 : maxAgeS
  return `${cookieName(ownOrigin)}=${token ?? ''}; Path=/; Max-Age=${age}; HttpOnly; SameSite=Strict${secure}`
}

/** The session's token in the cookies; undefined where there is none, or more than one (one of them was planted). */
export function sessionTokenOf({ headers, ownOrigin }: Pick<Asking, 'headers' | 'ownOrigin'>): string | undefined {
  const name = `${cookieName(ownOrigin)}=`
  const found = (headers.cookie ?? '')
    .split(';')
    .map((pair) => pair.trim())
    .filter((pair) => pair.startsWith(name))
    .map((pair) => pair.slice(name.length))
  return found.length === 1 ? found[0] : undefined
}

const isUpgrade = (headers: IncomingHttpHeaders): boolean => headers.upgrade?.toLowerCase() === 'websocket'

/** Whether a request claims to come from the console: then its cookie is its credential. */
export const claimsSession = ({ headers }: Pick<Asking, 'headers'>): boolean =>
  headers[SESSION_HEADER] !== undefined || (isUpgrade(headers) && headers.origin !== undefined)

/** @throws origin_forbidden unless a page of this API made the request */
export function requireOwnPage(asking: Pick<Asking, 'headers' | 'ownOrigin'>): void {
  const { headers, ownOrigin } = asking
  if (!claimsSession(asking))
    throw new Failure('origin_forbidden', `send the header ${SESSION_HEADER}: sessions are for the console`)
  if (headers.origin === undefined || headers.origin === ownOrigin) return
  const detail = `the request comes from ${headers.origin.slice(0, 200)}, this is ${ownOrigin}; behind a proxy, set BERTH_PUBLIC_URL`
  throw new Failure('origin_forbidden', detail)
}
