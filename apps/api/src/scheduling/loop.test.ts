import { createLogger } from '@berth/telemetry'
import { expect, test } from '@jest/globals'
import { Loop } from './loop.js'

function scene(work: (run: number) => Promise<void>) {
  const lines: string[] = []
  const log = createLogger({ name: 'test', level: 'info', destination: { write: (line) => void lines.push(line) } })
  const state = { runs: 0, atOnce: 0, most: 0 }
  const loop = new Loop(
    'work',
    3_600_000,
    async () => {
      state.most = Math.max(state.most, ++state.atOnce)
      try {
        await work(++state.runs)
      } finally {
        state.atOnce--
      }
    },
    log,
  )
  return { loop, state, lines }
}

const turn = () => new Promise((resolve) => setImmediate(resolve))

test('triggers during a run become one more run, never two at once', async () => {
  const { loop, state } = scene(() =>
    turn()
      .then(turn)
      .then(() => undefined),
  )
  for (let i = 0; i < 10; i++) loop.trigger()
  await turn()
  for (let i = 0; i < 10; i++) loop.trigger()
  for (let i = 0; i < 20; i++) await turn()
  expect(state).toMatchObject({ runs: 2, most: 1 })
  await loop.stop()
})

test('after stop has settled nothing runs any more', async () => {
  const { loop, state } = scene(() => turn().then(() => undefined))
  loop.start()
  await loop.stop()
  const { runs } = state
  loop.trigger()
  await turn()
  expect(state).toMatchObject({ runs, atOnce: 0 })
})

test('a run that fails is told once in a row, and its recovery too', async () => {
  const { loop, lines } = scene((run) => (run <= 3 ? Promise.reject(new Error('no database')) : Promise.resolve()))
  for (let i = 0; i < 6; i++) {
    loop.trigger()
    await turn()
  }
  expect(lines.map((line) => JSON.parse(line).event)).toEqual(['work.failed', 'work.recovered'])
  await loop.stop()
})
