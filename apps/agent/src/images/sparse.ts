// sparse.ts: a tar as it comes → the same without holes, for a reader that knows no sparse files and would take their
// maps for content. GNU tar has four ways to write them (its manual, "Storing Sparse Files"): a type of entry of its own,
// and 0.0, 0.1 and 1.0 in extended headers; libs/init/untar.c reads the same for layers. All else passes byte for byte.
// Where entries are is judged as tar-stream does, which reads what comes out.
import { Failure, KiB } from '@berth/contracts'

const BLOCK = 512
const CHUNK = 64 * KiB
/** Of a sparse file; as libs/init has it. */
const MAX_PIECES = 65_536
/** Of the headers of one entry: they are held, here and by the reader, and taken apart at one go. */
const MAX_HEADER_BYTES = 128 * KiB
/** As many as a number has that JavaScript can count to. */
const MAX_DIGITS = 16
const ZEROS = Buffer.alloc(CHUNK)

/** What of a file is in the archive; the rest are holes. */
interface Piece {
  readonly offset: number
  readonly length: number
}

/** A record of an extended header, and its bytes as they are written. */
interface Field {
  readonly key: string
  readonly value: Buffer
  readonly written: Buffer
}

interface SparseFile {
  readonly size: number
  /** In their order, none over another, none beyond the end. */
  readonly pieces: readonly Piece[]
  readonly name: Buffer | undefined
}

const refuse = (why: string) => new Failure('archive_invalid', why)
const damaged = () => refuse('a sparse file whose map is damaged')

/**
 * @param maxBytes most that a file may be with its holes
 * @throws Failure archive_invalid for what is no tar, headers that are too large, maps that are wrong
 */
export const withoutHoles = (maxBytes: number) => (source: AsyncIterable<Buffer>) => joined(entries(source, maxBytes))

async function* entries(source: AsyncIterable<Buffer>, maxBytes: number): AsyncGenerator<Buffer> {
  const input = new Input(source)
  try {
    yield* entriesOf(input, maxBytes)
  } finally {
    await input.close()
  }
}

async function* entriesOf(input: Input, maxBytes: number): AsyncGenerator<Buffer> {
  let about = new About()
  for (;;) {
    const block = await input.take(BLOCK)
    if (block.length < BLOCK) {
      yield* about.bytes()
      yield block
      return
    }
    // What headers before it say is of the entry that comes after it, as tar-stream has it.
    if (block.equals(ZEROS.subarray(0, BLOCK))) {
      yield block
      continue
    }
    // One that holds nothing but its checksum is no entry for tar-stream.
    if (!isTarHeader(block) || checksumOf(block) === BLANK_CHECKSUM)
      throw refuse('it is no tar, or damaged: a checksum is wrong')
    const type = String.fromCharCode(block[156] ?? 0)
    const size = numberAt(block, 124, 12)
    if ('xgLKN'.includes(type)) {
      about.count(BLOCK + size)
      about.add(type, block, await input.take(filled(size)), size)
      continue
    }
    const stored = about.size ?? size
    const file = isSparse(type, about) ? await sparseFile(block, type, about, stored, input) : undefined
    if (file && file.size > maxBytes) throw refuse(`more than ${maxBytes} bytes`)
    yield* about.bytes(file)
    if (file) {
      yield patched(block, file.size, '0')
      yield* contentOf(file, input)
    } else {
      yield block
      // A directory has none, whatever its header says.
      if (type !== '5') yield* input.pass(filled(stored))
    }
    about = new About()
  }
}

/** Small pieces are put together. */
async function* joined(pieces: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let [waiting, bytes]: [Buffer[], number] = [[], 0]
  for await (const piece of pieces) {
    waiting.push(piece)
    bytes += piece.length
    if (bytes < CHUNK) continue
    yield waiting.length === 1 ? piece : Buffer.concat(waiting)
    ;[waiting, bytes] = [[], 0]
  }
  if (bytes > 0) yield Buffer.concat(waiting)
}

class Input {
  readonly #source: AsyncIterator<Buffer>
  #rest: Buffer = Buffer.alloc(0)

  constructor(source: AsyncIterable<Buffer>) {
    this.#source = source[Symbol.asyncIterator]()
  }

  async close(): Promise<void> {
    await this.#source.return?.()
  }

  /** Fewer at the end only. */
  async take(bytes: number): Promise<Buffer> {
    const taken: Buffer[] = []
    for await (const piece of this.pass(bytes)) taken.push(piece)
    return taken.length === 1 && taken[0] ? taken[0] : Buffer.concat(taken)
  }

  async *pass(bytes: number): AsyncGenerator<Buffer> {
    for (let left = bytes; left > 0; ) {
      if (this.#rest.length === 0) {
        const next = await this.#source.next()
        if (next.done) return
        this.#rest = next.value
      }
      const piece = this.#rest.subarray(0, left)
      this.#rest = this.#rest.subarray(piece.length)
      left -= piece.length
      if (piece.length > 0) yield piece
    }
  }

  /** @throws Failure archive_invalid when it ends before */
  async *exactly(bytes: number): AsyncGenerator<Buffer> {
    let left = bytes
    for await (const piece of this.pass(bytes)) {
      left -= piece.length
      yield piece
    }
    if (left > 0) throw refuse('it ends inside an entry')
  }
}

/** Headers about the next entry. */
class About {
  readonly #others: Buffer[] = []
  #bytes = 0
  /** The extended header, of several the last: its block, and what fills it. */
  #extended: { readonly block: Buffer; readonly content: Buffer } | undefined
  fields: readonly Field[] = []

  /** @throws Failure archive_invalid */
  count(bytes: number): void {
    this.#bytes += bytes
    if (this.#bytes > MAX_HEADER_BYTES) throw refuse('the headers of an entry are too large')
  }

  add(type: string, block: Buffer, content: Buffer, size: number): void {
    // tar-stream does not get over an empty one: of what comes next it would take something for its content.
    if (size === 0) {
      if (type === 'x') [this.#extended, this.fields] = [undefined, []]
      return
    }
    const fields = 'xg'.includes(type) ? fieldsOf(content.subarray(0, size)) : []
    if (type === 'g' && fields.some(({ key }) => key === 'size' || isOfSparse(key)))
      throw refuse('a global header that says how large every entry is')
    if (type === 'x') {
      this.#extended = { block, content }
      this.fields = fields
    } else this.#others.push(block, content)
  }

  /** Of what is in the archive of the entry. */
  get size(): number | undefined {
    const field = this.fields.findLast(({ key }) => key === 'size')
    return field && decimal(field.value)
  }

  /** As they came; of a sparse file, without what says so. */
  *bytes(file?: SparseFile): Generator<Buffer> {
    yield* this.#others
    if (!this.#extended) return
    const { block, content } = this.#extended
    if (!file) return yield* [block, content]
    const kept = this.fields.filter(
      ({ key }) => key !== 'size' && !isOfSparse(key) && !(key === 'path' && file.name !== undefined),
    )
    const records = Buffer.concat([
      ...kept.map(({ written }) => written),
      ...(file.name === undefined ? [] : [paxRecord('path', file.name)]),
    ])
    if (records.length > 0) yield* [patched(block, records.length, 'x'), records, padding(records.length)]
  }
}

const isOfSparse = (key: string) => key.startsWith('GNU.sparse.')
const isSparse = (type: string, { fields }: About) => type === 'S' || fields.some(({ key }) => isOfSparse(key))

/** `25 key=value\n`, one after another. @throws Failure archive_invalid */
function fieldsOf(content: Buffer): readonly Field[] {
  const fields: Field[] = []
  for (let at = 0; at < content.length; ) {
    const [digits = ''] = /^\d{1,7}(?= )/.exec(content.toString('latin1', at, at + 8)) ?? []
    const length = Number(digits)
    const written = content.subarray(at, at + length)
    const equals = written.indexOf('=')
    if (equals < 0 || written.length < length || written.at(-1) !== 0x0a) throw refuse('a damaged extended header')
    const key = written.toString('utf8', digits.length + 1, equals)
    fields.push({ key, value: written.subarray(equals + 1, -1), written })
    at += length
  }
  return fields
}

/** A record of an extended header; the length is that of all of it. */
export function paxRecord(key: string, value: Buffer): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`), value, Buffer.from('\n')])
  let length = rest.length + 1
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length
  return Buffer.concat([Buffer.from(String(length)), rest])
}

async function sparseFile(block: Buffer, type: string, about: About, stored: number, input: Input) {
  const { fields } = about
  const last = (key: string) => fields.findLast((field) => field.key === `GNU.sparse.${key}`)?.value
  const version = ['major', 'minor'].map((key) => decimal(last(key) ?? Buffer.from('0'))).join('.')
  if (type === 'S') {
    if (fields.some(({ key }) => isOfSparse(key))) throw refuse('a sparse file of two kinds')
    return checked({ ...(await oldMap(block, input)), name: undefined }, stored)
  }
  if (type !== '0' && type !== '\0' && type !== '7') throw refuse('a sparse file that is no file')
  if (!['0.0', '0.1', '1.0'].includes(version)) throw refuse('a sparse file of an unknown kind')
  const size = last('realsize') ?? last('size')
  if (!size) throw refuse('a sparse file without its size')
  const { pieces, bytes } =
    version === '1.0' ? await mapBefore(stored, input) : { pieces: piecesOf(fields, last('numblocks')), bytes: 0 }
  return checked({ size: decimal(size), pieces, name: last('name') }, stored - bytes)
}

/** @throws Failure archive_invalid unless pieces are in their order, within the file, and all that is stored */
function checked(file: SparseFile, stored: number): SparseFile {
  let [end, sum] = [0, 0]
  for (const { offset, length } of file.pieces) {
    if (offset < end || offset + length > file.size)
      throw refuse('a sparse file whose pieces lie over each other, or beyond its end')
    end = offset + length
    sum += length
  }
  if (sum !== stored) throw refuse('a sparse file of which more, or less, is there than its map says')
  return file
}

/** The old kind: four pieces in the header, and the size; twenty-one in each block that follows. */
async function oldMap(header: Buffer, input: Input): Promise<Pick<SparseFile, 'size' | 'pieces'>> {
  // star has the same letter for a map of another kind.
  if (header.toString('latin1', 257, 265) !== 'ustar  \0') throw refuse('a sparse file of an unknown kind')
  const pieces: Piece[] = []
  const size = numberAt(header, 483, 12)
  for (let [block, at, count] = [header, 386, 4]; ; [at, count] = [0, 21]) {
    for (let piece = at; piece < at + count * 24 && block[piece] !== 0; piece += 24)
      pieces.push({ offset: numberAt(block, piece, 12), length: numberAt(block, piece + 12, 12) })
    if (pieces.length > MAX_PIECES) throw refuse('a sparse file in too many pieces')
    if (block[at + count * 24] === 0) return { size, pieces }
    if (pieces.length === 0) throw damaged()
    block = await input.take(BLOCK)
    if (block.length < BLOCK) throw refuse('it ends inside a header')
  }
}

/** 0.0 has a pair of records for each piece, 0.1 all of them in one. */
function piecesOf(fields: readonly Field[], count: Buffer | undefined): readonly Piece[] {
  const named = { offset: 'GNU.sparse.offset', length: 'GNU.sparse.numbytes', map: 'GNU.sparse.map' }
  const pairs = fields.filter(({ key }) => key === named.offset || key === named.length)
  if (pairs.some(({ key }, at) => key !== (at % 2 === 0 ? named.offset : named.length))) throw damaged()
  const map = fields.findLast(({ key }) => key === named.map)
  const numbers = map ? map.value.toString('latin1').split(',') : pairs.map(({ value }) => value.toString('latin1'))
  if (numbers.length % 2 !== 0 || (count && decimal(count) * 2 !== numbers.length)) throw damaged()
  return paired(numbers)
}

function paired(numbers: readonly string[]): readonly Piece[] {
  const pieces: Piece[] = []
  if (numbers.length > 2 * MAX_PIECES) throw refuse('a sparse file in too many pieces')
  for (let at = 0; at < numbers.length; at += 2)
    pieces.push({ offset: decimal(numbers[at] ?? ''), length: decimal(numbers[at + 1] ?? '') })
  return pieces
}

/** 1.0 has its map before the content, filled up to whole blocks: a count, then offsets and lengths, a line for each. */
async function mapBefore(stored: number, input: Input): Promise<{ pieces: readonly Piece[]; bytes: number }> {
  const numbers: string[] = []
  let [rest, bytes, wanted] = ['', 0, 1]
  while (numbers.length < wanted) {
    if (bytes + BLOCK > stored) throw damaged()
    const block = await input.take(BLOCK)
    if (block.length < BLOCK) throw refuse('it ends inside an entry')
    bytes += BLOCK
    const lines = `${rest}${block.toString('latin1')}`.split('\n')
    rest = lines.pop() ?? ''
    if (lines.some((line) => line.length > MAX_DIGITS)) throw damaged()
    numbers.push(...lines)
    if (wanted === 1 && numbers[0] !== undefined) {
      const count = decimal(numbers[0])
      if (count > MAX_PIECES) throw refuse('a sparse file in too many pieces')
      wanted = 1 + 2 * count
    }
    // What fills the last block is no line.
    if (numbers.length < wanted && rest.length > MAX_DIGITS) throw damaged()
  }
  return { pieces: paired(numbers.slice(1, wanted)), bytes }
}

async function* contentOf({ size, pieces }: SparseFile, input: Input): AsyncGenerator<Buffer> {
  let [at, stored] = [0, 0]
  for (const { offset, length } of pieces) {
    yield* zeros(offset - at)
    yield* input.exactly(length)
    at = offset + length
    stored += length
  }
  yield* zeros(size - at)
  yield padding(size)
  await input.take(filled(stored) - stored)
}

function* zeros(bytes: number): Generator<Buffer> {
  for (let left = bytes; left > 0; left -= CHUNK) yield ZEROS.subarray(0, left)
}

const padding = (size: number) => ZEROS.subarray(0, filled(size) - size)
/** Up to whole blocks. */
const filled = (size: number) => Math.ceil(size / BLOCK) * BLOCK

/** @throws Failure archive_invalid */
function decimal(text: Buffer | string): number {
  const written = text.toString()
  if (!/^\d+$/.test(written) || written.length > MAX_DIGITS || !Number.isSafeInteger(Number(written)))
    throw refuse('an extended header with a wrong number')
  return Number(written)
}

/** Octal with blanks around it, or, with the highest bit set, big-endian (GNU). @throws Failure archive_invalid */
function numberAt(block: Buffer, at: number, length: number): number {
  const field = block.subarray(at, at + length)
  if (field[0] === 0x80) {
    const value = BigInt(`0x${field.toString('hex', 1)}`)
    if (value <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(value)
  }
  const [, digits] = /^ *([0-7]*)[ \0]*$/.exec(field.toString('latin1')) ?? []
  if (digits === undefined) throw refuse('a field of a header is no number')
  return digits === '' ? 0 : Number.parseInt(digits, 8)
}

/** The header with another size and type. */
function patched(header: Buffer, size: number, type: string): Buffer {
  const block = Buffer.from(header)
  block.fill(0, 124, 136)
  if (size < 8 ** 11) block.write(size.toString(8).padStart(11, '0'), 124, 'latin1')
  else {
    block[124] = 0x80
    block.writeBigUInt64BE(BigInt(size), 128)
  }
  block.write(type, 156, 'latin1')
  block.write(`${checksumOf(block).toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return block
}

/** Of a block of zeros. */
const BLANK_CHECKSUM = 8 * 0x20

/** The sum of its bytes, its own as spaces. */
function checksumOf(block: Buffer): number {
  let sum = BLANK_CHECKSUM
  for (let at = 0; at < BLOCK; at++) if (at < 148 || at >= 156) sum += block[at] ?? 0
  return sum
}

/** Whether a block is a tar's header, by its checksum. */
export function isTarHeader(block: Buffer): boolean {
  if (block.length < BLOCK) return false
  const written = block.toString('latin1', 148, 156).replaceAll('\0', ' ').trim()
  return Number.parseInt(written, 8) === checksumOf(block)
}
