import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { Fault } from '@berth/contracts'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { extract, type Header } from 'tar-stream'
import { findDockerfile } from './build.js'
import { type ContextEntry, contextEntries, type FoundDockerfile, packContext } from './build-context.js'

let root: string
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'berth-context-'))
})
afterEach(() => rmSync(root, { recursive: true }))

function given(files: Readonly<Record<string, string>>): void {
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(join(root, dirname(path)), { recursive: true })
    writeFileSync(join(root, path), text)
  }
}

/** What is sent, as a reader of the tar sees it. */
async function sent(dockerfile: string | null = 'Dockerfile') {
  return read(contextEntries(root, at(dockerfile)))
}
const at = (path: string | null): FoundDockerfile => ({ path, target: path, text: null, ignoreFile: null })

async function read(entries: AsyncIterable<ContextEntry>) {
  const bytes = await buffer(packContext(root, entries))
  const found: (Pick<Header, 'name' | 'type' | 'mode' | 'linkname' | 'uid'> & { readonly text: string })[] = []
  const reader = extract()
  reader.on('entry', ({ name, type, mode, linkname, uid }, stream, next) => {
    buffer(stream).then((content) => {
      found.push({ name, type, mode, linkname, uid, text: content.toString() })
      next()
    }, next)
  })
  reader.end(bytes)
  await new Promise((done, failed) => reader.on('finish', () => done(undefined)).on('error', failed))
  return found
}
const names = async (dockerfile?: string | null) => (await sent(dockerfile)).map(({ name }) => name)

test('a directory is sent whole, as it is but for whose it is', async () => {
  given({ Dockerfile: 'FROM scratch', 'bin/run': '#!/bin/sh', 'bin/empty': '' })
  chmodSync(join(root, 'bin/run'), 0o755)
  symlinkSync('../x', join(root, 'bin/link'))
  const found = await sent()
  expect(found.map(({ name }) => name)).toEqual(['Dockerfile', 'bin', 'bin/empty', 'bin/link', 'bin/run'])
  expect(found.find(({ name }) => name === 'bin/link')).toMatchObject({ type: 'symlink', linkname: '../x' })
  expect(found.at(-1)).toMatchObject({ mode: 0o755, uid: 0, text: '#!/bin/sh' })
})

test('what is ignored is not sent, but for exceptions, with the directories that they are in', async () => {
  given({
    ...{ Dockerfile: '', '.dockerignore': 'node_modules\ndata\n!data/keep/this\nDockerfile\n.dockerignore\n**/*.log' },
    ...{ 'node_modules/a/b.js': '', 'data/drop': '', 'data/keep/this': '', 'data/keep/that': '', 'src/x.log': '' },
  })
  expect(await names()).toEqual(['.dockerignore', 'Dockerfile', 'data', 'data/keep', 'data/keep/this', 'src'])
})

test('a Dockerfile somewhere else in the directory is sent too, and has an ignore file of its own', async () => {
  given({ '.dockerignore': 'a', 'docker/x.Dockerfile': '', 'docker/x.Dockerfile.dockerignore': '*', a: '', b: '' })
  expect(await names('docker/x.Dockerfile')).toEqual([
    ...['.dockerignore', 'docker', 'docker/x.Dockerfile', 'docker/x.Dockerfile.dockerignore'],
  ])
  expect(await names(null)).toContain('b')
})

test('a Dockerfile that is a link has its ignore file beside it, where it was named', async () => {
  given({ '.dockerignore': 'a', 'real/x': 'FROM x', 'real/x.dockerignore': 'b', 'links/y.dockerignore': 'real\nc' })
  given({ a: '', b: '', c: '' })
  symlinkSync('../real/x', join(root, 'links/y'))
  const of = async (file: string) => {
    const found = await findDockerfile(root, join(root, file))
    return { found, names: (await read(contextEntries(root, found))).map(({ name }) => name) }
  }
  const { found, names } = await of('links/y')
  expect(found).toMatchObject({ path: 'links/y', text: null })
  // What it is a link to is sent too, whatever is ignored.
  expect(names).toEqual(['.dockerignore', 'a', 'b', 'links', 'links/y', 'links/y.dockerignore', 'real', 'real/x'])
  expect((await of('real/x')).names).toEqual(expect.arrayContaining(['a', 'c', 'links/y', 'real/x']))
})

test('a Dockerfile outside of the directory is sent as text, and its own ignore file is the one that counts', async () => {
  given({ '.dockerignore': 'a', a: '', b: '', link: '' })
  const outside = mkdtempSync(join(tmpdir(), 'berth-dockerfile-'))
  try {
    writeFileSync(join(outside, 'D'), 'FROM x')
    const of = async (file: string) => {
      const found = await findDockerfile(root, file)
      expect(found).toMatchObject({ path: null, text: 'FROM x' })
      return (await read(contextEntries(root, found))).map(({ name }) => name)
    }
    expect(await of(join(outside, 'D'))).toEqual(['.dockerignore', 'b', 'link'])
    writeFileSync(join(outside, 'D.dockerignore'), 'b')
    // The node would go by the other.
    expect(await of(join(outside, 'D'))).toEqual(['a', 'link'])
    rmSync(join(root, 'link'))
    symlinkSync(join(outside, 'D'), join(root, 'link'))
    writeFileSync(join(root, 'link.dockerignore'), 'a\n*ignore')
    expect(await of(join(root, 'link'))).toEqual(['b', 'link'])
  } finally {
    rmSync(outside, { recursive: true })
  }
})

test('a dockerfile is one where there is no Dockerfile', async () => {
  given({ dockerfile: 'FROM lower' })
  expect(await findDockerfile(root, undefined)).toMatchObject({ path: 'dockerfile' })
  given({ Dockerfile: 'FROM upper' })
  expect(await findDockerfile(root, undefined)).toMatchObject({ path: 'Dockerfile' })
})

test('many small files are sent in few pieces', async () => {
  given(Object.fromEntries(Array.from({ length: 500 }, (_, i) => [`f${i}`, `${i}`])))
  const pieces: unknown[] = []
  for await (const piece of packContext(root, contextEntries(root, at(null)))) pieces.push(piece)
  expect(pieces.length).toBeLessThan(10)
  expect((await sent(null)).filter(({ name, text }) => name === `f${text}`)).toHaveLength(500)
})

test('a file that becomes shorter while it is sent fails it', async () => {
  given({ a: 'x'.repeat(10), b: 'x'.repeat(10) })
  const entries = (async function* () {
    for await (const entry of contextEntries(root, at(null))) {
      truncateSync(join(root, entry.path), 5)
      yield entry
    }
  })()
  await expect(buffer(packContext(root, entries))).rejects.toThrow('shorter')
})

test('what cannot be read is named, and is no matter of the connection', async () => {
  given({ a: 'x', b: 'x' })
  const gone = (async function* () {
    for await (const entry of contextEntries(root, at(null))) {
      if (entry.path === 'b') rmSync(join(root, 'b'))
      yield entry
    }
  })()
  const failed = expect.objectContaining({ message: expect.stringContaining(join(root, 'b')), constructor: Fault })
  await expect(buffer(packContext(root, gone))).rejects.toEqual(failed)
  mkdirSync(join(root, '.dockerignore'))
  await expect(sent()).rejects.toBeInstanceOf(Fault)
})
