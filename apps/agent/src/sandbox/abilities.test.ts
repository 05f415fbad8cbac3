import { expect, test } from '@jest/globals'
import { abilitiesOf, hardLimits } from './abilities.js'

test('hard limits by name, as proc(5) shows them; unlimited ones are left out', () => {
  const text = `Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max open files            1024                 524288               files
Max locked memory         8388608              8388608              bytes
Max nice priority         0                    0
`
  expect(hardLimits(text)).toEqual({ nofile: 524_288, memlock: 8_388_608, nice: 0 })
})

test('this machine has abilities', () => {
  const { hardLimits: limits, cpus } = abilitiesOf(false)
  expect(limits.nofile).toBeGreaterThan(0)
  expect(cpus).toBeGreaterThan(0)
})
