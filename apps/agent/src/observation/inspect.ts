// inspect.ts: what a sandbox really runs with: its spec with everything that image, defaults and node add to it.
import { Failure, type SandboxInspection, signalNames } from '@berth/contracts'
import { capabilitiesOf } from '@berth/oci'
import { type Identity, identify, readAccounts, UserNotFound } from '../runtime/identity.js'
import type { LiveSandbox } from '../sandbox/live.js'
import { mainCommand, mainRequest, stopSignal } from '../sandbox/main.plan.js'
import { sandboxCapabilities } from '../sandbox/process.plan.js'

/** @throws Failure wrong_state before its first start: it is on no image yet */
export function inspect(live: LiveSandbox, runtime: string): SandboxInspection {
  const { spec, image, hostname, ids } = live
  if (!image) throw new Failure('wrong_state', `sandbox ${live.id} has not been started yet`)
  const command = mainCommand(spec, image.config)
  const who = identityOf(live, [live.upper, ...image.layers])
  const process = mainRequest(spec, image.config, command, who ?? nobody, hostname)
  const signal = stopSignal(null, spec, image.config)
  return {
    image: { reference: image.reference, digest: image.digest },
    command: [...command],
    env: [...process.env],
    workingDir: process.cwd,
    uid: who?.uid ?? null,
    gid: who?.gid ?? null,
    groups: [...(who?.groups ?? [])],
    hostname,
    stopSignal: signalNames[signal - 1] ?? String(signal),
    capabilities: [...capabilitiesOf(sandboxCapabilities(spec))],
    limits: spec.limits,
    runtime,
    hostIds: { base: ids.base, count: ids.count },
  }
}

const nobody: Identity = { uid: 0, gid: 0, groups: [], home: '/' }

/** Undefined where the user is not there (any more): then nothing can be started as it. */
function identityOf({ spec, image, ids }: LiveSandbox, layers: readonly string[]): Identity | undefined {
  try {
    return identify(spec.user ?? image?.config.user, readAccounts(layers), ids.count, spec.groups)
  } catch (error) {
    if (error instanceof UserNotFound) return undefined
    throw error
  }
}
