// execs.ts: one command in a sandbox that runs, one HTTP call from command to exit code and output.
import { measure, timed } from './load.js'
import { openPair, runTrue } from './sandbox.js'
import { one, type Section, say, table } from './section.js'

const levels = [1, 8] as const
const COUNT = 500

export const execs: Section = {
  name: 'execs',
  title: 'Execs: command to answer',
  async measure(at) {
    await using pair = await openPair(at)
    const { client, sandbox, container } = pair
    const rows: (string | number)[][] = []
    for (const inFlight of levels) {
      const ours = await measure(COUNT, inFlight, () => timed(() => runTrue(client, sandbox)))
      const bare = await measure(COUNT / 5, inFlight, () => container.exec(['true'], ''))
      const numbers = [ours.perSecond, ours.p50, ours.p95, ours.p99, bare.perSecond, bare.p50, bare.p95]
      rows.push([inFlight, ...numbers.map(one), `${one(ours.p50 / bare.p50)}x`])
      say(rows.at(-1)?.join(' | ') ?? '')
    }
    return `\`POST …/execs?wait=ended&output=true\` of \`true\` in one running sandbox, its exit code and output checked (${COUNT}
each). Beside it \`crun exec\` in a running container of the same root file system and \`config.json\`. Milliseconds.

${table(['in flight', 'per second', 'p50', 'p95', 'p99', 'bare per second', 'bare p50', 'bare p95', '÷ bare'], rows)}`
  },
}
