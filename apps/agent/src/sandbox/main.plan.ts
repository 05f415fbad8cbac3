// main.plan.ts: the main process of a sandbox that stays: whether it has one, which, and how it is told to end.

import { type SandboxSpec, signalNumber } from '@berth/contracts'
import type { Identity } from '../runtime/identity.js'
import { type SpawnRequest, spawnFlags } from '../runtime/init-wire.js'
import { environment, type ImageConfig, processRequest, sandboxConfinement } from './process.plan.js'

const SIGTERM = 15

/**
 * Docker's rule: `entrypoint` replaces the image's and its command with it, `command` replaces the image's command. The
 * image's own are taken only where the spec asks for them or gives a part; empty: no main process.
 */
export function mainCommand(spec: SandboxSpec, image: ImageConfig): readonly string[] {
  const { entrypoint, command, runImage } = spec
  if (entrypoint !== undefined) return [...entrypoint, ...(command ?? [])]
  if (!runImage) return command ?? []
  return [...(image.entrypoint ?? []), ...(command ?? image.command ?? [])]
}

export function mainRequest(
  spec: SandboxSpec,
  image: ImageConfig,
  command: readonly string[],
  who: Identity,
  hostname: string,
): SpawnRequest {
  return processRequest({
    command,
    env: environment(image, who.home, hostname, ...(spec.tty ? [{ TERM: 'xterm' }, spec.env] : [spec.env])),
    workingDir: spec.workingDir ?? (image.workingDir || '/'),
    who,
    confinement: sandboxConfinement(spec),
    flags: spawnFlags.main | (spec.tty ? spawnFlags.tty : 0),
    terminal: spec.tty,
    timeoutMs: 0,
    graceMs: 0,
  })
}

/** The signal that a stop begins with: that of the request, the spec's, the image's, SIGTERM. */
export const stopSignal = (asked: number | null, spec: SandboxSpec, image: ImageConfig | undefined): number =>
  asked ?? spec.stopSignal ?? signalNumber(image?.stopSignal ?? '') ?? SIGTERM

/** A name that every host name syntax takes: the random end of the sandbox's id. */
export const hostnameOf = ({ hostname }: Pick<SandboxSpec, 'hostname'>, id: string): string => hostname ?? id.slice(-12)
