// bootstrap.mjs: from a clean checkout to a built one. Runs before npm has installed anything, hence plain JavaScript
// without dependencies. A second run finds everything in place and takes milliseconds.
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '../..')

/** Debian packages: what shows that one is there, and why it is needed. */
const packages = [
  ['make', '/usr/bin/make', 'builds berth-init'],
  ['gcc', '/usr/bin/gcc', 'builds berth-init'],
  ['musl-tools', '/usr/bin/musl-gcc', 'links berth-init statically'],
  ['crun', '/usr/bin/crun', 'OCI runtime of the sandboxes'],
  ['runc', '/usr/sbin/runc', 'second OCI runtime'],
  ['btrfs-progs', '/usr/bin/btrfs', 'hard disk limits of sandboxes'],
  ['mmdebstrap', '/usr/bin/mmdebstrap', 'makes the base images'],
  ['attr', '/usr/bin/getfattr', 'checks image layers'],
  ['zstd', '/usr/bin/zstd', 'unpacks image layers'],
  ['redis-server', '/usr/bin/redis-server', 'queues'],
  ['postgresql', '/usr/lib/postgresql', 'database'],
  ['iproute2', '/usr/sbin/ip', 'networks'],
  ['util-linux', '/usr/bin/unshare', 'mounts and loop devices'],
  ['procps', '/usr/bin/ps', 'process lists'],
]

/** What only `./berth test` needs. */
const testPackages = [
  ['busybox-static', '/usr/bin/busybox', 'the smallest image, in tests'],
  ['docker-registry', '/usr/bin/docker-registry', 'a registry to pull from, in tests'],
  ['clang', '/usr/bin/clang', 'fuzzes berth-init'],
  ['libclang-rt-dev', '/var/lib/dpkg/info/libclang-rt-dev.list', 'fuzzes berth-init'],
]

const fail = (message) => {
  process.stderr.write(`berth: ${message}\n`)
  process.exit(125)
}

const say = (message) => process.stderr.write(`berth: ${message}\n`)

function run(why, program, args, env = {}) {
  const started = Date.now()
  say(why)
  const result = spawnSync(program, args, {
    cwd: root,
    env: { ...process.env, ...env },
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  })
  if (result.status !== 0)
    fail(
      `${program} ${args.join(' ')} failed:\n${result.error ?? ''}${result.stdout.slice(-4000)}${result.stderr.slice(-4000)}`,
    )
  say(`${why}: done in ${((Date.now() - started) / 1000).toFixed(1)} s`)
}

function checkNode() {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  if (major < 20 || (major === 20 && minor < 19))
    fail(`Node ${process.versions.node} is too old; 20.19 or newer is needed`)
}

function installPackages() {
  const wanted = process.argv[2] === 'test' ? [...packages, ...testPackages] : packages
  const missing = wanted.filter(([, shown]) => !existsSync(shown))
  if (missing.length === 0) return
  for (const [name, , why] of missing) say(`needs the Debian package ${name}: ${why}`)
  if (process.getuid?.() !== 0)
    fail(`run as root, or install them: apt-get install ${missing.map(([name]) => name).join(' ')}`)
  // Private servers are used: the packages' own services must not be started by their installation.
  const policy = '/usr/sbin/policy-rc.d'
  const ours = !existsSync(policy)
  if (ours) writeFileSync(policy, '#!/bin/sh\nexit 101\n', { mode: 0o755 })
  try {
    const env = { DEBIAN_FRONTEND: 'noninteractive' }
    run('updating the package lists', 'apt-get', ['update', '-q'], env)
    const names = missing.map(([name]) => name)
    run(`installing ${names.join(' ')}`, 'apt-get', ['install', '-y', '-q', '--no-install-recommends', ...names], env)
  } finally {
    if (ours) rmSync(policy, { force: true })
  }
}

const mtime = (path) => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0

function installModules() {
  const installed = join(root, 'node_modules/.package-lock.json')
  if (mtime(installed) >= mtime(join(root, 'package-lock.json'))) return
  // Not `npm ci`: it refuses lock files that leave out other platforms' optional packages, as npm 11 writes them.
  run('installing npm packages', 'npm', ['install', '--no-save', '--no-audit', '--no-fund'])
}

/** Newest change of any source below a directory. */
function newest(directory) {
  let latest = 0
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    if (['node_modules', 'dist', 'build', 'generated', '.git'].includes(entry.name)) continue
    const path = join(directory, entry.name)
    latest = Math.max(latest, entry.isDirectory() ? newest(path) : mtime(path))
  }
  return latest
}

function build() {
  const stamp = join(root, 'node_modules/.berth-built')
  const sources = [
    'apps',
    'libs',
    'prisma',
    'bench',
    'test',
    'tsconfig.json',
    'tsconfig.base.json',
    'package-lock.json',
  ]
  const changed = sources
    .map((name) => join(root, name))
    .map((path) => (statSync(path).isDirectory() ? newest(path) : mtime(path)))
  if (mtime(stamp) > Math.max(...changed)) return
  run('building', 'npm', ['run', '--silent', 'build'])
  writeFileSync(stamp, '')
}

checkNode()
installPackages()
installModules()
build()
await import('./dist/main.js')
