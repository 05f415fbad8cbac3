// base-images.ts: `debian`, `python` and `node`, built from this machine's own package sources, because a machine
// with no registry at hand needs something to run jobs in. `debian` is one layer; the others are that layer and one
// with what their packages add. A finished set is kept in a cache that all data directories of the machine share,
// under a hash of the recipe; a build happens in a directory beside it and is renamed into place, so an interrupted
// one is never used. mmdebstrap runs in a pid and a mount namespace that end with this process, so a killed build
// leaves no process and no mount either.
import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { ignore } from '@berth/contracts'
import { expectSuccess, removeTree, run } from '@berth/host'
import { type AptSources, fetchEnvironment, parseOsRelease, readAptSources } from './apt-sources.js'
import {
  addImage,
  addLayer,
  architecture,
  copyLayout,
  createLayout,
  type Descriptor,
  writeIndex,
} from './oci-layout.js'
import { isAlive, processStart } from './process.js'
import { difference, readTree, settleTimes, type Tree } from './tree.js'

interface Recipe {
  readonly name: string
  readonly packages: readonly string[]
  readonly command: readonly string[]
}

/** Debian's essential packages and apt, and what a shell script, or who opens a shell, may expect besides. */
const base: Recipe = { name: 'debian', packages: ['ca-certificates', 'procps', 'vim-tiny'], command: ['/bin/bash'] }
const derived: readonly Recipe[] = [
  { name: 'python', packages: ['python3', 'python-is-python3'], command: ['python3'] },
  { name: 'node', packages: ['nodejs'], command: ['node'] },
]

const env = ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', 'LANG=C.UTF-8']

/** Left out of every package, now and by a later `apt-get install` in a sandbox. Licences stay. */
const dpkgOptions = [
  'path-exclude=/usr/share/doc/*',
  'path-include=/usr/share/doc/*/copyright',
  'path-exclude=/usr/share/man/*',
  'path-exclude=/usr/share/info/*',
  'path-exclude=/usr/share/locale/*',
  'path-include=/usr/share/locale/locale.alias',
  'path-exclude=/usr/share/lintian/*',
  'path-exclude=/usr/share/bug/*',
]

/** Runs in mmdebstrap's shell on fixed text; `$1` is the new root. What is the building machine's own goes. */
const clean = [
  'rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/var/log/*.log "$1"/var/log/apt/* "$1"/var/cache/ldconfig/aux-cache',
  ': > "$1"/etc/resolv.conf; : > "$1"/etc/hostname',
  'printf "127.0.0.1\\tlocalhost\\n::1\\tlocalhost ip6-localhost ip6-loopback\\n" > "$1"/etc/hosts',
]

/** Mounted over in a sandbox, so their content is nobody's. */
const emptied = ['dev', 'proc', 'sys', 'run', 'tmp']

/** Raised when the way an image is made changes without its recipe: it is part of the cache's key. */
const format = 1

export interface BaseImageOptions {
  /** The OCI layout that the agent reads. */
  readonly imagesDir: string
  /** Shared between data directories; holds a layout per recipe. */
  readonly cacheDir: string
  /** Told what is being done. */
  readonly say: (what: string) => void
  /** Kills the build, which leaves nothing. */
  readonly signal?: AbortSignal
}

/**
 * Makes the base images available in `imagesDir`.
 * @returns `unchanged` when they were there, `cached` when another data directory had them built, else `built`
 * @throws CommandFailed of mmdebstrap, Fault when the machine has no package sources
 */
export async function ensureBaseImages(options: BaseImageOptions): Promise<'unchanged' | 'cached' | 'built'> {
  const finished = join(options.cacheDir, await recipeKey())
  const had = await readFile(join(finished, 'index.json')).catch((error: unknown) => ignore(error, 'ENOENT'))
  if (!had) await buildInto(finished, options)
  const changed = await copyLayout(finished, options.imagesDir)
  if (!had) return 'built'
  return changed ? 'cached' : 'unchanged'
}

async function recipeKey(): Promise<string> {
  const { ID = '', VERSION_CODENAME = '' } = parseOsRelease(await readFile('/etc/os-release', 'utf8'))
  const all = JSON.stringify([format, ID, VERSION_CODENAME, architecture(), base, derived, env, dpkgOptions, clean])
  return createHash('sha256').update(all).digest('hex').slice(0, 32)
}

async function buildInto(finished: string, options: BaseImageOptions): Promise<void> {
  await mkdir(options.cacheDir, { recursive: true, mode: 0o700 })
  await removeAbandoned(options.cacheDir)
  const work = await mkdtemp(join(options.cacheDir, `build-${process.pid}-${processStart(process.pid)}-`))
  try {
    const layout = join(work, 'layout')
    await build(work, layout, options)
    // Another build of the same recipe may have been faster; its images are as good.
    await rename(layout, finished).catch((error: unknown) => ignore(error, 'ENOTEMPTY', 'EEXIST'))
  } finally {
    await removeTree(work)
  }
}

/** Removes what killed builds left behind. */
async function removeAbandoned(cacheDir: string): Promise<void> {
  for (const name of await readdir(cacheDir)) {
    const [, pid, start] = /^build-(\d+)-(\d+)-/.exec(name) ?? []
    if (pid && start && !isAlive({ pid: Number(pid), start: Number(start) })) await removeTree(join(cacheDir, name))
  }
}

interface Root {
  readonly root: string
  readonly tree: Tree
}

async function build(work: string, layout: string, { say, signal }: BaseImageOptions): Promise<void> {
  const apt = await readAptSources()
  const mirror = join(work, 'sources')
  await writeFile(mirror, apt.sources)
  await createLayout(layout)
  const of = { work, mirror, apt, signal }
  say(`${base.name} from ${apt.distribution} ${apt.suite}`)
  const lower = await bootstrap(join(work, base.name), base, 'apt', of)
  const ground = await addLayer(layout, lower.root, { changed: [...lower.tree.keys()], removed: [] })
  say(derived.map((recipe) => recipe.name).join(' and '))
  const images = await Promise.all(
    derived.map(async (recipe) => {
      const root = join(work, recipe.name)
      await copyRoot(lower.root, root)
      const upper = await bootstrap(root, recipe, 'custom', of)
      return { recipe, content: difference(lower, upper), root }
    }),
  )
  const manifests: Descriptor[] = [...(await describe(layout, base, [ground], apt))]
  for (const { recipe, content, root } of images)
    manifests.push(...(await describe(layout, recipe, [ground, await addLayer(layout, root, content)], apt)))
  await writeIndex(layout, manifests)
}

const describe = (layout: string, recipe: Recipe, layers: readonly Descriptor[], apt: AptSources) =>
  addImage(layout, {
    references: [`${recipe.name}:latest`, `${recipe.name}:${apt.suite}`],
    layers,
    env,
    command: recipe.command,
    annotations: { 'dev.berth.distribution': apt.distribution, 'dev.berth.suite': apt.suite },
    createdS: apt.releaseS,
  })

interface Build {
  readonly work: string
  readonly mirror: string
  readonly apt: AptSources
  readonly signal: AbortSignal | undefined
}

/** Kills unshare(1) when this process dies, and with it everything in its pid namespace. */
const contained = [
  'setpriv',
  '--pdeathsig=KILL',
  '--',
  'unshare',
  '--pid',
  '--mount-proc',
  '--kill-child',
  '--',
] as const

/**
 * Runs mmdebstrap on a root directory.
 * @param variant `apt` starts from nothing; `custom` adds packages to what is there
 */
async function bootstrap(root: string, recipe: Recipe, variant: 'apt' | 'custom', of: Build): Promise<Root> {
  const sinceMs = Date.now()
  const options = [
    `--variant=${variant}`,
    `--include=${recipe.packages.join(',')}`,
    ...[...of.apt.options, 'Acquire::Languages "none";'].map((option) => `--aptopt=${option}`),
    ...(variant === 'apt' ? dpkgOptions.map((option) => `--dpkgopt=${option}`) : ['--skip=check/empty']),
    ...clean.map((hook) => `--customize-hook=${hook}`),
  ]
  const argv = [...contained, 'mmdebstrap', '--mode=root', '--format=directory', ...options] as const
  const result = await run([...argv, of.apt.suite, root, of.mirror], {
    timeoutMs: 900_000,
    ...(of.signal ? { signal: of.signal } : {}),
    env: { ...fetchEnvironment(), TMPDIR: of.work, SOURCE_DATE_EPOCH: String(of.apt.releaseS) },
  })
  expectSuccess(result)
  settleTimes(root, sinceMs, of.apt.releaseS)
  return { root, tree: readTree(root, emptied) }
}

/** Copies a root with owners, times and links, but without what mmdebstrap makes anew in it. */
async function copyRoot(from: string, to: string): Promise<void> {
  expectSuccess(await run(['cp', '-a', '--reflink=auto', '--', from, to], { timeoutMs: 120_000 }))
  await rm(join(to, 'dev'), { recursive: true })
  await mkdir(join(to, 'dev'), { mode: 0o755 })
}
