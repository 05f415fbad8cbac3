// stage.ts: the mount points that all sandboxes of a node share. Each mounts its root file system there in a mount
// namespace of its own, so they never meet, and a start makes no directory for it.
//
// A sandbox's root is nobody on the host, and has to reach its root file system and berth-init by their paths before it
// is confined to them. So every directory above must let others pass (mode o+x, nothing more). berth-init is copied here
// because where it was built may be below somebody's home.

import { chmodSync, copyFileSync, mkdirSync, renameSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { Fault } from '@berth/contracts'
import { prepareTargets } from '../rootfs/overlay.js'

export interface Stage {
  /** To be given to `rootfs/overlay` as the directory of mount points. */
  readonly directory: string
  /** berth-init, readable by every sandbox. */
  readonly init: string
  /** Makes mount points for an image of so many layers. */
  prepare(layers: readonly string[]): Promise<void>
}

/**
 * Makes the stage below the agent's data directory.
 * @throws Fault naming the directory above it that a sandbox's root could not pass
 */
export function openStage(dataDirectory: string, initProgram: string): Stage {
  const directory = join(dataDirectory, 'stage')
  mkdirSync(directory, { recursive: true })
  for (const path of [dataDirectory, directory]) chmodSync(path, 0o711)
  checkPassable(dirname(dataDirectory))
  const init = join(directory, 'init')
  copyFileSync(initProgram, `${init}.new`)
  chmodSync(`${init}.new`, 0o755)
  renameSync(`${init}.new`, init) // sandboxes that run keep the one they were started with
  let prepared = -1
  return {
    directory,
    init,
    async prepare(layers) {
      if (layers.length <= prepared) return
      await prepareTargets({ layers, directory })
      prepared = layers.length
    },
  }
}

function checkPassable(path: string): void {
  if ((statSync(path).mode & 0o001) === 0) {
    const advice = `others may not pass ${path}, and a sandbox's root is one of them; run "chmod o+x ${path}" or use another data directory`
    throw new Fault('use the data directory', { cause: new Error(advice) })
  }
  if (path !== '/') checkPassable(dirname(path))
}
