import { expect, test } from '@jest/globals'
import { cgroupLayout } from './cgroup-layout.js'
import { parseMountinfo } from './mount.js'

const v1 = `32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
`
const hierarchies = [
  { path: '/sys/fs/cgroup/cpu,cpuacct', controllers: ['cpu', 'cpuacct'] },
  { path: '/sys/fs/cgroup/memory', controllers: ['memory'] },
  { path: '/sys/fs/cgroup/systemd', controllers: [] },
]
const cgroup2 = (target: string) => `41 31 0:38 / ${target} rw - cgroup2 cgroup2 rw\n`

test('v1 alone', () => {
  expect(cgroupLayout(parseMountinfo(v1))).toEqual({ kind: 'v1', hierarchies, unified: undefined, hide: [] })
})

test('hybrid: v1 is used and the cgroup2 mount is to be hidden from the runtime', () => {
  const unified = '/sys/fs/cgroup/unified'
  expect(cgroupLayout(parseMountinfo(v1 + cgroup2(unified)))).toEqual({
    kind: 'hybrid',
    hierarchies,
    unified,
    hide: [unified],
  })
})

test('v2 alone, also where a named v1 hierarchy without controllers is left', () => {
  const named = '34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n'
  const unified = '/sys/fs/cgroup'
  const expected = { kind: 'v2', hierarchies: [], unified, hide: [] }
  expect(cgroupLayout(parseMountinfo(cgroup2(unified)))).toEqual(expected)
  expect(cgroupLayout(parseMountinfo(cgroup2(unified) + named))).toEqual(expected)
})

test('a machine without a memory controller is refused', () => {
  expect(() => cgroupLayout([])).toThrow('no memory controller is mounted')
})
