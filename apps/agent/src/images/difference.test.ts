import { mkdtempSync, readdirSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from '@jest/globals'
import { sameContent } from './difference.js'

const directory = mkdtempSync(join(tmpdir(), 'berth-difference-'))
afterAll(() => rmSync(directory, { recursive: true }))

test('two files are compared to their end, and neither is left open, also where one cannot be read', async () => {
  const write = (name: string, content: string) => {
    writeFileSync(join(directory, name), content)
    return join(directory, name)
  }
  const long = 'x'.repeat(600_000)
  const [a, b, other, longer] = [
    write('a', long),
    write('b', long),
    write('c', `${long.slice(1)}y`),
    write('d', `${long}x`),
  ]
  const same = [sameContent(a, b), sameContent(a, other), sameContent(a, longer), sameContent(longer, a)]
  expect(await Promise.all(same)).toEqual([true, false, false, false])
  await expect(sameContent(a, join(directory, 'none'))).rejects.toMatchObject({ code: 'ENOENT' })
  await expect(sameContent(join(directory, 'none'), a)).rejects.toMatchObject({ code: 'ENOENT' })
  const open = readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)]
    } catch {
      return [] // It was that of the listing.
    }
  })
  expect(open.filter((path) => path.startsWith(directory))).toEqual([])
})
