import { expect, test } from '@jest/globals'
import { Turns } from './turns.js'

const never = new AbortController().signal
const settled = () => new Promise((resolve) => setImmediate(resolve))

test('so many of one owner run at once, the others in order, and owners do not wait for each other', async () => {
  const turns = new Turns(2)
  const began: string[] = []
  const take = (name: string, owner = 'a') =>
    turns.take(owner, never).then((give) => {
      began.push(name)
      return give
    })
  const [first, second] = await Promise.all([take('1'), take('2')])
  const third = take('3')
  const fourth = take('4')
  await take('other', 'b')
  await settled()
  expect(began).toEqual(['1', '2', 'other'])
  first()
  await third
  second()
  await fourth
  expect(began).toEqual(['1', '2', 'other', '3', '4'])
})

test('who stops waiting takes no turn from those behind', async () => {
  const turns = new Turns(1)
  const give = await turns.take('a', never)
  const leaving = new AbortController()
  const left = turns.take('a', leaving.signal)
  const behind = turns.take('a', never)
  leaving.abort(new Error('gone'))
  await expect(left).rejects.toThrow('gone')
  give()
  ;(await behind)()
  const again = await turns.take('a', never)
  again()
})
