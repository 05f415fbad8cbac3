// image-commands.ts: what of the command line is about images, and in which words.
import { Fault, type Severity, severities } from '@berth/contracts'
import { type Command, Option } from 'commander'
import {
  type ImportOptions,
  importRoot,
  type LoadOptions,
  load,
  type PullOptions,
  type PushOptions,
  pull,
  push,
  type SaveOptions,
  save,
} from './image-transfers.js'
import {
  checkImages,
  history,
  inspect,
  type ListOptions,
  listAll,
  type PruneOptions,
  prune,
  remove,
  tag,
} from './images.js'
import { DOCKER_HUB, login, logins, logout } from './registries.js'
import { printSbom, scanImage } from './scan.js'
import type { Places } from './up/config.js'

const collect = (value: string, before: readonly string[]) => [...before, value]
const IMAGE = 'a name, a digest, or an id: its first four digits, or more'

/** Adds `pull`, `push`, `login`, `logout` and `images`. */
export function addImageCommands(program: Command, places: Places): void {
  const images = program.command('images').description('images: list, inspect, name, move, remove, check')
  for (const parent of [program, images]) addTransfers(parent, places)
  addAccounts(program, places)
  addReading(images, places)
  addChanging(images, places)
  addArchives(images, places)
  addChecks(images, places)
}

function addTransfers(parent: Command, places: Places): void {
  parent
    .command('pull')
    .description('fetch an image from its registry, as `berth run` finds it')
    .option('--platform <platform>', 'e.g. linux/amd64')
    .option('-q, --quiet', 'print its id only', false)
    .argument('<image>', 'e.g. ghcr.io/team/app:1')
    .action(async (image: string, options: PullOptions) => {
      process.exitCode = await pull(places, image, options)
    })
  parent
    .command('push')
    .description('send an image to a registry')
    .option('--to <name>', 'where to, e.g. ghcr.io/team/app:1. Default: the name that is given')
    .option('-q, --quiet', 'print its id only', false)
    .argument('<image>', IMAGE)
    .action(async (image: string, options: PushOptions) => {
      process.exitCode = await push(places, image, options)
    })
}

function addAccounts(program: Command, places: Places): void {
  program
    .command('login')
    .description('set your login for a registry, with the password from standard input; with nothing, list logins')
    .argument('[registry]', `host, with a port where it has one (default: "${DOCKER_HUB}")`)
    .option('-u, --username <name>', 'user name')
    .option('--identity-token', 'what is on standard input is an identity token, as `docker login` keeps one')
    .action(
      (registry: string | undefined, { username, identityToken }: { username?: string; identityToken?: true }) => {
        if (username !== undefined)
          return login(places, registry ?? DOCKER_HUB, username, identityToken ? 'identityToken' : 'password')
        if (registry === undefined && !identityToken) return logins(places)
        throw new Fault(`log in to ${registry ?? DOCKER_HUB}`, { cause: 'say as whom, with --username' })
      },
    )
  program
    .command('logout')
    .description('forget your login for a registry')
    .argument('[registry]', 'host, with a port where it has one', DOCKER_HUB)
    .action((registry: string) => logout(places, registry))
}

function addReading(images: Command, places: Places): void {
  images
    .command('ls', { isDefault: true })
    .description('list the images that jobs and sandboxes can start from: name, id, size, whose, age')
    .argument('[name]', 'only of this name, or with a `*` those that begin so, e.g. team/*')
    .option('--label <key=value>', 'only with this label, or key', collect, [])
    .option('--dangling', 'only those without a name', false)
    .option('-q, --quiet', 'print ids only', false)
    .option('--json', 'print each as a line of JSON', false)
    .action((name: string | undefined, options: ListOptions) => listAll(places, name, options))
  images
    .command('inspect')
    .description('print images with their layers and settings, as JSON')
    .argument('<image...>', IMAGE)
    .action(async (all: string[]) => {
      process.exitCode = await inspect(places, all)
    })
  images
    .command('history')
    .description('what made each layer, newest first: layer, age, size, command')
    .argument('<image>', IMAGE)
    .action((image: string) => history(places, image))
}

function addChanging(images: Command, places: Places): void {
  images
    .command('tag')
    .description('give an image one more name')
    .argument('<image>', IMAGE)
    .argument('<name>', 'e.g. team/app:1')
    .action((image: string, name: string) => tag(places, image, name))
  images
    .command('rm')
    .description('remove names, and with the last one the image; given an id, all of its names')
    .option('-f, --force', 'of one that is used take the names, and leave it', false)
    .argument('<image...>', IMAGE)
    .action(async (all: string[], { force }: { force: boolean }) => {
      process.exitCode = await remove(places, all, force)
    })
  images
    .command('prune')
    .description('remove images that nothing uses and no name leads to')
    .option('-a, --all', 'those with names too', false)
    .option('--older-than <age>', 'only those that were added so long ago, e.g. 7d')
    .option('--label <key=value>', 'only with this label, or key', collect, [])
    .action((options: PruneOptions) => prune(places, options))
}

function addArchives(images: Command, places: Places): void {
  images
    .command('save')
    .description('write images as one tar, to standard output')
    .option('-o, --output <file>', 'into this file')
    .addOption(
      new Option('--format <format>', "docker: as `docker save`; oci: OCI's layout")
        .choices(['docker', 'oci'] as const)
        .default('docker' as const),
    )
    .argument('<image...>', IMAGE)
    .action((all: string[], options: SaveOptions) => save(places, all, options))
  images
    .command('load')
    .description("take in what `docker save` wrote, or a tar of OCI's layout, from standard input")
    .option('-i, --input <file>', 'from this file')
    .option('-q, --quiet', 'print ids only', false)
    .action(async (options: LoadOptions) => {
      process.exitCode = await load(places, options)
    })
  images
    .command('import')
    .description('make an image of one layer from a tar of a root file system')
    .option('--config <json>', 'what containers of it run with, e.g. {"command":["sh"],"env":["A=b"]}')
    .option('-q, --quiet', 'print its id only', false)
    .argument('<file>', 'the tar, or - for standard input')
    .argument('[name]', 'its name')
    .action(async (file: string, name: string | undefined, options: ImportOptions) => {
      process.exitCode = await importRoot(places, file, name, options)
    })
}

function addChecks(images: Command, places: Places): void {
  images
    .command('fsck')
    .description('check every blob and layer of this machine; the exit code is 1 when something is wrong')
    .action(async () => {
      process.exitCode = await checkImages(places)
    })
  images
    .command('scan')
    .description('list known vulnerabilities; the exit code is 1 when the policy refuses the image')
    .argument('<image>', IMAGE)
    .addOption(new Option('--severity <severity>', 'only these and worse ones').choices(severities))
    .action(async (image: string, { severity }: { severity?: Severity }) => {
      process.exitCode = await scanImage(places, image, severity)
    })
  images
    .command('sbom')
    .description('print a bill of materials')
    .argument('<image>', IMAGE)
    .addOption(
      new Option('--format <format>', 'format').choices(['spdx', 'cyclonedx'] as const).default('spdx' as const),
    )
    .action((image: string, { format }: { format: 'spdx' | 'cyclonedx' }) => printSbom(places, image, format))
}
