import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { Beginning, Passage } from './passage.js'

const chunk = (byte: number, length = 1000) => Buffer.alloc(length, byte)

test('what is not read is not acknowledged', async () => {
  const passage = new Passage()
  let acknowledged = 0
  const stored = (offset: number) => {
    acknowledged = offset
  }
  for (let i = 0; i < 1000; i++) passage.append(i * 1000, chunk(i), stored)
  // The reader may be ahead by its own mark, and a chunk.
  passage.stream.read(0)
  expect(acknowledged).toBeLessThan(70_000)
  let read = 0
  passage.stream.on('data', (bytes: Buffer) => {
    read += bytes.length
  })
  await passage.settled()
  expect(acknowledged).toBe(1_000_000)
  passage.end()
  await new Promise((resolve) => passage.stream.once('end', resolve))
  expect(read).toBe(1_000_000)
})

test('a reader that leaves does not hold the process up', async () => {
  const passage = new Passage()
  let acknowledged = 0
  const stored = (offset: number) => {
    acknowledged = offset
  }
  for (let i = 0; i < 200; i++) passage.append(i * 1000, chunk(i), stored)
  passage.stream.destroy()
  await passage.settled()
  expect(acknowledged).toBe(200_000)
  passage.append(200_000, chunk(1), stored)
  expect(acknowledged).toBe(201_000)
})

test('whatever a new connection repeats, each byte comes once', async () => {
  const bytes = Buffer.from(Array.from({ length: 300 }, (_, i) => i % 251))
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(60), fc.integer({ min: 1, max: 60 })), { maxLength: 30 }),
      async (steps) => {
        const passage = new Passage()
        const read = passage.stream.toArray()
        let taken = 0
        let acknowledged = 0
        const stored = (offset: number) => {
          acknowledged = Math.max(acknowledged, offset)
        }
        for (const [back, length] of steps) {
          const from = Math.max(0, taken - back)
          passage.append(from, bytes.subarray(from, from + length), stored)
          taken = Math.max(taken, Math.min(bytes.length, from + length))
        }
        await passage.settled()
        passage.end()
        expect(Buffer.concat(await read)).toEqual(bytes.subarray(0, taken))
        expect(acknowledged).toBe(taken)
      },
    ),
  )
})

test('of what is only looked at the beginning is kept', () => {
  const beginning = new Beginning(5)
  let acknowledged = 0
  beginning.append(0, Buffer.from('abc'), (offset) => {
    acknowledged = offset
  })
  beginning.append(2, Buffer.from('cdefg'), (offset) => {
    acknowledged = offset
  })
  expect([beginning.text, acknowledged]).toEqual(['abcde', 7])
})
