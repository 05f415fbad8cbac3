// terminals.ts: how soon a key is seen, and how fast output comes, through API and agent.
import { constants } from 'node:os'
import { closeTerminal, connectTerminal, createTerminal, MiB, TerminalMessage } from '@berth/contracts'
import { sendSignal, streamOnTerminal } from '@berth/host'
import { type Measured, measure, timed } from './load.js'
import { openPair, type Pair } from './sandbox.js'
import { one, type Section, say, table } from './section.js'

const KEYS = 500
const BYTES = 200 * MiB
const ROUNDS = 3

const READY = 'ready'
const size = { rows: 24, columns: 80 } as const
/** Waits for a key before it floods, so that the clock starts with it. Raw: every byte comes as it was written. */
const program = (after: string) => ['sh', '-c', `stty raw -echo; printf ${READY}; ${after}`] as const
const echo = program('exec cat')
const flood = program(`head -c 1 >/dev/null; head -c ${BYTES} /dev/zero | tr '\\0' x; exec sleep 1000`)
const filled = Buffer.alloc(MiB, 'x')

export const terminals: Section = {
  name: 'terminals',
  title: 'Terminals: keys and floods',
  async measure(at) {
    await using pair = await openPair(at)
    const ways = [
      { name: 'Berth, over its WebSocket', open: (argv: Argv) => ours(pair, argv) },
      {
        name: 'bare: `crun exec --tty` on node-pty',
        open: (argv: Argv) => bare(pair.container.execArgv(['--tty'], argv)),
      },
      { name: 'node-pty on the host', open: (argv: Argv) => bare([...argv]) },
    ]
    const rows: (string | number)[][] = []
    for (const { name, open } of ways) {
      const keys = await typed(open)
      const floods: number[] = []
      let told = BYTES
      for (let i = 0; i < ROUNDS; i++) {
        const { ms, bytes } = await flooded(open)
        floods.push(BYTES / 1e6 / (ms / 1000))
        told = Math.min(told, bytes)
      }
      const median = floods.sort((a, b) => a - b)[Math.floor(ROUNDS / 2)] ?? Number.NaN
      rows.push([name, ...[keys.p50, keys.p95, keys.p99, median].map(one), `${Math.round((told / BYTES) * 100)} %`])
      say(rows.at(-1)?.join(' | ') ?? '')
    }
    return `A key is typed when the one before was seen (${KEYS} of them, into \`cat\` on a raw terminal): milliseconds until it is
there again. Output: MB/s of ${BYTES / MiB} MiB as fast as they are read, median of ${ROUNDS}. A viewer that is further behind than
a MiB is given the screen instead: "delivered" is the least share of the bytes that came as they were written.

${table(['terminal', 'key p50', 'p95', 'p99', 'MB/s', 'delivered'], rows)}`
  },
}

type Argv = readonly [string, ...string[]]

/** A terminal as whoever sits before it has it. */
interface Line {
  type(bytes: Buffer): void
  /** @param listen told of output, and of how many bytes before it were left out */
  onOutput(listen: (bytes: Buffer, skipped: number) => void): void
  close(): Promise<unknown>
}

type Open = (argv: Argv) => Promise<Line>

async function typed(open: Open): Promise<Measured> {
  const line = await open(echo)
  let seen: (text: string) => void = () => undefined
  const output = () => new Promise<string>((resolve) => (seen = resolve))
  const ready = output()
  line.onOutput((bytes) => seen(bytes.toString()))
  if ((await ready) !== READY) throw new Error('the terminal did not say that it is ready')
  let keys = 0
  try {
    return await measure(KEYS, 1, () =>
      timed(async () => {
        const key = String.fromCharCode(97 + (keys++ % 26))
        const echoed = output()
        line.type(Buffer.from(key))
        const text = await echoed
        if (text !== key) throw new Error(`typed ${key}, saw ${JSON.stringify(text)}`)
      }),
    )
  } finally {
    await line.close()
  }
}

/** Looks at every byte that comes; none is missing but those that were left out. @returns how many came */
async function flooded(open: Open): Promise<{ readonly ms: number; readonly bytes: number }> {
  const line = await open(flood)
  const flow = { total: 0, bytes: 0 }
  const marks = new Map<number, () => void>()
  const at = (offset: number) => new Promise<void>((resolve) => marks.set(offset, resolve))
  const [ready, done] = [at(READY.length), at(READY.length + BYTES)]
  line.onOutput((piece, skipped) => {
    const text = flow.total < READY.length
    if (!text && !filled.subarray(0, piece.length).equals(piece)) throw new Error('other bytes than were written')
    flow.total += skipped + piece.length
    flow.bytes += text ? 0 : piece.length
    marks.get(flow.total)?.()
  })
  await ready
  const ms = await timed(() => {
    line.type(Buffer.from('g'))
    return done
  })
  await line.close()
  return { ms, bytes: flow.bytes }
}

async function ours({ client, sandbox: { id: sandbox } }: Pair, command: Argv): Promise<Line> {
  const body = { command: [...command], ...size }
  const { id: terminal } = await client.call(createTerminal, { params: { sandbox }, body })
  const params = { sandbox, terminal }
  const socket = await client.socket(connectTerminal, { params, query: { since: 0 } })
  let position = 0
  let drawn = false
  return {
    type: (bytes) => socket.send(Buffer.concat([Buffer.of(0), bytes])),
    onOutput(listen) {
      socket.on('message', (data, binary) => {
        if (!Buffer.isBuffer(data)) throw new Error('a frame that is not whole')
        if (!binary) {
          const message = TerminalMessage.parse(JSON.parse(data.toString()))
          if (message.type !== 'screen') return
          drawn = true
          listen(Buffer.alloc(0), message.offset - position)
          position = message.offset
        } else if (drawn) drawn = false
        else {
          position += data.length - 1
          listen(data.subarray(1), 0)
        }
      })
      socket.resume()
    },
    async close() {
      socket.terminate()
      await client.call(closeTerminal, { params })
    },
  }
}

async function bare(argv: [string, ...string[]]): Promise<Line> {
  const { pid, stdin, stdout, ended } = await streamOnTerminal(argv, size)
  return {
    type: (bytes) => void stdin?.write(bytes),
    onOutput: (listen) => void stdout.on('data', (bytes: Buffer) => listen(bytes, 0)),
    close() {
      sendSignal(pid, constants.signals.SIGKILL, true)
      return ended
    },
  }
}
