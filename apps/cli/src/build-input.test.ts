import { buffer } from 'node:stream/consumers'
import { gzipSync } from 'node:zlib'
import { Fault } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { pack } from 'tar-stream'
import { readInput } from './build-input.js'

async function* by(size: number, bytes: Buffer) {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}
const tarOf = (files: Readonly<Record<string, string>>): Promise<Buffer> => {
  const archive = pack()
  for (const [name, text] of Object.entries(files)) archive.entry({ name }, text)
  archive.finalize()
  return buffer(archive)
}

test('a tar is the context as it comes, packed or not, whatever pieces it comes in', async () => {
  const tar = await tarOf({ Dockerfile: 'FROM x' })
  for (const whole of [tar, gzipSync(tar)])
    for (const size of [1, 300, 65_536]) {
      const { dockerfile, bytes } = await readInput(by(size, whole), undefined)
      expect(dockerfile).toMatchObject({ path: 'Dockerfile', text: null })
      expect(whole.equals(await buffer(bytes))).toBe(true)
    }
  expect((await readInput(by(512, tar), 'docker/x')).dockerfile).toMatchObject({ path: 'docker/x', text: null })
})

test.each(['FROM scratch\n', '', `#${'ustar'.repeat(200)}\nFROM x\n`])(
  'anything else is a Dockerfile without a context',
  async (text) => {
    const { dockerfile, bytes } = await readInput(by(7, Buffer.from(text)), undefined)
    expect(dockerfile).toMatchObject({ path: null, text })
    expect(await buffer(bytes)).toEqual(Buffer.alloc(1024))
  },
)

test('there is one Dockerfile, and one thing that is read', async () => {
  const tar = await tarOf({ Dockerfile: 'FROM x' })
  await expect(readInput(by(99, Buffer.from('FROM x')), 'other')).rejects.toBeInstanceOf(Fault)
  await expect(readInput(by(99, tar), '-')).rejects.toBeInstanceOf(Fault)
})

test.each([undefined, 'other'])('what is neither is told before its end, and left, with --file %s', async (file) => {
  let isLeft = false
  async function* endless() {
    try {
      for (;;) yield Buffer.alloc(1000, 'PK')
    } finally {
      isLeft = true
    }
  }
  const cause = file === undefined ? 'it is no tar, and too long for a Dockerfile' : expect.anything()
  await expect(readInput(endless(), file)).rejects.toMatchObject({ cause })
  expect(isLeft).toBe(true)
})
