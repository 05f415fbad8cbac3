import { Failure, Fault } from '@berth/contracts'
import { ApiError, Unreachable } from '@berth/sdk'
import { Command, InvalidArgumentError, Option } from 'commander'
import { type BuildOptions, build } from './build.js'
import { readCredentials } from './credentials.js'
import { addImageCommands } from './image-commands.js'
import { OWN_FAILURE } from './images.js'
import { runJob } from './run.js'
import { runTests } from './test.js'
import { placesFrom } from './up/config.js'
import { down } from './up/down.js'
import { showLogs, showStatus } from './up/status.js'
import { up } from './up/up.js'

/** Of a program that SIGPIPE ends, as a shell tells it. */
const NOBODY_READS = 141

const places = placesFrom(process.env)
const program = new Command('berth')
  .description('Self-hosted sandbox cloud')
  .showHelpAfterError()
  .enablePositionalOptions()

const port = (text: string) => {
  const value = Number(text)
  if (!Number.isInteger(value) || value < 1 || value > 65_535) throw new InvalidArgumentError('must be 1 to 65535')
  return value
}
const collect = (value: string, before: readonly string[]) => [...before, value]

program
  .command('up')
  .description('start everything; a second run changes nothing')
  .option('--port <port>', 'port of the API on 127.0.0.1', port)
  .action(async (options: { port?: number }) => up(places, options.port))
program
  .command('down')
  .description('end everything that up started')
  .option('--data', 'delete the data directory too', false)
  .action(async (options: { data: boolean }) => down(places, options.data))
program
  .command('status')
  .description('what runs')
  .action(() => showStatus(places))
program
  .command('logs')
  .argument('[service]', 'api, agent, postgres or redis')
  .option('-f, --follow', 'go on as they grow', false)
  .description('show logs')
  .action((service: string | undefined, options: { follow: boolean }) => showLogs(places, service, options.follow))
program
  .command('env')
  .description('print BERTH_URL and BERTH_API_KEY for eval')
  .action(async () => {
    const { url, apiKey } = await readCredentials(places)
    process.stdout.write(`export BERTH_URL='${url}'\nexport BERTH_API_KEY='${apiKey}'\n`)
  })
program
  .command('run')
  .description('run a job and exit with its exit code')
  .option('--image <image>', 'image', 'debian')
  .option('--memory <size>', 'memory limit, e.g. 256m')
  .option('--cpus <number>', 'CPU limit', Number)
  .option('--timeout <duration>', 'e.g. 10s')
  .option('--env <name=value>', 'environment variable', collect, [])
  .option('--stdin', 'pass standard input on', false)
  .argument('<command...>')
  .passThroughOptions()
  .action(async (command: string[], options) => {
    process.exitCode = await runJob(places, command, options)
  })
program
  .command('build')
  .description('build an image from a Dockerfile; the exit code is 1 when it fails')
  .option('-f, --file <file>', 'Dockerfile, or - for standard input. Default: PATH/Dockerfile')
  .option('-t, --tag <name>', 'a name for the image', collect, [])
  .option('--build-arg <name=value>', 'a build argument; without a value, of the environment', collect, [])
  .option('--label <key=value>', 'a label', collect, [])
  .option('--secret <id=ID,src=FILE>', 'a secret for RUN --mount=type=secret; or id=ID,env=NAME', collect, [])
  .option('--target <stage>', 'the stage to build')
  .option('--platform <platform>', 'e.g. linux/amd64')
  .addOption(new Option('--network <network>', 'of RUN').choices(['default', 'none']))
  .option('--memory <size>', 'memory limit of each RUN, e.g. 2g')
  .option('--cpus <number>', 'CPU limit of each RUN')
  .option('--timeout <duration>', 'of the whole build, e.g. 1h')
  .option('--no-cache', 'use nothing of earlier builds')
  .option('--pull', 'fetch base images even where there are some', false)
  .addOption(new Option('--progress <how>', 'how to tell').choices(['auto', 'plain']).default('auto'))
  .argument('[path]', 'directory to build, or - for a tar or a Dockerfile by standard input', '.')
  .action(async (path: string, options: BuildOptions) => {
    process.exitCode = await build(places, path, options)
  })
addImageCommands(program, places)
program
  .command('test')
  .description('run every test')
  .allowUnknownOption()
  .argument('[jest...]', 'arguments for jest')
  .action(async (args: string[]) => {
    process.exitCode = await runTests(args)
  })

// Who reads only the beginning of what is printed has seen what they wanted. It ends as SIGPIPE would end it, and never with
// 0: what it was at may not be done, and `images scan` may not have said what its exit code is to say.
for (const stream of [process.stdout, process.stderr])
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(NOBODY_READS)
    process.stderr.write(`berth: write: ${error.message}\n`)
    process.exit(OWN_FAILURE)
  })
try {
  await program.parseAsync()
} catch (error) {
  const told = [ApiError, Unreachable, Fault, Failure].some((kind) => error instanceof kind)
  if (!told || !(error instanceof Error)) throw error
  process.stderr.write(`berth: ${error.message}\n`)
  process.exitCode = OWN_FAILURE
}
