import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { CgroupsV2 } from './cgroup-v2.js'

// A directory of plain files stands for the kernel's: what is written where is compared by value. The kernel's part
// (a group's files appear with it) is played by `group`.
let root = ''
const controls = (directory: string, extra: Record<string, string> = {}) => {
  mkdirSync(directory, { recursive: true })
  const files = { 'cgroup.procs': '', 'cgroup.subtree_control': '', ...extra }
  for (const [name, value] of Object.entries(files)) writeFileSync(join(directory, name), value)
}
// Empty, since a plain file keeps the tail of a longer value that a shorter one is written over.
const limits = {
  ...{ 'memory.max': '', 'memory.swap.max': '', 'memory.low': '', 'cpu.max': '', 'cpu.weight': '', 'pids.max': '' },
  ...{ 'cpuset.cpus': '', 'io.weight': '' },
}
const group = (name: string) => controls(join(root, name), limits)
const read = (path: string) => readFileSync(join(root, path), 'utf8')

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'berth-cg2-'))
  controls(root, {
    'cgroup.controllers': 'cpuset cpu io memory hugetlb pids\n',
    'cgroup.subtree_control': 'cpu memory',
  })
})
afterEach(() => rm(root, { recursive: true, force: true }))

test('ancestors pass down what they do not yet, the group itself does not', () => {
  group('berth')
  group('berth/ten_1')
  new CgroupsV2(root).create('berth/ten_1')
  expect(read('cgroup.subtree_control')).toBe('+cpuset +io +pids')
  expect(read('berth/cgroup.subtree_control')).toBe('+cpuset +cpu +io +memory +pids')
  expect(read('berth/ten_1/cgroup.subtree_control')).toBe('')
})

test('limits: no swap beside the memory, CPU as quota and period', () => {
  group('berth')
  const cgroups = new CgroupsV2(root)
  cgroups.create('berth', { memoryBytes: 1 << 20, cpuMillis: 1500, pids: 64 })
  expect(read('berth/memory.max')).toBe('1048576')
  expect(read('berth/memory.swap.max')).toBe('0')
  expect(read('berth/cpu.max')).toBe('150000 100000')
  expect(read('berth/pids.max')).toBe('64')
})

test('what a sandbox may set besides; weights of v1 become those of v2', () => {
  group('more')
  const cgroups = new CgroupsV2(root)
  cgroups.setLimits('more', {
    memoryBytes: 1 << 20,
    swapBytes: 4096,
    memoryReservationBytes: 8192,
    cpuMillis: 500,
    cpuPeriodUs: 20_000,
    cpuShares: 1024,
    cpuset: '0-1',
    ioWeight: 1000,
  })
  expect(read('more/memory.swap.max')).toBe('4096')
  expect(read('more/memory.low')).toBe('8192')
  expect(read('more/cpu.max')).toBe('10000 20000')
  expect(read('more/cpu.weight')).toBe('40')
  expect(read('more/cpuset.cpus')).toBe('0-1')
  expect(read('more/io.weight')).toBe('10000')
  controls(join(root, 'bfq'), { 'io.bfq.weight': '' })
  cgroups.setLimits('bfq', { ioWeight: 10 })
  expect(read('bfq/io.bfq.weight')).toBe('10')
  expect(cgroups.weighsIo('bfq')).toBe(true)
  controls(join(root, 'bfq'), { 'io.bfq.weight': '' })
  cgroups.setLimits('bfq', { ioWeight: 'default' })
  expect(read('bfq/io.bfq.weight')).toBe('100')
  controls(join(root, 'more'), { 'io.weight': '' })
  cgroups.setLimits('more', { ioWeight: 'default' })
  expect(read('more/io.weight')).toBe('100')
  controls(join(root, 'none'))
  expect(() => cgroups.setLimits('none', { ioWeight: 'default' })).not.toThrow()
  expect(() => cgroups.setLimits('none', { ioWeight: 100 })).toThrow('io.weight')
  expect(cgroups.weighsIo('none')).toBe(false)
})

test('the least quota is what the kernel takes, and max lifts a limit', () => {
  group('least')
  group('lifted')
  const cgroups = new CgroupsV2(root)
  cgroups.setLimits('least', { cpuMillis: 1 })
  cgroups.setLimits('lifted', { cpuMillis: 'max', memoryBytes: 'max', pids: 'max' })
  expect(read('least/cpu.max')).toBe('1000 100000')
  expect(read('lifted/cpu.max')).toBe('max 100000')
  expect(read('lifted/memory.max')).toBe('max')
  expect(read('lifted/memory.swap.max')).toBe('max')
})

test('usage in our units; a group that is gone has none', () => {
  controls(join(root, 'berth'), {
    'cpu.stat': 'usage_usec 1234\nuser_usec 1000\nthrottled_usec 55\n',
    'memory.current': '4096\n',
    'memory.peak': '8192\n',
    'memory.events': 'low 0\noom 3\noom_kill 2\n',
    'pids.current': '5\n',
    'pids.events': 'max 7\n',
  })
  const cgroups = new CgroupsV2(root)
  expect(cgroups.usage('berth')).toEqual({
    cpuUsageUs: 1234,
    cpuThrottledUs: 55,
    memoryBytes: 4096,
    memoryPeakBytes: 8192,
    oomKills: 2,
    pids: 5,
    pidsRefused: 7,
  })
  expect(cgroups.usage('gone')).toBeUndefined()
})

test('a kernel without memory.peak and swap accounting', () => {
  controls(join(root, 'old'), { 'memory.current': '4096\n', 'memory.max': '' })
  const cgroups = new CgroupsV2(root)
  expect(cgroups.usage('old')).toMatchObject({ memoryBytes: 4096, memoryPeakBytes: 4096 })
  cgroups.setLimits('old', { memoryBytes: 4096 })
  expect(read('old/memory.max')).toBe('4096')
})

test('processes of a whole tree, sorted, each once; sub-groups by name', () => {
  controls(join(root, 'berth'), { 'cgroup.procs': '' })
  controls(join(root, 'berth/b'), { 'cgroup.procs': '30\n20\n' })
  controls(join(root, 'berth/a/deep'), { 'cgroup.procs': '10\n0\n' })
  const cgroups = new CgroupsV2(root)
  expect(cgroups.processes('berth')).toEqual([10, 20, 30])
  expect(cgroups.children('berth')).toEqual(['a', 'b'])
  expect(cgroups.children('none')).toEqual([])
})

test.each(['', '/abs', 'a/../b', '..', 'a//b', 'a/', 'a b', 'a\n'])('the name %j is refused', (name) => {
  expect(() => new CgroupsV2(root).paths(name)).toThrow('not a plain relative path')
})

test('a limit whose controller is missing is a fault, not silently no limit', () => {
  mkdirSync(join(root, 'bare'))
  expect(() => new CgroupsV2(root).setLimits('bare', { pids: 10 })).toThrow('write "10" to')
})

test('traffic: page cache that goes first, and bytes of all disks', () => {
  group('box')
  const cgroups = new CgroupsV2(root)
  expect(cgroups.traffic('box')).toEqual({ cacheBytes: 0, readBytes: 0, writtenBytes: 0 })
  writeFileSync(join(root, 'box/memory.stat'), 'anon 5\ninactive_anon 7\ninactive_file 4096\nactive_file 9\n')
  writeFileSync(
    join(root, 'box/io.stat'),
    '8:0 rbytes=100 wbytes=20 rios=1 wios=1 dbytes=0\n7:1 rbytes=1 wbytes=2\n8:16\n',
  )
  expect(cgroups.traffic('box')).toEqual({ cacheBytes: 4096, readBytes: 101, writtenBytes: 22 })
  expect(cgroups.traffic('gone')).toBeUndefined()
})
