import type { BerthEvent } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { EventFeed } from './event-feed.js'

const event = (id: string): BerthEvent => ({
  ...{ id, type: 'job.queued', at: '2026-01-01T00:00:00Z', subject: 'job_1', by: 'api', data: {} },
})

async function* stream(...ids: readonly string[]): AsyncGenerator<BerthEvent> {
  for (const id of ids) yield event(id)
}

test('a feed goes on after the last event, and says when some may have been missed', async () => {
  const feed = new EventFeed()
  const told: string[] = []
  const asked: (string | undefined)[] = []
  const follow = (...ids: readonly string[]) =>
    feed.follow((after) => {
      asked.push(after)
      return stream(...ids)
    })
  const stop = feed.listen((one) => told.push(one === 'resumed' ? one : one.id))
  await expect(follow()).rejects.toThrow('ended')
  await expect(follow('7', '8')).rejects.toThrow('ended')
  await expect(follow('9')).rejects.toThrow('ended')
  stop()
  await expect(follow('10')).rejects.toThrow('ended')
  expect(asked).toEqual([undefined, undefined, '8', '9'])
  expect(told).toEqual(['resumed', 'resumed', '7', '8', '9'])
})
