// stage.ts: the mount points that all sandboxes of a node share. Each mounts its root file system there in a mount
// namespace of its own, so they never meet, and a start makes no directory for it.
//
// A sandbox's root is nobody on the host, and has to reach its root file system and our programs by their paths before it
// is confined to them. So every directory above must let others pass (mode o+x, nothing more). The programs are copied
// here because where they were built may be below somebody's home.

import { chmodSync, copyFileSync, mkdirSync, renameSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { Fault } from '@berth/contracts'
import { prepareTargets } from '../rootfs/overlay.js'

export interface Stage {
  /** To be given to `rootfs/overlay` as the directory of mount points. */
  readonly directory: string
  /** Directory of `init` and `files`, which is all that there is in it: sandboxes see it. */
  readonly programs: string
  /** Makes mount points for so many layers at once, and so many other things that are attached. */
  prepare(layers: number, attachments: number): Promise<void>
}

/** As they were built → as sandboxes see them. */
const programs = { 'berth-init': 'init', 'berth-files': 'files' } as const

/**
 * Makes the stage below the agent's data directory.
 * @param built directory of the programs
 * @throws Fault naming the directory above it that a sandbox's root could not pass
 */
export function openStage(dataDirectory: string, built: string): Stage {
  const directory = join(dataDirectory, 'stage')
  mkdirSync(directory, { recursive: true })
  for (const path of [dataDirectory, directory]) chmodSync(path, 0o711)
  checkPassable(dirname(dataDirectory))
  const seen = join(directory, 'programs')
  mkdirSync(seen, { recursive: true })
  chmodSync(seen, 0o755)
  for (const [name, as] of Object.entries(programs)) place(join(built, name), join(directory, 'new'), join(seen, as))
  let prepared = { layers: -1, attachments: 0 }
  return {
    directory,
    programs: seen,
    async prepare(layers, attachments) {
      if (layers <= prepared.layers && attachments <= prepared.attachments) return
      await prepareTargets(directory, layers, attachments)
      prepared = {
        layers: Math.max(layers, prepared.layers),
        attachments: Math.max(attachments, prepared.attachments),
      }
    },
  }
}

/** Sandboxes that run keep the berth-init they were started with, and run the new berth-files, which we know. */
function place(from: string, meanwhile: string, to: string): void {
  copyFileSync(from, meanwhile)
  chmodSync(meanwhile, 0o755)
  renameSync(meanwhile, to)
}

function checkPassable(path: string): void {
  if ((statSync(path).mode & 0o001) === 0) {
    const advice = `others may not pass ${path}, and a sandbox's root is one of them; run "chmod o+x ${path}" or use another data directory`
    throw new Fault('use the data directory', { cause: new Error(advice) })
  }
  if (path !== '/') checkPassable(dirname(path))
}
