import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { takeInventory } from '@berth/host'

/** Starts a whole Berth of its own for all system tests, by the command that users start theirs with. */
export default async function setup(): Promise<void> {
  if (process.env.BERTH_TEST_STACK) return // one that runs already, for work on a single test
  // Sockets below it must stay under 108 bytes, and Postgres' user must get through every directory above.
  const dataDir = mkdtempSync('/var/tmp/berth-test-')
  execFileSync('chmod', ['711', dataDir])
  const cgroupParent = `berth-test-${process.pid}`
  const port = await freePort()
  // The operator lists registries before the API is started; tests start them there.
  const registries = { open: await freePort(), locked: await freePort() }
  process.env.BERTH_INSECURE_REGISTRIES = Object.values(registries)
    .map((one) => `127.0.0.1:${one}`)
    .join(',')
  // The operator knows vulnerabilities, of packages that only images of the tests have.
  process.env.BERTH_VULNERABILITIES = join(dataDir, 'vulnerabilities.json')
  writeFileSync(process.env.BERTH_VULNERABILITIES, JSON.stringify(vulnerabilities))
  process.env.BERTH_DATA = dataDir
  process.env.BERTH_CGROUP_PARENT = cgroupParent
  process.env.BERTH_RETENTION_SWEEP_MS = '1000'
  process.env.BERTH_TEST_STACK = join(dataDir, 'stack.json')
  execFileSync('./berth', ['up', '--port', String(port)], { stdio: ['ignore', 'inherit', 'inherit'] })
  const { operatorKey } = JSON.parse(readFileSync(join(dataDir, 'credentials.json'), 'utf8'))
  mkdirSync(join(dataDir, 'test'), { recursive: true })
  const stack = { url: `http://127.0.0.1:${port}`, operatorKey, dataDir, cgroupParent, registries }
  writeFileSync(process.env.BERTH_TEST_STACK, JSON.stringify(stack))
  process.env.BERTH_TEST_OWNS = dataDir
}

const vulnerabilities = [
  {
    id: 'DEBIAN-CVE-2025-0001',
    upstream: ['CVE-2025-0001'],
    severity: [{ type: 'CVSS_V3', score: 'CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H' }],
    affected: [
      {
        package: { ecosystem: 'Debian:13', name: 'berth-test' },
        ranges: [{ type: 'ECOSYSTEM', events: [{ introduced: '0' }, { fixed: '2.0' }] }],
      },
    ],
  },
  {
    id: 'GHSA-test',
    aliases: ['CVE-2025-0002'],
    database_specific: { severity: 'MODERATE' },
    affected: [{ package: { ecosystem: 'npm', name: '@test/module' }, versions: ['1.2.3'] }],
  },
]

/** Ends it, and fails the run when anything of it is left on the machine. */
export async function teardown(): Promise<void> {
  const dataDir = process.env.BERTH_TEST_OWNS
  const cgroupParent = process.env.BERTH_CGROUP_PARENT
  if (!dataDir || !cgroupParent) return
  execFileSync('./berth', ['down'], { stdio: ['ignore', 'inherit', 'inherit'] })
  const left = await takeInventory({ cgroupParent, dataDir })
  const found = Object.entries(left).filter(([, entries]) => entries.length > 0)
  if (found.length > 0) throw new Error(`left behind after ./berth down: ${JSON.stringify(Object.fromEntries(found))}`)
  execFileSync('./berth', ['down', '--data'], { stdio: ['ignore', 'inherit', 'inherit'] })
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer().once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const address = server.address()
      server.close(() => resolve(typeof address === 'object' && address ? address.port : 0))
    })
  })
}
