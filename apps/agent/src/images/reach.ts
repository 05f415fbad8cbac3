// reach.ts: where a registry may send this node. Tenants name registries, and a registry is whatever answers there:
// its redirects and its token server could name anything that the node reaches and the tenant does not.
import { BlockList, isIP, isIPv6 } from 'node:net'

export type Nearness = 'public' | 'private' | 'link-local'

const list = (v4: readonly string[], v6: readonly string[]): BlockList => {
  const nets = new BlockList()
  for (const net of v4) add(nets, net, 'ipv4')
  for (const net of v6) add(nets, net, 'ipv6')
  return nets
}
function add(nets: BlockList, net: string, family: 'ipv4' | 'ipv6'): void {
  const [address = '', prefix] = net.split('/')
  nets.addSubnet(address, Number(prefix), family)
}

/** Where clouds tell machines their secrets (169.254.169.254, fd00:ec2::254; Azure's wire server is 168.63.129.16). */
const linkLocal = list(['169.254.0.0/16', '168.63.129.16/32'], ['fe80::/10', 'fd00:ec2::/32'])
/** IANA's special-purpose addresses that lead to no public host. */
const special = list(
  [
    ...['0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '172.16.0.0/12', '192.0.0.0/24', '192.0.2.0/24'],
    ...['192.168.0.0/16', '198.18.0.0/15', '198.51.100.0/24', '203.0.113.0/24', '224.0.0.0/4', '240.0.0.0/4'],
  ],
  ['::/128', '::1/128', '100::/64', '2001:db8::/32', 'fc00::/7', 'ff00::/8', 'fec0::/10'],
)

/** @param address without a zone */
export function nearnessOf(address: string): Nearness {
  const plain = embedded(address) ?? address
  const family = isIPv6(plain) ? 'ipv6' : 'ipv4'
  if (linkLocal.check(plain, family)) return 'link-local'
  return special.check(plain, family) ? 'private' : 'public'
}

/**
 * The IPv4 address in an IPv6 one: mapped (::ffff:0:0/96), translated (::ffff:0:0:0/96), compatible (::/96), NAT64
 * (64:ff9b::/96) and 6to4 (2002::/16).
 */
function embedded(address: string): string | undefined {
  if (!isIPv6(address)) return undefined
  const words = wordsOf(address)
  const at = (index: number) => words[index] ?? 0
  const dotted = (high: number, low: number) => [high >> 8, high & 255, low >> 8, low & 255].join('.')
  const zero = (from: number, to: number) => words.slice(from, to).every((word) => word === 0)
  if (at(0) === 0x2002) return dotted(at(1), at(2))
  if (at(0) === 0x64 && at(1) === 0xff9b) return dotted(at(6), at(7))
  if (zero(0, 5) && at(5) === 0xffff) return dotted(at(6), at(7))
  if (zero(0, 4) && at(4) === 0xffff && at(5) === 0) return dotted(at(6), at(7))
  return zero(0, 6) && at(6) !== 0 ? dotted(at(6), at(7)) : undefined
}

/** The eight words of an IPv6 address. */
function wordsOf(address: string): readonly number[] {
  const plain = address.split('%')[0] ?? ''
  const v4 = /(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(plain)
  const [a = 0, b = 0, c = 0, d = 0] = v4?.slice(1).map(Number) ?? []
  const text = v4 ? `${plain.slice(0, v4.index)}${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}` : plain
  const [head = '', tail] = text.split('::')
  const words = (part: string) => (part === '' ? [] : part.split(':').map((word) => Number.parseInt(word, 16)))
  const [before, after] = [words(head), words(tail ?? '')]
  return tail === undefined ? before : [...before, ...Array<number>(8 - before.length - after.length).fill(0), ...after]
}

export interface Reach {
  /** Whether the operator lets this registry be at a private address. */
  readonly privateAddresses: boolean
  /** Host of the endpoint that the operator or the tenant named. */
  readonly endpointHost: string
}

/** Whether a connection to `host` may go to `address`. Link-local: only where the endpoint itself is there. */
export function mayConnect(host: string, address: string, { privateAddresses, endpointHost }: Reach): boolean {
  const nearness = nearnessOf(address)
  if (nearness === 'public') return true
  return privateAddresses && (nearness === 'private' || host === endpointHost)
}

/** The host of a URL as an address, without brackets; undefined for a name. */
export function addressIn(url: URL): string | undefined {
  const host = url.hostname.replace(/^\[|\]$/g, '')
  return isIP(host) ? host : undefined
}

export type Move = { readonly to: URL; readonly keepsLogin: boolean } | { readonly refused: string }

/**
 * Where a `Location` leads.
 * @param endpoint what was asked for in the first place
 */
export function follow(endpoint: URL, from: URL, location: string): Move {
  if (!URL.canParse(location, from.href)) return { refused: 'a redirect to no URL' }
  const to = new URL(location, from.href)
  const move = checkUrl(endpoint, to)
  if (move !== undefined) return { refused: `a redirect ${move}` }
  if (from.protocol === 'https:' && to.protocol !== 'https:') return { refused: 'a redirect from https to http' }
  return { to, keepsLogin: to.origin === endpoint.origin }
}

/** Why a URL that an endpoint names (a redirect's, a token server's) is not asked; undefined where it may be. */
export function checkUrl(endpoint: URL, to: URL): string | undefined {
  if (to.protocol !== 'https:' && to.protocol !== 'http:') return `to ${to.protocol}`
  if (to.protocol === 'http:' && endpoint.protocol !== 'http:') return 'from https to http'
  return to.username !== '' || to.password !== '' ? 'with a login in it' : undefined
}
