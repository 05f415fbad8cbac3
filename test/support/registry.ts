// registry.ts: Debian's docker-registry on loopback, for tests that pull and push.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { mediaTypes } from '@berth/oci'
import { digestOf, imageOf, publish as publishImage } from '../../apps/agent/src/images/registry.fixture.js'
import { until } from './berth.js'

export interface TestRegistry {
  /** As references write it. */
  readonly host: string
  readonly url: string
  /** What its own client sends. */
  readonly headers: Readonly<Record<string, string>>
  stop(): Promise<void>
}

export interface Login {
  readonly username: 'me'
  readonly password: 'correct horse'
}

/** bcrypt of the one password that there is. */
const HTPASSWD = 'me:$2b$04$ul/NbAUqKQh7ZMeOTj25bua8Mpt8b.VsUbkH/Pb5JAjlfCtExm0U2\n'

/** @param login what it wants; without one it lets everybody in */
export async function startRegistry(port: number, login?: Login): Promise<TestRegistry> {
  const directory = mkdtempSync(join(tmpdir(), 'berth-registry-'))
  const host = `127.0.0.1:${port}`
  writeFileSync(join(directory, 'htpasswd'), HTPASSWD)
  const auth = login ? { auth: { htpasswd: { realm: 'test', path: join(directory, 'htpasswd') } } } : {}
  // YAML takes JSON.
  const config = {
    ...{ version: '0.1', log: { level: 'error' }, http: { addr: host } },
    ...{ storage: { filesystem: { rootdirectory: join(directory, 'data') }, delete: { enabled: true } }, ...auth },
  }
  writeFileSync(join(directory, 'config.yml'), JSON.stringify(config))
  const process = spawn('docker-registry', ['serve', join(directory, 'config.yml')], { stdio: 'ignore' })
  const token = login && Buffer.from(`${login.username}:${login.password}`).toString('base64')
  const headers: Record<string, string> = token === undefined ? {} : { authorization: `Basic ${token}` }
  await until('the registry answers', async () => {
    if (process.exitCode !== null) throw new Error(`docker-registry ended with ${process.exitCode}`)
    return (await fetch(`http://${host}/v2/`, { headers })).ok || undefined
  })
  return { host, url: `http://${host}`, headers, stop: () => stop(process, directory) }
}

async function stop(process: ChildProcess, directory: string): Promise<void> {
  const gone = once(process, 'exit')
  if (process.exitCode === null && process.kill('SIGKILL')) await gone
  rmSync(directory, { recursive: true })
}

/**
 * Puts an image into a registry, as any client does.
 * @param layers tars, lowest first
 * @returns its id and its manifest's digest
 */
export async function publish(registry: TestRegistry, repository: string, tag: string, layers: readonly Buffer[]) {
  const created = '2025-01-01T00:00:00Z'
  const config = {
    created,
    config: { Env: ['PATH=/bin', 'FROM_IMAGE=yes'], Cmd: ['/bin/sh'], Labels: { made: 'by the test' } },
    history: layers.map(() => ({ created, created_by: 'COPY root /' })),
  }
  const image = imageOf(layers, { config, pack: (tar) => tar, layerType: mediaTypes.layer })
  await publishImage(registry, repository, tag, image)
  return { digest: digestOf(image.config), manifestDigest: digestOf(image.manifest) }
}
