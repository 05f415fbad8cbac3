// peers.ts: programs of Debian packages to measure against, in a directory of their own: nothing is installed, and nothing of
// them is left. They find their libraries by a path that is written into them, which whatever they execute has too.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { expectSuccess, type ProcessResult, run } from '@berth/host'

/** What buildah and skopeo need that Debian's minimal installation has not. */
const packages = [
  ...['buildah', 'skopeo', 'umoci', 'patchelf', 'libgpgme11', 'libsubid4'],
  ...['golang-github-containers-image', 'golang-github-containers-common', 'docker-registry'],
] as const

export interface Peers {
  /** A directory of their own, on the disk that Berth has its data on. */
  readonly directory: string
  /** What images they trust: all. */
  readonly policy: string
  /** @returns how it went. @throws unless it exits with 0 */
  buildah(...args: string[]): Promise<ProcessResult>
  skopeo(...args: string[]): Promise<ProcessResult>
  umoci(...args: string[]): Promise<ProcessResult>
  /** A registry that answers by http on loopback until it is disposed of. */
  registry(port: number): Promise<AsyncDisposable>
  close(): void
}

const TIMEOUT_MS = 600_000

/** @param near data directory of Berth. @throws where Debian's packages cannot be fetched */
export async function openPeers(near: string): Promise<Peers> {
  const directory = mkdtempSync(join(near, 'bench-peers-'))
  try {
    return await peersIn(directory)
  } catch (error) {
    rmSync(directory, { recursive: true, force: true })
    throw error
  }
}

async function peersIn(directory: string): Promise<Peers> {
  const root = join(directory, 'root')
  mkdirSync(root)
  // apt fetches as a user of its own.
  chmodSync(directory, 0o777)
  const options = { timeoutMs: TIMEOUT_MS, cwd: directory }
  expectSuccess(await run(['apt-get', 'download', ...packages], options))
  for (const file of readdirSync(directory).filter((name) => name.endsWith('.deb')))
    expectSuccess(await run(['dpkg-deb', '--extract', join(directory, file), root], options))
  const triplet = readdirSync(join(root, 'usr/lib')).find((name) => name.endsWith('-linux-gnu')) ?? ''
  for (const name of ['buildah', 'skopeo'])
    expectSuccess(
      await run([
        ...([join(root, 'usr/bin/patchelf'), '--force-rpath', '--set-rpath'] as const),
        ...[join(root, 'usr/lib', triplet), join(root, 'usr/bin', name)],
      ]),
    )
  const storage = join(directory, 'storage.conf')
  const places = { driver: 'overlay', runroot: join(directory, 'run'), graphroot: join(directory, 'graph') }
  const lines = Object.entries(places).map(([key, value]) => `${key}=${JSON.stringify(value)}\n`)
  writeFileSync(storage, `[storage]\n${lines.join('')}`)
  const policy = join(root, 'etc/containers/policy.json')
  const env = {
    ...{ PATH: '/usr/sbin:/usr/bin:/sbin:/bin', HOME: directory, TMPDIR: directory, CONTAINERS_CONF: '/dev/null' },
    ...{ CONTAINERS_STORAGE_CONF: storage, CONTAINERS_REGISTRIES_CONF: join(root, 'etc/containers/registries.conf') },
  }
  const call = async (name: string, args: readonly string[], through: readonly string[] = []) => {
    const [program = '', ...rest] = [...through, join(root, 'usr/bin', name), ...args]
    return expectSuccess(await run([program, ...rest], { ...options, env }))
  }
  return {
    ...{ directory, policy },
    // What it mounts ends with it.
    buildah: (...args) => call('buildah', args, ['unshare', '--mount']),
    skopeo: (...args) => call('skopeo', ['--policy', policy, ...args]),
    umoci: (...args) => call('umoci', args),
    registry: (port) => serveRegistry(join(root, 'usr/bin/docker-registry'), directory, port),
    close: () => rmSync(directory, { recursive: true, force: true }),
  }
}

async function serveRegistry(program: string, directory: string, port: number): Promise<AsyncDisposable> {
  const address = `127.0.0.1:${port}`
  const storage = { filesystem: { rootdirectory: join(directory, 'registry') } }
  const config = join(directory, 'registry.yml')
  // YAML takes JSON.
  writeFileSync(config, JSON.stringify({ version: '0.1', log: { level: 'error' }, http: { addr: address }, storage }))
  const serving = spawn(program, ['serve', config], { stdio: 'ignore' })
  const ended = once(serving, 'exit')
  const isUp = () =>
    fetch(`http://${address}/v2/`).then(
      ({ ok }) => ok,
      () => false,
    )
  while (!(await isUp())) {
    if (serving.exitCode !== null) throw new Error(`${program} ended with ${serving.exitCode}`)
    await pause(50)
  }
  return {
    async [Symbol.asyncDispose]() {
      serving.kill('SIGKILL')
      await ended
    },
  }
}
