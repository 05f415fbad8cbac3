// Headers of archives that cost more than they say, and files with holes as GNU tar writes them.
import { execFileSync } from 'node:child_process'
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough, Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { gzipSync } from 'node:zlib'
import { Fault } from '@berth/contracts'
import { afterAll, describe, expect, test } from '@jest/globals'
import { type Header, pack } from 'tar-stream'
import { eachEntry } from './entries.js'

type Entry = Partial<Header> & { readonly name: string; readonly text?: string }

async function tarOf(entries: readonly Entry[], end = Buffer.alloc(0)): Promise<Buffer> {
  const tar = pack()
  for (const { text = '', ...header } of entries) tar.entry({ mtime: new Date(0), ...header }, text)
  tar.finalize()
  return Buffer.concat([await buffer(Readable.from(tar)), end])
}

async function namesIn(tar: Buffer): Promise<readonly string[]> {
  const names: string[] = []
  const take = async (entry: Parameters<Parameters<typeof eachEntry>[1]>[0]) => {
    names.push(entry.header.name)
    for await (const _ of entry) {
      // It is read to its end.
    }
  }
  for (const sent of [tar, gzipSync(tar)])
    await eachEntry(Readable.from([sent.subarray(0, 1000), sent.subarray(1000)]), take, new AbortController().signal)
  return names
}

/** So many fields of so many bytes. */
const fields = (count: number, bytes: number) =>
  Object.fromEntries(Array.from({ length: count }, (_, i) => [`SCHILY.xattr.user.${i}`, 'x'.repeat(bytes)]))

describe('headers of an archive', () => {
  test('may be as large as those of files are, and end with megabytes of zeros', async () => {
    const large = { name: 'large', text: 'y'.repeat(2_000_000) }
    const tar = await tarOf([{ name: 'a', pax: fields(200, 200) }, large, { name: 'b' }], Buffer.alloc(3 * 1024 * 1024))
    expect(await namesIn(tar)).toEqual(['a', 'large', 'b', 'a', 'large', 'b'])
  })

  test('are refused when one is of megabytes, or of thousands of fields', async () => {
    const before = { name: 'before', text: 'z'.repeat(600_000) }
    const large = await tarOf([before, { name: 'a', pax: fields(20, 100_000) }])
    await expect(namesIn(large)).rejects.toMatchObject({ code: 'archive_invalid', message: /headers.*too large/ })
    const many = await tarOf([before, { name: 'a', pax: fields(1100, 1) }])
    await expect(namesIn(many)).rejects.toMatchObject({ code: 'archive_invalid', message: /1000 fields/ })
  })
})

/** The block of a header, and what it says it has. */
function headerOf(type: string, size: number, name = 'h'): Buffer {
  const block = Buffer.alloc(512)
  block.write(name)
  for (const [at, text] of [
    [100, '0000644'],
    [124, size.toString(8).padStart(11, '0')],
    [136, '0'.repeat(11)],
    [156, type],
    [257, 'ustar\x0000'],
  ] as const)
    block.write(text, at)
  const sum = block.reduce((all, byte) => all + byte, 8 * 0x20)
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return block
}
const inBlocks = (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc(-bytes.length & 511)])
const extendedBy = (text: string) => [headerOf('x', text.length), inBlocks(Buffer.from(text))]

describe('what one reader may take for an entry and another for its content', () => {
  // As content it would be passed on unseen, whatever its headers come to.
  const hidden = Buffer.concat([headerOf('0', 0, 'hidden'), Buffer.alloc(1024)])
  const file = Buffer.concat([headerOf('0', hidden.length, 'file'), hidden])
  const end = Buffer.alloc(1024)

  test('is content where zeros come after the headers that say how large it is', async () => {
    const large = await tarOf([{ name: 'a', pax: fields(2, 100_000) }])
    const empty = Buffer.concat([...extendedBy('10 size=0\n'), Buffer.alloc(512), headerOf('0', large.length), large])
    await expect(namesIn(empty)).rejects.toMatchObject({ code: 'archive_invalid', message: /headers.*too large/ })
    const larger = Buffer.concat([
      ...extendedBy(`13 size=${hidden.length}\n`),
      Buffer.alloc(512),
      headerOf('0', 0, 'file'),
      hidden,
      end,
    ])
    expect(await namesIn(larger)).toEqual(['file', 'file'])
  })

  test('is never a block that holds nothing but its checksum', async () => {
    const blank = Buffer.alloc(512)
    blank.write('000400\0 ', 148)
    const tar = Buffer.concat([...extendedBy(`13 size=${hidden.length}\n`), blank, hidden, end])
    await expect(namesIn(tar)).rejects.toMatchObject({ code: 'archive_invalid' })
  })

  test.each(['x', 'g', 'L', 'K'])('is content after an empty header of type %s', async (type) => {
    const text = Buffer.from('x'.repeat(600))
    const tar = Buffer.concat([headerOf(type, 0), headerOf('0', 600, 'a'), inBlocks(text), file, end])
    expect(await namesIn(tar)).toEqual(['a', 'file', 'a', 'file'])
  })

  test('is content though an extended header came before one that is empty', async () => {
    const tar = Buffer.concat([...extendedBy('10 size=0\n'), headerOf('x', 0), file, end])
    expect(await namesIn(tar)).toEqual(['file', 'file'])
  })
})

/** What is in a tar that comes in pieces of so many bytes. */
async function filesIn(tar: Buffer, piece: number, maxBytes = 1 << 30) {
  const files: Record<string, Buffer> = {}
  const pieces = function* () {
    for (let at = 0; at < tar.length; at += piece) yield tar.subarray(at, at + piece)
  }
  const take = async (entry: Parameters<Parameters<typeof eachEntry>[1]>[0]) => {
    expect(Object.keys(entry.header.pax ?? {}).filter((key) => key.startsWith('GNU.'))).toEqual([])
    expect(entry.header.type).toBe('file')
    files[entry.header.name] = await buffer(entry)
    expect(files[entry.header.name]).toHaveLength(entry.header.size)
  }
  await eachEntry(Readable.from(pieces()), take, new AbortController().signal, { maxBytes })
  return files
}

describe('files with holes', () => {
  const directory = mkdtempSync(join(tmpdir(), 'berth-entries-'))
  afterAll(() => rmSync(directory, { recursive: true }))

  /** So many pieces, each alone in 64 KiB. */
  function sparseFile(name: string, pieces: number, size: number): Buffer {
    const fd = openSync(join(directory, name), 'w')
    for (let i = 0; i < pieces; i++) writeSync(fd, `${i}`.padEnd(5, '.'), 65_536 * (i + 1) - 5)
    ftruncateSync(fd, size)
    closeSync(fd)
    return readFileSync(join(directory, name))
  }
  const tarBy = (options: readonly string[], names: readonly string[]) => {
    const how = ['--create', '--sparse', '--hole-detection=raw', ...options, '--directory', directory]
    return execFileSync('tar', [...how, ...names], { maxBuffer: 1 << 28 })
  }
  const kinds = [
    ['--format=gnu'],
    ...['0.0', '0.1', '1.0'].map((version) => ['--format=pax', `--sparse-version=${version}`]),
  ]

  test.each(kinds)('are what they were before GNU tar packed them: %s %s', async (...options) => {
    const long = `${'l'.repeat(180)}ü`
    const contents = {
      few: sparseFile('few', 3, 3 * 65_536),
      many: sparseFile('many', 80, 81 * 65_536 + 1),
      nothing: sparseFile('nothing', 0, 100_000),
      [long]: sparseFile(long, 5, 400_000),
    }
    writeFileSync(join(directory, 'plain'), 'plain')
    const tar = tarBy(options, [...Object.keys(contents), 'plain'])
    expect(tar.length).toBeLessThan(1 << 18)
    for (const piece of [333, 1 << 20]) {
      const { plain, ...files } = await filesIn(tar, piece)
      expect(plain?.toString()).toBe('plain')
      expect(Object.keys(files)).toEqual(Object.keys(contents))
      for (const [name, bytes] of Object.entries(contents)) expect(files[name]?.equals(bytes)).toBe(true)
    }
  })

  test.each(kinds)('are as large as they are with their holes: %s %s', async (...options) => {
    writeFileSync(join(directory, 'large'), 'x')
    truncateSync(join(directory, 'large'), 2 ** 40)
    const how = ['--create', '--sparse', '--hole-detection=seek', ...options, '--directory', directory, 'large']
    const refused = { code: 'archive_invalid', message: `more than ${2 ** 30} bytes` }
    await expect(filesIn(execFileSync('tar', how), 1 << 20)).rejects.toMatchObject(refused)
  })

  const sparse = (records: Readonly<Record<string, string>>, text = '') =>
    tarOf([
      {
        name: 's',
        text: records.major === '1' ? text.padEnd(Math.ceil(text.length / 512) * 512, '\0') : text,
        pax: Object.fromEntries(Object.entries(records).map(([key, value]) => [`GNU.sparse.${key}`, value])),
      },
    ])
  test.each<[string, Readonly<Record<string, string>>, string, RegExp]>([
    ['of no known version', { major: '2', realsize: '9' }, '', /unknown kind/],
    ['without a size', { map: '0,1' }, 'x', /without its size/],
    ['with pieces over each other', { size: '9', map: '0,4,3,4' }, 'xxxxxxxx', /over each other/],
    ['with a piece beyond the end', { size: '9', map: '8,2' }, 'xx', /beyond its end/],
    ['with a piece that ends where numbers do', { size: '9', map: '9,9007199254740991' }, '', /beyond its end/],
    ['with numbers beyond all', { size: '9', map: '9,9007199254740993' }, '', /wrong number/],
    ['of which less is there', { size: '9', map: '0,3' }, 'xx', /more, or less/],
    ['of which more is there', { size: '9', map: '0,1' }, 'xx', /more, or less/],
    ['with half a pair', { size: '9', map: '0,1,2' }, 'x', /map is damaged/],
    ['with a length without its offset', { size: '9', numbytes: '1' }, 'x', /map is damaged/],
    ['with another number of pieces', { size: '9', map: '0,1', numblocks: '2' }, 'x', /map is damaged/],
    ['with a map that is none', { major: '1', realsize: '9' }, 'x', /map is damaged/],
    ['with a map without an end', { major: '1', realsize: '9' }, '0'.repeat(2048), /map is damaged/],
    ['with a map of too many pieces', { major: '1', realsize: '9' }, '65537\n', /too many pieces/],
    ['with a map that is cut', { major: '1', realsize: '9' }, '3\n0\n', /map is damaged/],
  ])('are refused %s', async (_what, records, text, message) => {
    await expect(filesIn(await sparse(records, text), 1000)).rejects.toMatchObject({ code: 'archive_invalid', message })
  })

  test('are refused where a tar says it of all, or of what is no file', async () => {
    const directory = await tarOf([{ name: 'd', type: 'directory', pax: { 'GNU.sparse.size': '1' } }])
    await expect(filesIn(directory, 1000)).rejects.toMatchObject({ message: /no file/ })
    const old = await tarOf([{ name: 'f', text: 'x' }])
    old.write('S', 156)
    // Two characters more than the zero that was there.
    old.write(
      `${(Number.parseInt(old.toString('latin1', 148, 154), 8) + 0x53 - 0x30).toString(8).padStart(6, '0')}`,
      148,
    )
    await expect(filesIn(old, 1000)).rejects.toMatchObject({ message: /unknown kind/ })
  })
})

test.each([
  ['a fault', new Fault('write a file', { cause: 'the disk' })],
  ['what the kernel says', Object.assign(new Error('EIO: i/o error, write'), { code: 'EIO', syscall: 'write' })],
])('%s while an entry is taken is not told of the archive', async (_, fault) => {
  const tar = await tarOf([{ name: 'a', text: 'x' }])
  const reading = eachEntry(Readable.from([tar]), () => Promise.reject(fault), new AbortController().signal)
  await expect(reading).rejects.toBe(fault)
})

describe('what is packed', () => {
  test('otherwise than its beginning says is told so', async () => {
    const packed = gzipSync(await tarOf([{ name: 'a', text: 'x'.repeat(100_000) }]))
    packed.fill(0xff, 20, 60)
    const reading = eachEntry(
      Readable.from([packed]),
      async (entry) => void entry.resume(),
      new AbortController().signal,
    )
    await expect(reading).rejects.toMatchObject({ code: 'archive_invalid', message: /not packed as it says: gzip/ })
  })
})

describe('a tar that stops in the middle of an entry', () => {
  const half = async () => (await tarOf([{ name: 'a', text: 'x'.repeat(300_000) }])).subarray(0, 200_000)
  const packings = [
    ['plain', (tar: Buffer) => tar],
    ['gzip', (tar: Buffer) => gzipSync(tar)],
  ] as const
  const endings = [
    ['its reader is called back', (_source: PassThrough, leaving: AbortController) => leaving.abort(new Error('left'))],
    ['its sender has gone', (source: PassThrough) => source.destroy()],
    ['its sender has failed', (source: PassThrough) => source.destroy(new Error('gone'))],
    [
      'both',
      (source: PassThrough, leaving: AbortController) => {
        leaving.abort(new Error('left'))
        source.destroy(new Error('gone'))
      },
    ],
  ] as const
  const cases = packings.flatMap(([how, pack]) => endings.map(([why, end]) => [how, why, pack, end] as const))

  test.each(cases)('as %s is not waited for when %s', async (_how, _why, packed, end) => {
    const [source, leaving] = [new PassThrough(), new AbortController()]
    source.on('error', () => undefined)
    source.write(packed(await half()))
    let begun: (() => void) | undefined
    const reading = new Promise<void>((resolve) => {
      begun = resolve
    })
    const take = async (entry: Parameters<Parameters<typeof eachEntry>[1]>[0]) => {
      for await (const _ of entry) begun?.()
    }
    const over = expect(eachEntry(source, take, leaving.signal)).rejects.toThrow()
    await reading
    end(source, leaving)
    await over
  })
})
