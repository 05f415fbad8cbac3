// abilities.ts: what this machine lets the agent do for sandboxes, read once when it starts.

import { readFileSync } from 'node:fs'
import { cpus } from 'node:os'
import type { UlimitName } from '@berth/contracts'
import type { Abilities } from './shape.plan.js'

/** As /proc/<pid>/limits calls them (proc(5)). */
const titles: Readonly<Record<UlimitName, string>> = {
  cpu: 'Max cpu time',
  fsize: 'Max file size',
  data: 'Max data size',
  stack: 'Max stack size',
  core: 'Max core file size',
  rss: 'Max resident set',
  nproc: 'Max processes',
  nofile: 'Max open files',
  memlock: 'Max locked memory',
  locks: 'Max file locks',
  sigpending: 'Max pending signals',
  msgqueue: 'Max msgqueue size',
  nice: 'Max nice priority',
  rtprio: 'Max realtime priority',
  rttime: 'Max realtime timeout',
}

/** CAP_SYS_RESOURCE, linux/capability.h. */
const SYS_RESOURCE = 24n

/** @param weighsIo whether the kernel can weigh disk access, which only a control group can tell */
export function abilitiesOf(weighsIo: boolean): Abilities {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'
  return {
    hardLimits: hardLimits(readFileSync('/proc/self/limits', 'utf8')),
    raisesLimits: ((BigInt(`0x${effective}`) >> SYS_RESOURCE) & 1n) === 1n,
    weighsIo,
    cpus: cpus().length,
  }
}

/** Hard limits of /proc/<pid>/limits by name; those that are unlimited are not among them. */
export function hardLimits(text: string): Abilities['hardLimits'] {
  const lines = text.split('\n')
  return Object.fromEntries(
    Object.entries(titles).flatMap(([name, title]) => {
      const values = lines
        .find((line) => line.startsWith(title))
        ?.slice(title.length)
        .trim()
        .split(/\s+/)
      const hard = Number(values?.[1])
      return Number.isFinite(hard) ? [[name, hard]] : []
    }),
  )
}
