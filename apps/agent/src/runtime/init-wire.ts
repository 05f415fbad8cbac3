// init-wire.ts: the frames between the agent and berth-init, version 1. The source is libs/init/README.md and proto.h;
// the three change together. Pure: bytes ↔ values, no socket.
//
// What comes from init is checked as if it came from a tenant: init runs inside the sandbox, so a sandbox that broke
// it must not be able to make the agent allocate without bound or read past a frame.

export const PROTOCOL_VERSION = 1
/** STDIN and DATA carry at most this many bytes besides their offset. */
export const MAX_DATA_BYTES = 64 * 1024
/** Input that may be in flight beyond STDIN_ACK. */
export const STDIN_WINDOW_BYTES = 64 * 1024

const HEADER_BYTES = 12
/** Before the bytes of output. */
const OFFSET_BYTES = 8
/** Of the other frames the longest is an error, with a line of text. */
const MAX_OTHER_BYTES = 4096
/** The only frames that may be long, and the only ones that are not read as a whole: see event-reader.ts. */
const DATA = 69

const requestTypes = {
  hello: 1,
  spawn: 2,
  stdin: 3,
  stdinEof: 4,
  signal: 5,
  resize: 6,
  ack: 7,
  forget: 8,
  shutdown: 9,
} as const

export const spawnFlags = { main: 1, tty: 2, stdin: 4, noNewPrivs: 8, stderrToStdout: 16 } as const
export const signalScopes = { process: 0, group: 1, sandbox: 2 } as const

export type StreamName = 'stdout' | 'stderr'
const streamIds = { stdout: 1, stderr: 2 } as const

export interface ResourceLimit {
  /** RLIMIT_ number of the kernel (asm-generic/resource.h). */
  readonly resource: number
  readonly soft: bigint
  readonly hard: bigint
}

/** SPAWN: everything about a process to start. Capability sets are bit masks, bit n = capability n. */
export interface SpawnRequest {
  readonly flags: number
  readonly uid: number
  readonly gid: number
  readonly groups: readonly number[]
  readonly capabilities: {
    readonly bounding: bigint
    readonly effective: bigint
    readonly inheritable: bigint
    readonly ambient: bigint
  }
  readonly limits: readonly ResourceLimit[]
  /** 0: none. */
  readonly timeoutMs: number
  readonly graceMs: number
  readonly oomScoreAdj: number
  readonly rows: number
  readonly columns: number
  /** Per stream; 0 is init's default. */
  readonly ringBytes: number
  readonly cwd: string
  readonly argv: readonly string[]
  /** `NAME=value`. */
  readonly env: readonly string[]
}

export type InitRequest =
  | { readonly type: 'hello' }
  | { readonly type: 'spawn'; readonly proc: number; readonly spawn: SpawnRequest }
  | { readonly type: 'stdin'; readonly proc: number; readonly offset: number; readonly bytes: Uint8Array }
  | { readonly type: 'stdinEof'; readonly proc: number; readonly total: number }
  | {
      readonly type: 'signal'
      readonly proc: number
      readonly signal: number
      readonly scope: keyof typeof signalScopes
    }
  | { readonly type: 'resize'; readonly proc: number; readonly rows: number; readonly columns: number }
  | { readonly type: 'ack'; readonly proc: number; readonly stream: StreamName; readonly offset: number }
  | { readonly type: 'forget'; readonly proc: number }
  | { readonly type: 'shutdown'; readonly graceMs: number }

export type ProcessState = 'starting' | 'running' | 'exited' | 'failed'
const processStates: readonly ProcessState[] = ['starting', 'running', 'exited', 'failed']

export type FailedStage = 'fork' | 'setup' | 'cwd' | 'exec' | 'rlimit'
const failedStages: readonly FailedStage[] = ['fork', 'setup', 'cwd', 'exec', 'rlimit']

/** Why a process ended: by itself, by its timeout, by SHUTDOWN, or because MAIN ended. */
export type ExitCause = 'itself' | 'timeout' | 'shutdown' | 'mainEnded'
const exitCauses: readonly ExitCause[] = ['itself', 'timeout', 'shutdown', 'mainEnded']

export interface Range {
  /** Acknowledged so far. */
  readonly start: number
  /** Read from the process so far. */
  readonly end: number
}

/**
 * How a process ended, as init's wait4(2) saw it: CPU and memory are those of it and of the children it waited for.
 * `wallMs` is from fork to reaping, on the monotonic clock.
 */
export interface ProcessExit {
  readonly exitCode: number | undefined
  readonly signal: number | undefined
  readonly cause: ExitCause
  readonly cpuMs: number
  readonly peakMemoryBytes: number
  readonly wallMs: number
}

export type InitEvent =
  | { readonly type: 'hello'; readonly version: number; readonly processes: number }
  | {
      readonly type: 'state'
      readonly proc: number
      readonly state: ProcessState
      readonly pid: number
      readonly stdout: Range
      readonly stderr: Range
      readonly stdinExpected: number
    }
  | { readonly type: 'started'; readonly proc: number; readonly pid: number; readonly monotonicNs: bigint }
  | { readonly type: 'failed'; readonly proc: number; readonly stage: FailedStage; readonly errno: number }
  | {
      readonly type: 'data'
      readonly proc: number
      readonly stream: StreamName
      readonly offset: number
      readonly bytes: Buffer
    }
  | { readonly type: 'eof'; readonly proc: number; readonly stream: StreamName; readonly total: number }
  | { readonly type: 'exit'; readonly proc: number; readonly exit: ProcessExit }
  | { readonly type: 'stdinAck'; readonly proc: number; readonly offset: number }
  | { readonly type: 'error'; readonly proc: number; readonly errno: number; readonly message: string }

/** init said something that the protocol does not know: the connection is of no use any more. */
export class ProtocolError extends Error {
  constructor(message: string) {
    super(`berth-init: ${message}`)
    this.name = 'ProtocolError'
  }
}

/** A request as the bytes of one frame. */
export function encodeRequest(request: InitRequest): Buffer {
  switch (request.type) {
    case 'hello':
      return frame('hello', 0, 0, u32(PROTOCOL_VERSION))
    case 'spawn':
      return frame('spawn', request.proc, 0, encodeSpawn(request.spawn))
    case 'stdin':
      return frame('stdin', request.proc, 0, u64(request.offset), request.bytes)
    case 'stdinEof':
      return frame('stdinEof', request.proc, 0, u64(request.total))
    case 'signal':
      return frame('signal', request.proc, 0, u32(request.signal), Buffer.of(signalScopes[request.scope]))
    case 'resize':
      return frame('resize', request.proc, 0, u16(request.rows), u16(request.columns))
    case 'ack':
      return frame('ack', request.proc, streamIds[request.stream], u64(request.offset))
    case 'forget':
      return frame('forget', request.proc, 0)
    case 'shutdown':
      return frame('shutdown', 0, 0, u32(request.graceMs))
  }
}

function frame(type: keyof typeof requestTypes, proc: number, stream: number, ...payload: Uint8Array[]): Buffer {
  const header = Buffer.alloc(HEADER_BYTES)
  header.writeUInt32LE(
    payload.reduce((sum, part) => sum + part.length, 0),
    0,
  )
  header.writeUInt8(requestTypes[type], 4)
  header.writeUInt8(stream, 5)
  header.writeUInt32LE(proc, 8)
  return Buffer.concat([header, ...payload])
}

function encodeSpawn(spawn: SpawnRequest): Buffer {
  const caps = spawn.capabilities
  return Buffer.concat([
    u32(spawn.flags),
    u32(spawn.uid),
    u32(spawn.gid),
    list(spawn.groups, u32),
    ...[caps.bounding, caps.effective, caps.inheritable, caps.ambient].map(u64),
    list(spawn.limits, ({ resource, soft, hard }) => Buffer.concat([u32(resource), u64(soft), u64(hard)])),
    u32(spawn.timeoutMs),
    u32(spawn.graceMs),
    i32(spawn.oomScoreAdj),
    u16(spawn.rows),
    u16(spawn.columns),
    u32(spawn.ringBytes),
    text(spawn.cwd),
    list(spawn.argv, text),
    list(spawn.env, text),
  ])
}

const list = <T>(items: readonly T[], encode: (item: T) => Buffer) =>
  Buffer.concat([u32(items.length), ...items.map(encode)])

const sized = (bytes: number, write: (buffer: Buffer) => unknown) => {
  const buffer = Buffer.alloc(bytes)
  write(buffer)
  return buffer
}
const u16 = (value: number) => sized(2, (b) => b.writeUInt16LE(value))
const u32 = (value: number) => sized(4, (b) => b.writeUInt32LE(value))
const i32 = (value: number) => sized(4, (b) => b.writeInt32LE(value))
const u64 = (value: number | bigint) => sized(8, (b) => b.writeBigUInt64LE(BigInt(value)))
const text = (value: string) => {
  const bytes = Buffer.from(value, 'utf8')
  return Buffer.concat([u32(bytes.length), bytes])
}

/** The beginning of a DATA frame; `left` bytes of output follow it. */
export interface DataHead {
  readonly proc: number
  readonly stream: StreamName
  readonly offset: number
  readonly left: number
}

/**
 * How long a frame is without bytes of output, from its beginning; of one whose header is not there as much as is
 * needed to tell.
 * @throws ProtocolError on a frame that is too large, or too small for its offset
 */
export function frameHeadLength(beginning: Buffer): number {
  if (beginning.length < HEADER_BYTES) return HEADER_BYTES
  const length = beginning.readUInt32LE(0)
  const data = beginning.readUInt8(4) === DATA
  const [least, most] = data ? [OFFSET_BYTES, OFFSET_BYTES + MAX_DATA_BYTES] : [0, MAX_OTHER_BYTES]
  if (length < least || length > most) throw new ProtocolError(`a frame of ${length} bytes`)
  return HEADER_BYTES + (data ? OFFSET_BYTES : length)
}

/**
 * @param head a frame as far as `frameHeadLength` says
 * @returns undefined where it is not of a DATA frame
 * @throws ProtocolError when it is a wrong one
 */
export function dataHead(head: Buffer): DataHead | undefined {
  if (head.readUInt8(4) !== DATA) return undefined
  const left = head.readUInt32LE(0) - OFFSET_BYTES
  return { proc: head.readUInt32LE(8), stream: streamOf(head.readUInt8(5)), offset: int(head, HEADER_BYTES), left }
}

/** @param frame whole, and not DATA @throws ProtocolError when it is of an unknown type or too short for its type */
export const decodeFrame = (frame: Buffer): InitEvent =>
  decode(frame.readUInt8(4), frame.readUInt8(5), frame.readUInt32LE(8), frame.subarray(HEADER_BYTES))

function decode(type: number, stream: number, proc: number, payload: Buffer): InitEvent {
  const known = eventTypes.get(type)
  if (!known) throw new ProtocolError(`a frame of type ${type}`)
  if (payload.length < known.bytes) throw new ProtocolError(`a frame of type ${type} with ${payload.length} bytes`)
  return known.decode(payload, proc, stream)
}

type EventDecoder = (payload: Buffer, proc: number, stream: number) => InitEvent

/** Frame type → its least payload and how it is read. */
const eventTypes: ReadonlyMap<number, { readonly bytes: number; readonly decode: EventDecoder }> = new Map([
  [65, { bytes: 8, decode: (p) => ({ type: 'hello', version: p.readUInt32LE(0), processes: p.readUInt32LE(4) }) }],
  [66, { bytes: 45, decode: decodeState }],
  [
    67,
    {
      bytes: 12,
      decode: (p, proc) => ({ type: 'started', proc, pid: p.readUInt32LE(0), monotonicNs: p.readBigUInt64LE(4) }),
    },
  ],
  [
    68,
    {
      bytes: 5,
      decode: (p, proc) => ({
        type: 'failed',
        proc,
        stage: oneOf(failedStages, p.readUInt8(0) - 1, 'stage'),
        errno: p.readInt32LE(1),
      }),
    },
  ],
  [70, { bytes: 8, decode: (p, proc, s) => ({ type: 'eof', proc, stream: streamOf(s), total: int(p, 0) }) }],
  [71, { bytes: 39, decode: decodeExit }],
  [72, { bytes: 8, decode: (p, proc) => ({ type: 'stdinAck', proc, offset: int(p, 0) }) }],
  [73, { bytes: 8, decode: decodeError }],
] satisfies readonly (readonly [number, { bytes: number; decode: EventDecoder }])[])

function decodeState(p: Buffer, proc: number): InitEvent {
  return {
    type: 'state',
    proc,
    state: oneOf(processStates, p.readUInt8(0), 'state'),
    pid: p.readUInt32LE(1),
    stdout: { start: int(p, 5), end: int(p, 13) },
    stderr: { start: int(p, 21), end: int(p, 29) },
    stdinExpected: int(p, 37),
  }
}

function decodeExit(p: Buffer, proc: number): InitEvent {
  const signaled = p.readUInt8(0) === 1
  const value = p.readInt32LE(1)
  const exit = {
    exitCode: signaled ? undefined : value,
    signal: signaled ? value : undefined,
    cause: oneOf(exitCauses, p.readUInt8(5), 'cause'),
    cpuMs: (int(p, 7) + int(p, 15)) / 1000,
    peakMemoryBytes: int(p, 23),
    wallMs: int(p, 31) / 1e6,
  }
  return { type: 'exit', proc, exit }
}

function decodeError(p: Buffer, proc: number): InitEvent {
  const length = Math.min(p.readUInt32LE(4), p.length - 8)
  return { type: 'error', proc, errno: p.readUInt32LE(0), message: p.toString('utf8', 8, 8 + length) }
}

function streamOf(id: number): StreamName {
  if (id === streamIds.stdout) return 'stdout'
  if (id === streamIds.stderr) return 'stderr'
  throw new ProtocolError(`stream ${id}`)
}

function oneOf<T>(values: readonly T[], index: number, what: string): T {
  const value = values[index]
  if (value === undefined) throw new ProtocolError(`${what} ${index}`)
  return value
}

/** A u64 that counts bytes or nanoseconds: beyond 2^53 it is nonsense (285 years, 8 PiB). */
function int(payload: Buffer, at: number): number {
  const value = Number(payload.readBigUInt64LE(at))
  if (!Number.isSafeInteger(value)) throw new ProtocolError(`the number ${value}`)
  return value
}
