import { expect, test } from '@jest/globals'
import { placesFrom } from './config.js'

const parent = (env: NodeJS.ProcessEnv) => placesFrom(env).cgroupParent

test('the default installation has the plain group', () => {
  expect(parent({})).toBe('berth')
  expect(parent({ BERTH_DATA: '/var/lib/berth/' })).toBe('berth')
})

test('another data directory has a group of its own, always the same', () => {
  const one = parent({ BERTH_DATA: '/srv/one' })
  expect(one).toMatch(/^berth-[0-9a-f]{12}$/)
  expect(parent({ BERTH_DATA: '/srv/../srv/one/' })).toBe(one)
  expect(parent({ BERTH_DATA: '/srv/two' })).not.toBe(one)
})

test('a group that was named is taken', () => {
  expect(parent({ BERTH_DATA: '/srv/one', BERTH_CGROUP_PARENT: 'mine' })).toBe('mine')
})
