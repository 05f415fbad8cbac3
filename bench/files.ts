// files.ts: files of a sandbox over HTTP: large ones by their bytes per second, small ones by their milliseconds.
import { randomBytes } from 'node:crypto'
import { MiB, readFile, statFile, writeFile } from '@berth/contracts'
import { expectSuccess, run, stream } from '@berth/host'
import { type Measured, measure, percentiles, timed } from './load.js'
import { openPair, type Pair } from './sandbox.js'
import { one, type Section, say, table } from './section.js'

const large = randomBytes(100 * MiB)
const small = randomBytes(1024)
const [LARGE, SMALL] = ['/tmp/large', '/tmp/small']
const ROUNDS = 5
const COUNT = 200

/** The same of a sandbox's files and of a container's. Each looks at what it gets. */
interface Files {
  write(path: string, bytes: Buffer): Promise<void>
  read(path: string, bytes: Buffer): Promise<void>
  stat(path: string, bytes: Buffer): Promise<void>
}

const operations = ['write', 'read', 'stat'] as const satisfies (keyof Files)[]

export const files: Section = {
  name: 'files',
  title: 'Files: up, down, and small ones',
  async measure(at) {
    await using pair = await openPair(at)
    const ours = ofSandbox(pair)
    const peer = ofContainer(pair)
    const rates: (string | number)[][] = []
    for (const operation of ['write', 'read'] as const) {
      const [mine, theirs] = [
        await rate(() => ours[operation](LARGE, large)),
        await rate(() => peer[operation](LARGE, large)),
      ]
      rates.push([operation, one(mine), one(theirs), `${one(mine / theirs)}x`])
      say(rates.at(-1)?.join(' | ') ?? '')
    }
    const times: (string | number)[][] = []
    for (const operation of operations) {
      const mine = await each(() => ours[operation](SMALL, small), COUNT)
      const theirs = await each(() => peer[operation](SMALL, small), COUNT / 4)
      const numbers = [mine.p50, mine.p95, mine.p99, theirs.p50, theirs.p95].map(one)
      times.push([operation, ...numbers, `${one(mine.p50 / theirs.p50)}x`])
      say(times.at(-1)?.join(' | ') ?? '')
    }
    return `A file of ${large.length / MiB} MiB, by \`PUT\` and \`GET …/files\`; what comes down is compared. Beside it \`crun exec\` of \`cat\` with a
pipe, in a container whose writable layer is a directory of the host's disk. MB/s, median of ${ROUNDS}.

${table(['whole file', 'MB/s', 'bare', '÷ bare'], rates)}

A file of 1 KiB, one call after the other (${COUNT}). Milliseconds; bare is \`crun exec\` of \`cat\` or \`stat\`.

${table(['small file', 'p50', 'p95', 'p99', 'bare p50', 'bare p95', '÷ bare'], times)}`
  },
}

const each = (work: () => Promise<void>, count: number): Promise<Measured> => measure(count, 1, () => timed(work))

/** MB/s */
async function rate(work: () => Promise<void>): Promise<number> {
  const times: number[] = []
  for (let i = 0; i < ROUNDS; i++) times.push(await timed(work))
  return large.length / 1e6 / (percentiles(times).p50 / 1000)
}

function ofSandbox({ client, sandbox: { id: sandbox } }: Pair): Files {
  const params = { sandbox }
  return {
    async write(path, bytes) {
      const { sizeBytes } = await client.send(writeFile, { params, query: { path } }, bytes)
      mustBe(sizeBytes === bytes.length, 'write', path)
    },
    read: async (path, bytes) => compare(await client.open(readFile, { params, query: { path } }), path, bytes),
    async stat(path, bytes) {
      const { sizeBytes } = await client.call(statFile, { params, query: { path } })
      mustBe(sizeBytes === bytes.length, 'stat', path)
    },
  }
}

function ofContainer({ container }: Pair): Files {
  return {
    async write(path, bytes) {
      const argv = container.execArgv([], ['sh', '-c', `cat > ${path}`])
      expectSuccess(await run(argv, { stdin: bytes }))
    },
    async read(path, bytes) {
      const { stdout, stderr, ended } = await stream(container.execArgv([], ['cat', path]))
      stderr?.destroy()
      await compare(stdout, path, bytes)
      mustBe((await ended).exitCode === 0, 'read', path)
    },
    stat: async (path, bytes) => void (await container.exec(['stat', '-c', '%s', path], `${bytes.length}\n`)),
  }
}

async function compare(bytes: AsyncIterable<unknown>, path: string, expected: Buffer): Promise<void> {
  let offset = 0
  for await (const chunk of bytes) {
    if (!Buffer.isBuffer(chunk)) throw new Error(`${path} came as something else than bytes`)
    mustBe(chunk.equals(expected.subarray(offset, offset + chunk.length)), 'read', path)
    offset += chunk.length
  }
  mustBe(offset === expected.length, 'read', path)
}

function mustBe(right: boolean, operation: keyof Files, path: string): void {
  if (!right) throw new Error(`${operation} of ${path}: not what was written`)
}
