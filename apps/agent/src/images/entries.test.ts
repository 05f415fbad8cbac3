// Headers of archives that cost more than they say.
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { gzipSync } from 'node:zlib'
import { describe, expect, test } from '@jest/globals'
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
