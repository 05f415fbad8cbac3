import { generateKeyPairSync } from 'node:crypto'
import { mintId, NodeId } from '@berth/contracts'
import type { JoinBody } from '@berth/persistence'
import { expect, test } from '@jest/globals'
import type { Config } from '../config.js'
import type { Changes } from '../scheduling/changes.js'
import type { Secrets } from '../secrets.js'
import { NodeDoors } from '../streams/node-doors.js'
import type { Clock, Database } from '../tokens.js'
import type { NodeUsers } from './node-users.js'
import { ProtocolService } from './protocol.service.js'

const id = NodeId.parse(mintId('node', 1, new Uint8Array(10)))

test('a node that joins again is called where it is now', async () => {
  let url = 'https://127.0.0.1:1'
  const nodes = {
    streams: async () => ({ url, certificate: 'its own' }),
    join: async (_: NodeId, body: JoinBody) => {
      url = body.streams.url
      return { changed: [], unwanted: [], unwantedSandboxes: [], unwantedImages: [], tenantLimits: [] }
    },
  }
  const database = { nodes } as unknown as Database
  const { privateKey } = generateKeyPairSync('ed25519')
  const grantPrivateKey = privateKey.export({ format: 'pem', type: 'pkcs8' })
  const secrets = { grantPublicKey: '', grantPrivateKey } as Secrets
  const clock: Clock = { now: () => new Date(0) }
  const doors = new NodeDoors(database, clock, secrets)
  const protocol = new ProtocolService(
    database,
    { REDIS_URL: { reveal: () => 'redis://127.0.0.1' } } as unknown as Config,
    secrets,
    { ensure: async () => 'a password' } as unknown as NodeUsers,
    { announceSandboxes: () => undefined, roomMade: () => undefined } as unknown as Changes,
    doors,
  )
  const where = async () => (await doors.of(id, id, 'builds'))?.node.url
  expect(await where()).toBe('https://127.0.0.1:1')
  await protocol.join(id, { streams: { url: 'https://127.0.0.1:2' } } as JoinBody)
  expect(await where()).toBe('https://127.0.0.1:2')
})
