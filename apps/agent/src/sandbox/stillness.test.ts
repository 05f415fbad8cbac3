import { createLogger } from '@berth/telemetry'
import { expect, test } from '@jest/globals'
import { Stillness } from './stillness.js'

function held(freeze = async (): Promise<void> => undefined) {
  let frozen = false
  const cgroups = {
    async freeze() {
      await freeze()
      frozen = true
    },
    thaw() {
      frozen = false
    },
  }
  const log = createLogger({ name: 'test', level: 'silent' })
  return { stillness: new Stillness(cgroups, log), isFrozen: () => frozen }
}

test('is over only when nobody waits for it either, however late they came', async () => {
  const { stillness, isFrozen } = held()
  const seen: string[] = []
  const work = (name: string) =>
    stillness.during(
      () => 'group',
      async () => {
        await new Promise((resolve) => setImmediate(resolve))
        seen.push(`${name} ${isFrozen()}`)
      },
    )
  const first = work('first')
  const over = stillness.over().then(() => seen.push(`over ${isFrozen()}`))
  const second = work('second')
  const third = first.then(() => work('third'))
  await Promise.all([first, second, third, over])
  expect(seen).toEqual(['first true', 'second true', 'third true', 'over false'])
})

test('whose turn it is asks what runs by then; what cannot be frozen goes on, and is nothing to the next', async () => {
  let fails = true
  const { stillness, isFrozen } = held(async () => {
    if (fails) throw new Error('it does not freeze')
  })
  const refused = stillness.during(
    () => 'group',
    async () => 'worked',
  )
  await expect(refused).rejects.toMatchObject({ code: 'unavailable' })
  expect(isFrozen()).toBe(false)
  fails = false
  const failed = stillness.during(
    () => 'group',
    async () => Promise.reject(new Error('no')),
  )
  const without = stillness.during(
    () => undefined,
    async () => isFrozen(),
  )
  await expect(failed).rejects.toThrow('no')
  expect(await without).toBe(false)
})
