import { expect, test } from '@jest/globals'
import { accessList } from './redis.js'

test('the default user gets the password as a hash, others stay, and doing it twice changes nothing', () => {
  const list = accessList('user default on nopass ~* +@all\nuser node1 on #aa ~n1:* +@all\n', 'pw')
  expect(list).toMatch(/^user default on #[0-9a-f]{64} ~\* &\* \+@all\nuser node1 on #aa ~n1:\* \+@all\n$/)
  expect(accessList(list, 'pw')).toBe(list)
})
