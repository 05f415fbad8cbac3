import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { MAX_DATA_BYTES, STDIN_WINDOW_BYTES } from './init-wire.js'
import { InputQueue, MAX_QUEUED_BYTES } from './input-queue.js'

/** A berth-init: takes what it has room for, exactly as libs/init/proc.c does, and may read some of it. */
class Far {
  length = 0
  read = 0
  ended = false

  take(queue: InputQueue): void {
    for (let step = queue.next(); step; step = queue.next()) {
      if (step.kind === 'end') {
        expect(step.total).toBe(this.length)
        this.ended = true
        continue
      }
      expect(step.bytes.length).toBeLessThanOrEqual(MAX_DATA_BYTES)
      expect(step.offset).toBe(this.length)
      expect(step.bytes.equals(pattern(step.bytes.length, step.offset))).toBe(true)
      this.length += step.bytes.length
      expect(this.length - this.read).toBeLessThanOrEqual(STDIN_WINDOW_BYTES)
    }
  }
}

const stream = Buffer.from(Array.from({ length: 4_000_000 }, (_, i) => i % 251))
const pattern = (length: number, from = 0) => stream.subarray(from, from + length)
const quiet = (promise: Promise<void>) => void promise.catch(() => undefined)

test('whatever is written, read, lost and repeated: every byte arrives once and in order', () => {
  const step = fc.oneof(
    fc.record({ kind: fc.constant('write' as const), bytes: fc.integer({ min: 0, max: 100_000 }), back: fc.nat(5000) }),
    fc.record({ kind: fc.constant('read' as const), bytes: fc.integer({ min: 0, max: 80_000 }) }),
    // How much of what was sent last got lost with the connection.
    fc.record({ kind: fc.constant('reconnect' as const), lost: fc.nat(70_000) }),
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const queue = new InputQueue()
      const far = new Far()
      let had = 0
      queue.reconnect(0, true)
      for (const it of steps) {
        if (it.kind === 'write') {
          const from = Math.max(0, queue.end - it.back)
          quiet(queue.take(from, pattern(it.bytes, from)))
        } else if (it.kind === 'read') {
          far.read = Math.min(far.length, far.read + it.bytes)
          queue.acknowledge(far.read)
        } else {
          // What init had said that it has, or taken from the process' side, it keeps.
          had = Math.max(had, far.read, far.length - it.lost)
          far.length = had
          queue.reconnect(far.length, false)
          expect(queue.next()).toBeUndefined()
          queue.acknowledge(far.read)
        }
        far.take(queue)
      }
      queue.finish(queue.end)
      for (let i = 0; !far.ended && i < 1000; i++) {
        far.read = far.length
        queue.acknowledge(far.read)
        far.take(queue)
      }
      expect(far.ended).toBe(true)
      expect(far.length).toBe(queue.end)
    }),
    { numRuns: 100 },
  )
})

describe('a writer', () => {
  test('is told when all of it was taken, a repeat at once', async () => {
    const queue = new InputQueue()
    queue.reconnect(0, true)
    let told = false
    const written = queue.take(0, pattern(10)).then(() => {
      told = true
    })
    queue.next()
    queue.acknowledge(9)
    await Promise.resolve()
    expect(told).toBe(false)
    queue.acknowledge(10)
    await written
    await queue.take(4, pattern(6, 4))
    expect(queue.accepted).toBe(10)
  })

  test('goes on where a former agent ended', async () => {
    const queue = new InputQueue()
    queue.reconnect(1000, false)
    expect(queue.accepted).toBe(1000)
    await queue.take(0, pattern(1000))
    quiet(queue.take(900, pattern(200, 900)))
    queue.acknowledge(1000)
    expect(queue.next()).toEqual({ kind: 'bytes', offset: 1000, bytes: pattern(100, 1000) })
  })

  test('that leaves a gap is refused with the place where it goes on', async () => {
    const queue = new InputQueue()
    quiet(queue.take(0, pattern(5)))
    await expect(queue.take(6, pattern(1))).rejects.toMatchObject({ code: 'input_gap', data: { stdinBytes: 5 } })
    expect(() => queue.finish(6)).toThrow('input ends at 5')
  })

  test('is refused when too much waits, and after the end', async () => {
    const queue = new InputQueue()
    quiet(queue.take(0, Buffer.alloc(MAX_QUEUED_BYTES)))
    await expect(queue.take(MAX_QUEUED_BYTES, Buffer.alloc(1))).rejects.toMatchObject({ code: 'unavailable' })
    queue.finish(MAX_QUEUED_BYTES)
    queue.finish(MAX_QUEUED_BYTES)
    await expect(queue.take(MAX_QUEUED_BYTES, Buffer.alloc(1))).rejects.toMatchObject({ code: 'wrong_state' })
  })

  test('that waits when the process ends is told so', async () => {
    const queue = new InputQueue()
    const waiting = queue.take(0, pattern(5))
    queue.close(() => new Error('ended'))
    await expect(waiting).rejects.toThrow('ended')
    await expect(queue.take(5, pattern(1))).rejects.toThrow('ended')
  })
})
