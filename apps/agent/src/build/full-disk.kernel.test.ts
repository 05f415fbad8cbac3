// A disk that is full in the middle of a build, or of a commit: whoever asked is told so, nothing is left of it, the store is
// whole, and once there is room the same is done.
import { execFileSync } from 'node:child_process'
import { mkdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expectSuccess, run, takeInventory } from '@berth/host'
import { afterEach, beforeAll, beforeEach, expect, test } from '@jest/globals'
import { newNodeDirectory } from '../sandbox/node.fixture.js'

const repository = join(import.meta.dirname, '../../../..')
let place: ReturnType<typeof newNodeDirectory>

// It has its mounts for itself, so it is a process of its own, of what is built.
beforeAll(() => {
  execFileSync(join(repository, 'node_modules/.bin/tsc'), ['-b', 'apps/agent'], { cwd: repository })
})
beforeEach(() => {
  place = newNodeDirectory()
})
afterEach(async () => {
  const { directory: dataDir, cgroupParent } = place
  const nothing = { processes: [], mounts: [], cgroups: [], loops: [] }
  expect(await takeInventory({ dataDir, cgroupParent })).toMatchObject(nothing)
  rmSync(dataDir, { recursive: true })
})

test('a full disk is told as such, leaves nothing, and hinders nothing once there is room', async () => {
  const { directory, cgroupParent } = place
  const disk = join(directory, 'disk.img')
  writeFileSync(disk, '')
  truncateSync(disk, 160 * 1024 ** 2)
  mkdirSync(join(directory, 'agent'), { mode: 0o711 })
  const mounted =
    'mkfs.btrfs --quiet --mixed "$1" >/dev/null && mount -o loop,noatime "$1" "$2" && shift 2 && exec "$@"'
  const script = join(repository, 'apps/agent/dist/build/full-disk.fixture.js')
  const argv = [
    ...(['unshare', '--mount', 'sh', '-c', mounted, 'sh', disk, join(directory, 'agent')] as const),
    ...[process.execPath, script, directory, cgroupParent],
  ] as const
  const { stdout, stderr } = expectSuccess(await run(argv, { timeoutMs: 90_000 }))
  const told = (where: string) => ({ code: 'no_capacity', message: `${where}the disk of the node is full`, left: [] })
  expect(JSON.parse(stdout)).toEqual({
    'a layer that is too large': told('line 2, RUN: '),
    'before a build': told(''),
    'before a command': told('line 2, RUN: '),
    'before a layer': told('line 2, RUN: '),
    'before a copy': told('line 3, COPY: '),
    commit: told(''),
  })
  expect(stderr).toBe('')
}, 120_000)
