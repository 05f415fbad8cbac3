import type { BuildProgress } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { tellingOf } from './building.service.js'

test('a build that is left while it pulls leaves the pull, which gives back its turn', async () => {
  let turns = 1
  async function* pulling(): AsyncGenerator<BuildProgress, Record<string, string>> {
    turns--
    try {
      yield { step: 'pulled', reference: 'debian', digest: 'sha256:1' }
      yield { step: 'pulled', reference: 'alpine', digest: 'sha256:2' }
      return {}
    } finally {
      turns++
    }
  }
  const telling = tellingOf({ told: (step) => step }, pulling())
  expect(await telling.next()).toMatchObject({ value: { reference: 'debian' } })
  expect(turns).toBe(0)
  await telling.return({})
  expect(turns).toBe(1)
})
