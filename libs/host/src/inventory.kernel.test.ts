import { mkdirSync } from 'node:fs'
import { mkdtemp, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { startIn, until } from './cgroup.contract.js'
import { cgroupLayout, openCgroups } from './cgroup-layout.js'
import { removeTree } from './files.js'
import { takeInventory } from './inventory.js'
import { mount, unmount } from './mount.js'
import { expectSuccess, run } from './run.js'
import { Unwind } from './unwind.js'

const cgroupParent = `berth-i${process.pid}`
const empty = { processes: [], mounts: [], cgroups: [], loops: [], trees: [], links: [], netns: [] }
const cgroups = openCgroups()
const undo = new Unwind()
let dataDir = ''
const take = async () => {
  const { links, netns, ...rest } = await takeInventory({ cgroupParent, dataDir, trees: ['agent/attempts'] })
  return { ...rest, links: links.filter((name) => name.includes(cgroupParent)), netns: netns.filter(() => false) }
}

beforeEach(async () => {
  dataDir = await mkdtemp(join(tmpdir(), 'berth-inv-'))
  undo.add(() => removeTree(dataDir))
})
afterEach(() => undo.run())

test('an instance that has nothing has an empty inventory', async () => {
  expect(await take()).toEqual(empty)
})

test('groups and their processes are found, and are gone after the clean-up', async () => {
  const layout = cgroupLayout()
  cgroups.create(`${cgroupParent}/ten`)
  undo.add(() => cgroups.remove(cgroupParent))
  undo.add(() => cgroups.kill(cgroupParent))
  const directories = layout.kind === 'v2' ? [layout.unified ?? ''] : layout.hierarchies.map((h) => h.path)
  const child = await startIn(
    directories.map((path) => `${path}/${cgroupParent}/ten`),
    'exec sleep 1000',
  )
  await until('the exec', () => cgroups.processes(cgroupParent).length === 1)
  const found = await take()
  expect(found.cgroups).toEqual([cgroupParent, `${cgroupParent}/ten`])
  expect(found.processes).toHaveLength(1)
  expect(found.processes[0]).toMatch(new RegExp(`^${child.pid} (sh|sleep)$`))
  await cgroups.kill(cgroupParent)
  await cgroups.remove(cgroupParent)
  expect(await take()).toEqual(empty)
})

test('mounts, loop devices and attempts are found', async () => {
  const image = join(dataDir, 'pool.img')
  await writeFile(image, '')
  await truncate(image, 8 << 20)
  const device = expectSuccess(await run(['losetup', '--find', '--show', image])).stdout.trim()
  undo.add(() => run(['losetup', '-d', device]))
  for (const name of ['tmp', 'agent/attempts/att_1']) mkdirSync(join(dataDir, name), { recursive: true })
  await mount({ source: 'tmpfs', target: join(dataDir, 'tmp'), type: 'tmpfs', options: ['size=64k'] })
  undo.add(() => unmount(join(dataDir, 'tmp')))
  expect(await take()).toEqual({
    ...empty,
    mounts: [`${dataDir}/tmp (tmpfs)`],
    loops: [`${device} ${image}`],
    trees: ['agent/attempts/att_1'],
  })
})

test('an overlay in a private mount namespace is found through the process that holds it', async () => {
  for (const name of ['lower', 'upper', 'work', 'merged']) mkdirSync(join(dataDir, name))
  const options = `lowerdir=${dataDir}/lower,upperdir=${dataDir}/upper,workdir=${dataDir}/work`
  const script = 'mount -n -t overlay overlay -o "$1" "$2" && cd / && exec sleep 1000'
  const controller = new AbortController()
  const args: [string, ...string[]] = ['unshare', '-m', 'sh', '-c', script, 'sh', options, join(dataDir, 'merged')]
  const running = run(args, { signal: controller.signal })
  undo.add(async () => {
    controller.abort()
    await running
  })
  const wanted = `${dataDir}/merged (overlay)`
  let found: readonly string[] = []
  for (let i = 0; i < 1000 && !found.includes(wanted); i++) found = (await take()).mounts
  expect(found).toEqual([wanted])
  controller.abort()
  await running
  expect(await take()).toMatchObject({ mounts: [], processes: [] })
})
