import { expect, test } from '@jest/globals'
import { abortable, Exclusive } from './exclusive.js'

const signal = new AbortController().signal
const turn = () => new Promise((done) => setImmediate(done))

function gate() {
  let open: () => void = () => undefined
  const opened = new Promise<void>((done) => {
    open = done
  })
  return { opened, open }
}

test('work of one name is one after the other, of two names at once', async () => {
  const exclusive = new Exclusive()
  const said: string[] = []
  const [first, other] = [gate(), gate()]
  const a = exclusive.run('a', signal, async () => {
    said.push('a begins')
    await first.opened
    said.push('a ends')
  })
  const b = exclusive.run('a', signal, async () => said.push('b'))
  const c = exclusive.run('c', signal, async () => {
    said.push('c')
    await other.opened
  })
  await turn()
  expect(said).toEqual(['a begins', 'c'])
  first.open()
  await Promise.all([a, b])
  expect(said).toEqual(['a begins', 'c', 'a ends', 'b'])
  other.open()
  await c
})

test('who gives up lets nobody in before their turn, and a failure lets the next one in', async () => {
  const exclusive = new Exclusive()
  const [first, leaving] = [gate(), new AbortController()]
  const said: string[] = []
  const a = exclusive.run('a', signal, async () => {
    await first.opened
    throw new Error('a failed')
  })
  const b = exclusive.run('a', leaving.signal, async () => said.push('b'))
  const c = exclusive.run('a', signal, async () => said.push('c'))
  leaving.abort(new Error('gave up'))
  await expect(b).rejects.toThrow('gave up')
  await turn()
  expect(said).toEqual([])
  first.open()
  await expect(a).rejects.toThrow('a failed')
  await c
  expect(said).toEqual(['c'])
})

test('what fails once nobody waits for it any more is nobody’s error', async () => {
  const failing = Promise.reject(new Error('nobody is told'))
  await expect(abortable(failing, AbortSignal.abort(new Error('gave up before')))).rejects.toThrow('gave up before')
  await turn()
})
