// registry.plan.ts: which registries may be spoken to, and how. Tenants name registries, so the default is: over TLS, at
// public addresses, by names that could be some. What else is allowed, the operator lists. That a good-looking name does
// not lead to a private address, the node checks at the address that it connects to.
import { Failure } from '@berth/contracts'
import type { Config } from '../config.js'

/** As a node is told, but for certificates and login. */
export interface RegistryRoute {
  readonly endpoints: readonly string[]
  readonly privateAddresses: boolean
}

type Listed = Pick<Config, 'BERTH_REGISTRY_MIRRORS' | 'BERTH_INSECURE_REGISTRIES' | 'BERTH_PRIVATE_REGISTRIES'>

/** Where Docker Hub's registry really is. */
const hosts: Readonly<Record<string, string>> = { 'docker.io': 'registry-1.docker.io' }

/**
 * How a registry is spoken to.
 * @param registry as names in full write it: host with an optional port
 * @throws policy_forbidden
 */
export function routeTo(registry: string, listed: Listed, use: 'pull' | 'push'): RegistryRoute {
  const mirrors = listed.BERTH_REGISTRY_MIRRORS[registry] ?? []
  const insecure = listed.BERTH_INSECURE_REGISTRIES.includes(registry)
  const isListed = insecure || mirrors.length > 0 || listed.BERTH_PRIVATE_REGISTRIES.includes(registry)
  if (!isListed && !isPublicName(registry)) {
    const message = `registry ${registry} is not public; the operator can list it in BERTH_PRIVATE_REGISTRIES`
    throw new Failure('policy_forbidden', message, { policy: 'registries' })
  }
  const own = `${insecure ? 'http' : 'https'}://${hosts[registry] ?? registry}`
  return { endpoints: [...(use === 'pull' ? mirrors : []), own], privateAddresses: isListed }
}

/** Whether a host is a name with a dot in it, and no address: no registry of the public is reached by an address. */
function isPublicName(registry: string): boolean {
  if (!URL.canParse(`https://${registry}`)) return false
  // Which writes every form of an IPv4 address (0x7f.1, 2130706433) as four numbers.
  const { hostname } = new URL(`https://${registry}`)
  const last = hostname.split('.').at(-1) ?? ''
  return hostname.includes('.') && !/^\d*$/.test(last) && !['localhost', 'local', 'internal'].includes(last)
}
