import { expect, test } from '@jest/globals'
import { isAtOrBelow, mountAt, parseMountinfo, readMounts } from './mount.js'

const text = `22 27 0:21 / /proc rw,relatime - proc proc rw
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 27 7:0 /@sub /var/lib/with\\040space\\134x rw,nodev shared:5 master:1 - btrfs /dev/loop0 rw,space_cache=v2,subvol=/@sub
51 27 7:1 / /var/lib/with\\040space\\134x rw - ext4 /dev/loop1 rw
`

test('mountinfo is parsed, optional fields and escapes included', () => {
  const mounts = parseMountinfo(text)
  expect(mounts).toHaveLength(4)
  expect(mounts[2]).toEqual({
    id: 50,
    parent: 27,
    device: '7:0',
    root: '/@sub',
    target: '/var/lib/with space\\x',
    options: ['rw', 'nodev'],
    type: 'btrfs',
    source: '/dev/loop0',
    superOptions: ['rw', 'space_cache=v2', 'subvol=/@sub'],
  })
  expect(mountAt('/var/lib/with space\\x', mounts)?.id).toBe(51)
  expect(mountAt('/proc/self', mounts)).toBeUndefined()
})

test('a line of another form is refused', () => {
  expect(() => parseMountinfo('22 27 0:21 / /proc rw')).toThrow('parse mountinfo')
})

test('our own mounts are read; those of a process that is gone are none', () => {
  expect(mountAt('/proc')?.type).toBe('proc')
  expect(readMounts(2 ** 22 + 1)).toEqual([])
})

test('below means below a path, not below a prefix of its name', () => {
  expect(isAtOrBelow('/a/b', '/a')).toBe(true)
  expect(isAtOrBelow('/a', '/a')).toBe(true)
  expect(isAtOrBelow('/ab', '/a')).toBe(false)
})
