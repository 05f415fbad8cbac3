import { expect, test } from '@jest/globals'
import { Unwind } from './unwind.js'

test('releases run in reverse, once', async () => {
  const seen: string[] = []
  const undo = new Unwind()
  undo.add(() => seen.push('first'))
  undo.add(async () => seen.push('second'))
  await undo.run()
  await undo.run()
  expect(seen).toEqual(['second', 'first'])
})

test('kept: nothing is undone', async () => {
  const seen: string[] = []
  {
    await using undo = new Unwind()
    undo.add(() => seen.push('undone'))
    undo.keep()
  }
  expect(seen).toEqual([])
})

test('leaving the block by an error undoes', async () => {
  const seen: string[] = []
  const work = async () => {
    await using undo = new Unwind()
    undo.add(() => seen.push('undone'))
    await Promise.reject(new Error('the step failed'))
  }
  await expect(work()).rejects.toThrow('the step failed')
  expect(seen).toEqual(['undone'])
})

test('every release runs although others fail, and all failures are told', async () => {
  const seen: string[] = []
  const undo = new Unwind()
  undo.add(() => seen.push('first'))
  undo.add(() => {
    throw new Error('device is busy')
  })
  undo.add(() => Promise.reject(new Error('no such group')))
  const error = await undo.run().catch((caught: unknown) => caught)
  expect(seen).toEqual(['first'])
  expect(error).toBeInstanceOf(AggregateError)
  expect(error).toHaveProperty('errors.length', 2)
  expect(error).toHaveProperty('message', '2 of the releases failed: no such group; device is busy')
})
