import { execFileSync } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { takeInventory } from '@berth/host'

/** What `./berth up` and `down` are told of an installation, by environment. */
interface Place {
  readonly BERTH_DATA: string
  readonly BERTH_CGROUP_PARENT: string
}

/**
 * Starts a whole Berth for each worker of jest, by the command that users start theirs with: tests that kill parts of it
 * are alone with it.
 */
export default async function setup({ maxWorkers }: { readonly maxWorkers: number }): Promise<void> {
  if (process.env.BERTH_TEST_STACK) return // one that runs already, for work on a single test
  const places: Place[] = []
  const files: string[] = []
  for (let worker = 1; worker <= maxWorkers; worker++) {
    // Sockets below it must stay under 108 bytes, and Postgres' user must get through every directory above.
    const dataDir = mkdtempSync('/var/tmp/berth-test-')
    chmodSync(dataDir, 0o711)
    const place = { BERTH_DATA: dataDir, BERTH_CGROUP_PARENT: `berth-test-${process.pid}-${worker}` }
    places.push(place)
    process.env.BERTH_TEST_OWNS = JSON.stringify(places)
    files.push(await start(place))
  }
  process.env.BERTH_TEST_STACK = files.join(':')
}

/** @returns path of the file that tells tests of it */
async function start(place: Place): Promise<string> {
  const { BERTH_DATA: dataDir, BERTH_CGROUP_PARENT: cgroupParent } = place
  const port = await freePort()
  // The operator lists registries before the API is started; tests start them there.
  const registries = { open: await freePort(), locked: await freePort() }
  const insecure = Object.values(registries)
    .map((one) => `127.0.0.1:${one}`)
    .join(',')
  // The operator knows vulnerabilities, of packages that only images of the tests have.
  const known = join(dataDir, 'vulnerabilities.json')
  writeFileSync(known, JSON.stringify(vulnerabilities))
  const settings = {
    BERTH_INSECURE_REGISTRIES: insecure,
    BERTH_VULNERABILITIES: known,
    BERTH_RETENTION_SWEEP_MS: '1000',
  }
  berth(['up', '--port', String(port)], { ...place, ...settings })
  const { operatorKey } = JSON.parse(readFileSync(join(dataDir, 'credentials.json'), 'utf8'))
  mkdirSync(join(dataDir, 'test'), { recursive: true })
  const stack = { url: `http://127.0.0.1:${port}`, operatorKey, dataDir, cgroupParent, registries }
  const file = join(dataDir, 'stack.json')
  writeFileSync(file, JSON.stringify(stack))
  return file
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

/** Ends them, and fails the run when anything of one is left on the machine. */
export async function teardown(): Promise<void> {
  const places: readonly Place[] = JSON.parse(process.env.BERTH_TEST_OWNS ?? '[]')
  const left: unknown[] = []
  for (const place of places) {
    const { BERTH_DATA: dataDir, BERTH_CGROUP_PARENT: cgroupParent } = place
    berth(['down'], { ...place })
    const found = await leftIn({ cgroupParent, dataDir })
    if (found.length > 0) left.push({ dataDir, ...Object.fromEntries(found) })
    else berth(['down', '--data'], { ...place })
  }
  if (left.length > 0) throw new Error(`left behind after ./berth down: ${JSON.stringify(left)}`)
}

/**
 * What is there of an installation that is down. A container of another one that is just being made has, for a moment, a copy of
 * all mounts, and with it the loop device of this one's pool.
 */
async function leftIn(instance: { readonly cgroupParent: string; readonly dataDir: string }) {
  for (let tries = 50; ; tries--) {
    const found = Object.entries(await takeInventory(instance)).filter(([, all]) => all.length > 0)
    if (found.length === 0 || tries === 0) return found
    await delay(200)
  }
}

const berth = (args: readonly string[], env: Readonly<Record<string, string>>) =>
  execFileSync('./berth', args, { env: { ...process.env, ...env }, stdio: ['ignore', 'inherit', 'inherit'] })

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer().once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const address = server.address()
      server.close(() => resolve(typeof address === 'object' && address ? address.port : 0))
    })
  })
}
