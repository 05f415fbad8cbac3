import { PassThrough } from 'node:stream'
import { expect, test } from '@jest/globals'
import { following, wholeOf } from './body.js'

test('what breaks off before anybody reads it ends nothing else, and whoever reads it then is told', async () => {
  const source = new PassThrough()
  const failure = (cause: unknown) => new Error(`broke off: ${cause}`)
  const followed = following(source, { failure, leave: () => undefined })
  followed.read(0)
  source.destroy(new Error('gone'))
  await new Promise((resolve) => source.once('close', resolve))
  expect(followed.destroyed).toBe(true)
  await expect(followed.toArray()).rejects.toThrow('broke off: Error: gone')
})

test('all of what broke off, or was left, before anybody asked is not waited for', async () => {
  const [broken, left] = [new PassThrough(), new PassThrough()]
  const closed = [broken, left].map((source) => new Promise((resolve) => source.once('close', resolve)))
  broken.once('error', () => undefined).destroy(new Error('gone'))
  left.destroy()
  await Promise.all(closed)
  await expect(wholeOf(broken, 10)).rejects.toThrow('gone')
  await expect(wholeOf(left, 10)).rejects.toThrow('the body broke off')
})
