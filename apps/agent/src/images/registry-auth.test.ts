import { setImmediate } from 'node:timers/promises'
import { expect, test } from '@jest/globals'
import { Authorization } from './registry-auth.js'

const challenge = 'Bearer realm="https://auth.example/token",service="r"'

test('requests that are challenged at once share the token, since an identity token may be good for once', async () => {
  const asked: unknown[] = []
  const authorization = new Authorization({ username: 'a', identityToken: 'one' }, async ({ form }) => {
    asked.push(form?.get('refresh_token'))
    await setImmediate()
    const body = JSON.stringify({ access_token: `t${asked.length}`, refresh_token: 'two' })
    return { status: 200, body: Buffer.from(body) }
  })
  const both = (used: string | undefined) =>
    Promise.all([1, 2].map(() => authorization.answer(challenge, ['repository:a:pull'], used)))
  await both(undefined)
  expect([asked, authorization.header]).toEqual([['one'], 'Bearer t1'])
  await both('Bearer t1')
  expect([asked, authorization.header]).toEqual([['one', 'two'], 'Bearer t2'])
  // Of a request that began before: there is another token already.
  await authorization.answer(challenge, [], 'Bearer t1')
  expect(asked).toHaveLength(2)
})

test('a refusal is told to all that were waiting, and the next one asks again', async () => {
  let status = 400
  const authorization = new Authorization({ username: 'a', identityToken: 'one' }, async () => ({
    ...{ status, body: Buffer.from('{"token":"t"}') },
  }))
  const ask = () => authorization.answer(challenge, [], undefined)
  const ends = await Promise.allSettled([ask(), ask()])
  expect(ends.map(({ status }) => status)).toEqual(['rejected', 'rejected'])
  status = 200
  await ask()
  expect(authorization.header).toBe('Bearer t')
})
