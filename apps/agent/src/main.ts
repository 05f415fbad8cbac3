// main.ts: the agent as a process.
//
//   node main.js            run
//   node main.js --config   print every option, with its meaning and the value in effect
//   node main.js --fsck     check the images of this node: what is wrong as lines, exit code 1 where anything is
//   node main.js --clean    end all sandboxes, remove what they hold on the node, and exit

import { createLogger } from '@berth/telemetry'
import { type Agent, checkImages, cleanNode, startAgent } from './agent.js'
import { type Config, describeConfig, InvalidConfig, readConfig } from './config.js'
import { describeFindings } from './images/fsck.js'

async function main(argument: string | undefined): Promise<void> {
  const config = configOrExit()
  // Directories of sandboxes are passable exactly where their modes say so.
  process.umask(0o022)
  switch (argument) {
    case undefined:
      return run(config)
    case '--config':
      process.stdout.write(describeConfig(config))
      return
    case '--fsck': {
      const findings = await checkImages(config)
      process.stdout.write(describeFindings(findings))
      process.exit(findings.problems.length > 0 ? 1 : 0)
      break
    }
    case '--clean':
      await cleanNode(config, createLogger({ name: 'agent', level: config.LOG_LEVEL }))
      process.exit(0)
      break
    default:
      process.stderr.write(`unknown argument ${argument}; usage: main.js [--config | --fsck | --clean]\n`)
      process.exitCode = 2
  }
}

function configOrExit(): Config {
  try {
    return readConfig(process.env)
  } catch (error) {
    if (!(error instanceof InvalidConfig)) throw error
    process.stderr.write(`${error.message}\n`)
    process.exit(2)
  }
}

async function run(config: Config): Promise<void> {
  const log = createLogger({ name: 'agent', level: config.LOG_LEVEL })
  const die = (err: unknown) => {
    log.fatal({ err }, 'agent.crashed')
    process.exit(1)
  }
  process.on('uncaughtException', die)
  process.on('unhandledRejection', die)
  const startedAt = performance.now()
  let agent: Agent | undefined
  const stop = async () => {
    log.info({}, 'agent.stopping')
    // One that has not joined yet holds nothing that the next start would not put right.
    await agent?.stop()
    process.exit(0)
  }
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => void stop())
  agent = await startAgent(config, log)
  log.info({ ms: Math.round(performance.now() - startedAt) }, 'agent.ready')
}

await main(process.argv[2])
