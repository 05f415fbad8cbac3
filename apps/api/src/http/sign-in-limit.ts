// sign-in-limit.ts: how often one address may try keys that are none. Keys cannot be guessed; this keeps trying from
// costing anything. Only failures count: a try is taken from the address's allowance, and given back where it was good.
import { isIP } from 'node:net'
import { Failure } from '@berth/contracts'

/** Failures in a row, and how long one takes to be forgotten, in milliseconds. */
const BURST = 10
const REGAIN_MS = 6000
/** Addresses remembered; who has failed longest ago is forgotten first. */
const MAX_ADDRESSES = 10_000

/** Who is meant by an address: of IPv6 its /64, which is what one subscriber has. */
export function addressGroup(address: string): string {
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1]
  if (mapped) return mapped
  if (isIP(address) !== 6) return address
  const [head = '', tail] = (address.split('%')[0] ?? '').toLowerCase().split('::')
  const before = head === '' ? [] : head.split(':')
  const after = tail === undefined || tail === '' ? [] : tail.split(':')
  // A dotted quad at the end stands for two groups; it is beyond the first four in any case.
  const zeros = tail === undefined ? 0 : Math.max(0, 8 - before.length - after.length)
  const groups = [...before, ...Array<string>(zeros).fill('0'), ...after]
  return `${groups
    .slice(0, 4)
    .map((group) => group.replace(/^0+(?=.)/, ''))
    .join(':')}::/64`
}

export class SignInLimit {
  private readonly failures = new Map<string, { count: number; at: number }>()

  /** @param nowMs Unix milliseconds. @throws rate_limited when the address has failed too often */
  take(address: string, nowMs: number): void {
    const group = addressGroup(address)
    const count = this.countOf(group, nowMs)
    if (count > BURST - 1) {
      const waitS = Math.ceil(((count - (BURST - 1)) * REGAIN_MS) / 1000)
      throw new Failure('rate_limited', `too many failed sign-ins from this address; try again in ${waitS} s`, {
        retryAfterSeconds: waitS,
      })
    }
    this.note(group, count + 1, nowMs)
  }

  /** The try was no failure. */
  giveBack(address: string, nowMs: number): void {
    const group = addressGroup(address)
    this.note(group, this.countOf(group, nowMs) - 1, nowMs)
  }

  private countOf(group: string, nowMs: number): number {
    const known = this.failures.get(group)
    return known ? Math.max(0, known.count - Math.max(0, nowMs - known.at) / REGAIN_MS) : 0
  }

  private note(group: string, count: number, at: number): void {
    this.failures.delete(group)
    if (count <= 0) return
    const [oldest] = this.failures.size >= MAX_ADDRESSES ? this.failures.keys() : []
    if (oldest !== undefined) this.failures.delete(oldest)
    this.failures.set(group, { count, at })
  }
}
