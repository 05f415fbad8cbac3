import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import type { Cgroups } from './cgroup.js'

/** Directories of a group, in every hierarchy that a process has to be put into. */
export type Directories = (group: string) => readonly string[]

/** Waits until it holds. @throws after 10 s */
export async function until(what: string, holds: () => boolean): Promise<void> {
  const deadline = performance.now() + 10_000
  while (!holds()) {
    if (performance.now() > deadline) throw new Error(`waited in vain: ${what}`)
    await delay(2)
  }
}

/** Starts a shell script that is in the group before it does anything. Kill it through the group. */
export async function startIn(directories: readonly string[], script: string): Promise<ChildProcess> {
  const child = spawn('sh', ['-c', `read go; ${script}`], { stdio: ['pipe', 'ignore', 'ignore'] })
  await once(child, 'spawn')
  for (const directory of directories) writeFileSync(`${directory}/cgroup.procs`, String(child.pid))
  child.stdin?.end('go\n')
  return child
}

/** What holds for the cgroups of every version, on a real kernel. `parent` is a group of the test's own. */
export function cgroupContract(open: () => Cgroups, directories: Directories, parent: string): void {
  let cgroups: Cgroups
  let counted: string | undefined
  beforeEach(() => {
    cgroups = open()
  })
  afterEach(async () => {
    await cgroups.kill(parent)
    await cgroups.remove(parent)
    if (counted) rmSync(counted, { recursive: true })
    counted = undefined
  })

  test('create makes the ancestors too, and is idempotent', () => {
    cgroups.create(`${parent}/tenant`)
    cgroups.create(`${parent}/tenant`)
    expect(cgroups.children(parent)).toEqual(['tenant'])
    expect(cgroups.children(`${parent}/tenant`)).toEqual([])
    expect(cgroups.usage(`${parent}/tenant`)).toMatchObject({ pids: 0, oomKills: 0 })
  })

  test('create makes nothing where a limit is refused, and leaves what was there', () => {
    const refused = { pids: 5, cpuset: '4000' }
    expect(() => cgroups.create(`${parent}/tenant/one`, refused)).toThrow('cpuset.cpus')
    expect(cgroups.children(`${parent}/tenant`)).toEqual([])
    for (const directory of directories(`${parent}/tenant/one`)) expect(existsSync(directory)).toBe(false)
    cgroups.create(`${parent}/tenant/one`)
    expect(() => cgroups.create(`${parent}/tenant/one`, refused)).toThrow('cpuset.cpus')
    expect(cgroups.children(`${parent}/tenant`)).toEqual(['one'])
  })

  test('a group that is not there: nothing in it, nothing to do', async () => {
    const none = `${parent}/none`
    expect(cgroups.traffic(none)).toBeUndefined()
    expect(cgroups.usage(none)).toBeUndefined()
    expect(cgroups.children(none)).toEqual([])
    expect(cgroups.processes(none)).toEqual([])
    await cgroups.kill(none)
    await cgroups.remove(none)
    expect(() => cgroups.setLimits(none, { pids: 5 })).toThrow(none)
  })

  test('processes are found below, killed, and the tree goes', async () => {
    cgroups.create(`${parent}/tenant/a`)
    cgroups.create(`${parent}/tenant/b`)
    const a = await startIn(directories(`${parent}/tenant/a`), 'sleep 1000 & wait')
    const b = await startIn(directories(`${parent}/tenant/b`), 'exec sleep 1000')
    await until('the child of a', () => cgroups.processes(`${parent}/tenant/a`).length === 2)
    expect(cgroups.processes(parent)).toEqual(expect.arrayContaining([a.pid, b.pid]))
    expect(cgroups.processes(`${parent}/tenant/b`)).toEqual([b.pid])
    await cgroups.kill(parent)
    expect(cgroups.processes(parent)).toEqual([])
    await cgroups.remove(parent)
    for (const directory of directories(parent)) expect(existsSync(directory)).toBe(false)
  })

  test('processes that flee by forking and ending are all caught', async () => {
    cgroups.create(`${parent}/comet`)
    const comet = 'f() { f & exit 0; }; f'
    for (let i = 0; i < 4; i++) await startIn(directories(`${parent}/comet`), comet)
    await cgroups.kill(`${parent}/comet`)
    expect(cgroups.processes(`${parent}/comet`)).toEqual([])
    await cgroups.remove(`${parent}/comet`)
    expect(cgroups.children(parent)).toEqual([])
  })

  test('a group that somebody else removes while it is being killed is just gone', async () => {
    for (let i = 0; i < 50; i++) {
      const group = `${parent}/fleeting${i}`
      cgroups.create(group)
      await startIn(directories(group), 'exec sleep 1000')
      await Promise.all([cgroups.kill(group), cgroups.remove(group)])
      expect(cgroups.processes(group)).toEqual([])
    }
  })

  test('remove gives up on a group with a living process, and says which', async () => {
    cgroups.create(`${parent}/busy`)
    await startIn(directories(`${parent}/busy`), 'exec sleep 1000')
    await expect(cgroups.remove(`${parent}/busy`)).rejects.toThrow(`remove cgroup ${parent}/busy`)
  })

  /** Starts something that counts in a file. @returns what it has counted */
  async function startCounting(group: string): Promise<() => number> {
    counted = mkdtempSync(join(tmpdir(), 'berth-freeze-'))
    const file = join(counted, 'count')
    await startIn(
      directories(group),
      `i=0; while :; do i=$((i+1)); echo $i > ${file}.new; mv ${file}.new ${file}; done`,
    )
    const count = () => Number(existsSync(file) ? readFileSync(file, 'utf8') : 0)
    await until('it counts', () => count() > 0)
    return count
  }

  test('what is frozen stands still until it is thawed, sub-groups too', async () => {
    cgroups.create(`${parent}/tenant/a`)
    const count = await startCounting(`${parent}/tenant/a`)
    expect(cgroups.frozen(`${parent}/tenant`)).toBe(false)
    await cgroups.freeze(`${parent}/tenant`)
    await cgroups.freeze(`${parent}/tenant`)
    expect(cgroups.frozen(`${parent}/tenant`)).toBe(true)
    const before = count()
    await delay(50)
    expect(count()).toBe(before)
    cgroups.thaw(`${parent}/tenant`)
    cgroups.thaw(`${parent}/tenant`)
    expect(cgroups.frozen(`${parent}/tenant`)).toBe(false)
    await until('it goes on', () => count() > before)
  })

  test('what is frozen can be killed, and does not go on before it dies', async () => {
    cgroups.create(`${parent}/frozen`)
    const count = await startCounting(`${parent}/frozen`)
    await cgroups.freeze(`${parent}/frozen`)
    const before = count()
    await cgroups.kill(`${parent}/frozen`)
    expect(cgroups.processes(`${parent}/frozen`)).toEqual([])
    expect(count()).toBe(before)
    await cgroups.remove(`${parent}/frozen`)
  })

  test('a group that is not there is not frozen, and cannot be', async () => {
    expect(cgroups.frozen(`${parent}/none`)).toBe(false)
    cgroups.thaw(`${parent}/none`)
    await expect(cgroups.freeze(`${parent}/none`)).rejects.toThrow(`${parent}/none`)
  })
}
