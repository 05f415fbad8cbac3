// screen-files.ts: the screen of a terminal on disk, beside the spool that has its output. Whole files are written and
// renamed, so a kill leaves the old one or the new one; like the journal they are not fsynced.
//
//   screen   a line of JSON (offset, size, title), then the text that draws it
//   cut      a place where output was cut: a line of JSON, and whatever is left of longer ones before it
//   cut.2    another: the newer of the two counts
//   sizes    one JSON line a change of size since the screen, with the offset it came at
//
// Of a flood a cut is saved twice in a MB, and ext4 makes whoever renames over a file wait for the disk: 1 ms each was
// seen, a twelfth of the agent's time. So cuts are written in place, over the older one. One of at most a page is in one
// write that no kill cuts; a longer one is renamed.

import {
  appendFileSync,
  closeSync,
  constants,
  openSync,
  readFileSync,
  renameSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { Fault, ignore, KiB, TerminalSize } from '@berth/contracts'
import { z } from 'zod'
import type { Spool } from '../logs/spool.js'
import type { Cut } from './reduce.js'
import { type Base, BLANK, type Event, type ScreenStore } from './screen.js'

const Offset = z.number().int().min(0)
const Head = z.object({ offset: Offset, size: TerminalSize, title: z.string() })
const CutFile = z.object({ from: z.number().int(), to: Offset, bytes: z.base64() })
const Sizes = z.object({ at: Offset, size: TerminalSize })
type Sizes = z.infer<typeof Sizes>

const PIECE_BYTES = 64 * KiB
/** Changes of size between two saved screens, at most: of more the oldest are given up, and only the last one shows. */
const MAX_SIZES = 1000
const NEWLINE = 0x0a
const PAGE_BYTES = 4096
const CUTS = ['cut', 'cut.2'] as const

export class ScreenFiles implements ScreenStore {
  readonly #directory: string
  readonly #spool: Spool
  #sizes: readonly Sizes[]
  /** Names of files for cuts, the one with the older cut first. */
  #cuts: readonly string[]
  /** What `save` wrote last, or a former agent did; of a new terminal it is blank. */
  readonly base: Base
  readonly cut: Cut | undefined

  /**
   * @param directory is there
   * @param size of a terminal that has no screen on disk yet
   * @throws Fault when a file is damaged
   */
  constructor(directory: string, spool: Spool, size: TerminalSize) {
    this.#directory = directory
    this.#spool = spool
    try {
      this.base = this.#readScreen()?.base ?? { offset: 0, size, title: '' }
      const cuts = CUTS.map((name) => ({ name, cut: this.#readCut(name) }))
      cuts.sort((a, b) => (a.cut?.to ?? -1) - (b.cut?.to ?? -1))
      this.#cuts = cuts.map(({ name }) => name)
      this.cut = cuts.at(-1)?.cut
      this.#sizes = this.#readSizes()
    } catch (cause) {
      throw new Fault(`read the screen in ${directory}`, { cause })
    }
  }

  save(base: Base, text: Buffer): void {
    this.#replace('screen', Buffer.concat([Buffer.from(`${JSON.stringify(base)}\n`), text]))
    const kept = this.#sizes.filter(({ at }) => at >= base.offset)
    if (kept.length === this.#sizes.length) return
    this.#sizes = kept
    this.#writeSizes()
  }

  saveCut({ from, to, bytes }: Cut): void {
    const [older = CUTS[0], ...newer] = this.#cuts
    const text = Buffer.from(`${JSON.stringify({ from, to, bytes: bytes.toString('base64') })}\n`)
    if (text.length > PAGE_BYTES) this.#replace(older, text)
    else this.#overwrite(older, text)
    this.#cuts = [...newer, older]
  }

  text(): Buffer {
    return this.#readScreen()?.text ?? BLANK
  }

  /** To be called before the screen is told. */
  resized(at: number, size: TerminalSize): void {
    this.#sizes = [...this.#sizes, { at, size }]
    if (this.#sizes.length <= MAX_SIZES) {
      appendFileSync(this.#path('sizes'), line({ at, size }), { mode: 0o600 })
      return
    }
    this.#sizes = this.#sizes.slice(-MAX_SIZES / 2)
    this.#writeSizes()
  }

  async *since(offset: number): AsyncIterable<Event> {
    const reader = this.#spool.reader(offset)
    let told = 0
    try {
      for (;;) {
        const next = this.#sizes.filter(({ at }) => at >= offset)[told]
        if (next && next.at <= reader.offset) {
          told += 1
          yield { kind: 'resize', size: next.size }
          continue
        }
        const piece = await reader.read(next ? Math.min(PIECE_BYTES, next.at - reader.offset) : PIECE_BYTES)
        if (piece?.kind === 'bytes') yield { kind: 'output', offset: piece.offset, bytes: piece.bytes }
        // A change that came where output was not kept, or after the last of it.
        else if (!piece && next) {
          told += 1
          yield { kind: 'resize', size: next.size }
        } else if (!piece) return
      }
    } finally {
      await reader.close()
    }
  }

  #path(name: string): string {
    return join(this.#directory, name)
  }

  #replace(name: string, bytes: Buffer): void {
    writeFileSync(`${this.#path(name)}.new`, bytes, { mode: 0o600 })
    renameSync(`${this.#path(name)}.new`, this.#path(name))
  }

  /** Not cut off at its end: for ext4 that is as good as renaming, and as slow. */
  #overwrite(name: string, bytes: Buffer): void {
    const file = openSync(this.#path(name), OVERWRITE, 0o600)
    try {
      writeSync(file, bytes, 0, bytes.length, 0)
    } finally {
      closeSync(file)
    }
  }

  #writeSizes(): void {
    this.#replace('sizes', Buffer.from(this.#sizes.map(line).join('')))
  }

  #read(name: string): Buffer | undefined {
    try {
      return readFileSync(this.#path(name))
    } catch (error) {
      return ignore(error, 'ENOENT')
    }
  }

  #readScreen(): { readonly base: Base; readonly text: Buffer } | undefined {
    const bytes = this.#read('screen')
    if (!bytes) return undefined
    const end = bytes.indexOf(NEWLINE)
    return { base: Head.parse(JSON.parse(bytes.toString('utf8', 0, end))), text: bytes.subarray(end + 1) }
  }

  #readCut(name: string): Cut | undefined {
    const [first] = this.#read(name)?.toString('utf8').split('\n') ?? []
    if (!first) return undefined // Killed before the first one was written, it is empty.
    const cut = CutFile.parse(JSON.parse(first))
    return { ...cut, bytes: Buffer.from(cut.bytes, 'base64') }
  }

  /** A last line without its newline was being written when the agent was killed; the next would be glued to it. */
  #readSizes(): readonly Sizes[] {
    const lines = (this.#read('sizes')?.toString('utf8') ?? '').split('\n')
    const sizes = lines.slice(0, -1).map((each) => Sizes.parse(JSON.parse(each)))
    if (lines.at(-1) !== '') this.#replace('sizes', Buffer.from(sizes.map(line).join('')))
    return sizes
  }
}

const OVERWRITE = constants.O_WRONLY | constants.O_CREAT | constants.O_NOFOLLOW

const line = (sizes: Sizes): string => `${JSON.stringify(sizes)}\n`
