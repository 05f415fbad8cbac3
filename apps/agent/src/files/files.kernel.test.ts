// Files of a real container, through the node's own server: what berth-files does in a sandbox (its own tests show the
// rest), and that nothing is spooled, leaked or left behind on the way.
import { createHash, randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { Readable } from 'node:stream'
import { gzipSync } from 'node:zlib'
import { expectSuccess, run } from '@berth/host'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { heldBytes } from '../../../../test/support/memory.js'
import { FilesNode } from './files-node.fixture.js'

const MiB = 1024 ** 2
const GiB = 1024 ** 3

let node: FilesNode
let counter = 0
const fresh = async () => {
  const path = `/tmp/t${counter++}`
  await node.call('POST', 'directory', {}, { json: { path } }).then(({ body }) => body.resume())
  return path
}
const put = (path: string, body: Readable | Buffer | string, query = {}) =>
  node.json('PUT', '', { path, ...query }, { body })
const get = (path: string, range?: string) => node.call('GET', '', { path }, range ? { headers: { range } } : {})
const textOf = async (path: string) => (await node.bytes('GET', '', { path })).toString()

beforeAll(async () => {
  node = await FilesNode.open({ spec: { limits: { memoryBytes: '128m', diskBytes: '3g', pids: 32 } } })
})
afterAll(() => node[Symbol.asyncDispose]())

/** Until everything that was begun is over: leases are given back when a process is, not when its caller leaves. */
async function quiet(): Promise<void> {
  for (const end = Date.now() + 20_000; node.leases > 0 || node.occupied > 0; ) {
    if (Date.now() > end) throw new Error(`${node.leases} leases, ${node.occupied} occupied`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

describe('operations', () => {
  test('a file is written, told of, read, renamed and removed', async () => {
    const dir = await fresh()
    const stat = await put(`${dir}/a`, 'hello')
    expect(stat).toMatchObject({
      path: `${dir}/a`,
      name: 'a',
      kind: 'file',
      sizeBytes: 5,
      mode: '0644',
      uid: 0,
      gid: 0,
    })
    expect(await node.json('GET', 'stat', { path: `${dir}/a` })).toEqual(stat)
    expect(await textOf(`${dir}/a`)).toBe('hello')
    const renamed = await node.json('POST', 'rename', {}, { json: { from: `${dir}/a`, to: `${dir}/b` } })
    expect(renamed).toEqual({ ...stat, path: `${dir}/b`, name: 'b' })
    expect((await node.call('DELETE', '', { path: `${dir}/b` })).status).toBe(204)
    expect(await node.failure('GET', 'stat', { path: `${dir}/b` })).toMatch(/^path_not_found: .*ENOENT/)
    expect(node.touched).toBeGreaterThan(5)
    await quiet()
  })

  test('a listing is a line an entry, odd names included', async () => {
    const dir = await fresh()
    await node.sh(
      `cd ${dir} && echo x > plain && ln -s plain link && mkdir sub && touch "$(printf 'new\\nline')" "$(printf 'b\\377d')"`,
    )
    const entries = await node.lines('GET', 'list', { path: dir })
    expect(entries.map(({ name }) => name).sort()).toEqual(['b\ufffdd', 'link', 'new\nline', 'plain', 'sub'])
    expect(entries.find(({ name }) => name === 'link')).toMatchObject({ kind: 'symlink', target: 'plain' })
    expect(entries.find(({ nameBase64 }) => nameBase64 !== null)?.nameBase64).toBe(
      Buffer.from([0x62, 0xff, 0x64]).toString('base64'),
    )
    expect(await node.lines('GET', 'list', { path: `${dir}/sub` })).toEqual([])
    expect(await node.failure('GET', 'list', { path: `${dir}/plain` })).toMatch(/^path_not_directory: /)
  })

  test.each([
    [undefined, 200, '0123456789', undefined],
    ['bytes=2-4', 206, '234', 'bytes 2-4/10'],
    ['bytes=7-', 206, '789', 'bytes 7-9/10'],
    ['bytes=-4', 206, '6789', 'bytes 6-9/10'],
    ['bytes=0-99', 206, '0123456789', 'bytes 0-9/10'],
    ['bytes=0-1,4-5', 200, '0123456789', undefined],
  ])('range %s', async (range, status, text, contentRange) => {
    const dir = await fresh()
    await put(`${dir}/f`, '0123456789')
    const answer = await get(`${dir}/f`, range)
    expect([answer.status, answer.headers['content-range']]).toEqual([status, contentRange])
    expect(answer.headers['content-length']).toBe(String(text.length))
    expect(Buffer.concat(await answer.body.toArray()).toString()).toBe(text)
    expect(await node.failure('GET', '', { path: `${dir}/f` }, { headers: { range: 'bytes=10-' } })).toMatch(
      /^range_not_satisfiable: .*10 bytes/,
    )
  })

  test('files of the kernel are read though their size is not known', async () => {
    const answer = await get('/proc/version')
    expect(answer.headers['content-length']).toBeUndefined()
    expect(Buffer.concat(await answer.body.toArray()).toString()).toMatch(/^Linux version/)
  })

  test.each<[string, () => Promise<string>, RegExp]>([
    ['a directory read as a file', () => node.failure('GET', '', { path: '/tmp' }), /^path_is_directory/],
    [
      'a directory written as a file',
      () => node.failure('PUT', '', { path: '/tmp' }, { body: 'x' }),
      /^path_is_directory/,
    ],
    ['a device', () => node.failure('GET', '', { path: '/dev/zero' }), /^path_not_file/],
    ['a path through a file', () => node.failure('GET', '', { path: '/etc/passwd/x' }), /^path_not_directory/],
    [
      'a file that is there',
      () => node.failure('PUT', '', { path: '/etc/passwd', ifExists: 'fail' }, { body: '' }),
      /^path_exists/,
    ],
    [
      'a directory that is there',
      () => node.failure('POST', 'directory', {}, { json: { path: '/tmp' } }),
      /^path_exists/,
    ],
    ['a full directory', () => node.failure('DELETE', '', { path: '/bin' }), /^directory_not_empty/],
    ['the root', () => node.failure('DELETE', '', { path: '/', recursive: true }), /^path_denied/],
    ['an unknown user', () => node.failure('GET', 'stat', { path: '/', user: 'who' }), /^invalid_request: user: /],
    [
      'an unknown owner',
      () => node.failure('PUT', '', { path: '/tmp/o', owner: 'who' }, { body: '' }),
      /^invalid_request: owner: /,
    ],
    ['a path that is none', () => node.failure('GET', 'stat', { path: 'tmp' }), /^invalid_request: query.path: /],
    ['a path with NUL', () => node.failure('GET', 'stat', { path: '/a\0b' }), /^invalid_request: query.path: /],
    [
      'a path of 5,000 characters',
      () => node.failure('GET', 'stat', { path: `/${'x/'.repeat(2500)}` }),
      /^invalid_request/,
    ],
    ['a watch on what is not there', () => node.failure('GET', 'watch', { path: '/no' }), /^path_not_found/],
    ['no archive', () => node.failure('PUT', 'archive', { path: '/tmp' }, { body: 'no tar' }), /^archive_invalid/],
    [
      'damaged gzip',
      () => node.failure('PUT', 'archive', { path: '/tmp' }, { body: Buffer.from('1f8b0800ffff', 'hex') }),
      /^archive_invalid/,
    ],
    ['into the kernel’s files', () => node.failure('PUT', '', { path: '/sys/x' }, { body: 'x' }), /^path_denied/],
  ])('%s is refused', async (_, ask, expected) => {
    expect(await ask()).toMatch(expected)
  })
})

describe('who and where', () => {
  test('the rights are those of the user, and what is made is his', async () => {
    const dir = await fresh()
    await node.sh(`chmod 700 ${dir}`)
    expect(await node.failure('GET', 'list', { path: dir, user: 'app' })).toMatch(/^path_denied: .*EACCES/)
    expect(await node.failure('PUT', '', { path: `${dir}/f`, user: 'app' }, { body: 'x' })).toMatch(/^path_denied/)
    await node.sh(`chmod 777 ${dir}`)
    expect(await put(`${dir}/f`, 'x', { user: 'app' })).toMatchObject({ uid: 1000, gid: 1000 })
    expect(await put(`${dir}/g`, 'x', { user: '4242:4243' })).toMatchObject({ uid: 4242, gid: 4243 })
    expect(await put(`${dir}/h`, 'x', { owner: 'app', mode: '600' })).toMatchObject({ uid: 1000, mode: '0600' })
    expect(await node.failure('PUT', '', { path: `${dir}/i`, user: 'app', owner: 'root' }, { body: 'x' })).toMatch(
      /^path_denied/,
    )
    expect((await node.sh(`ls ${dir}`)).split('\n')).toEqual(['f', 'g', 'h', ''])
  })

  test('a link leads where it leads in the sandbox, and nothing leads out', async () => {
    const dir = await fresh()
    await node.sh(
      `cd ${dir} && ln -s /etc/passwd link && ln -s ../../../../../../../../etc up && ln -s /proc/1/root out`,
    )
    const own = await node.sh('cat /etc/passwd')
    expect(own).not.toBe(readFileSync('/etc/passwd', 'utf8'))
    for (const path of [`${dir}/link`, `${dir}/up/passwd`, `${dir}/../../../../../../etc/passwd`])
      expect(await textOf(path)).toBe(own)
    // berth-init is not dumpable: even its root is shut.
    expect(await node.failure('GET', '', { path: `${dir}/out/etc/passwd` })).toMatch(/^path_denied/)
    await put(`${dir}/link`, own)
    expect(await node.sh(`readlink ${dir}/link`)).toBe('/etc/passwd\n')
  })

  test('a sandbox that puts something else in the place of the program deceives nobody but itself', async () => {
    expect(await node.sh('rm /dev/.berth/files; mv /dev/.berth /dev/x; echo > /dev/.berth/files; echo done')).toMatch(
      /Read-only|busy/i,
    )
    expect(await textOf('/etc/hostname')).toBe('box\n')
  })

  test('a sandbox without a process left is told so', async () => {
    await using _full = await node.fill()
    expect(await node.failure('GET', 'stat', { path: '/no' })).toBe(
      'unavailable: a file operation needs a process, and the sandbox has all of its 32',
    )
  })
})

const hashOf = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')

/** Reproducible bytes without end, a MiB at a time. */
function* blocks(total: number): Generator<Buffer> {
  const block = randomBytes(MiB)
  for (let i = 0; i * MiB < total; i++) {
    block.writeUInt32LE(i, 0)
    yield Buffer.from(block.subarray(0, Math.min(MiB, total - i * MiB)))
  }
}

describe('large ones', () => {
  test('what does not fit in memory goes up and down, by the same bytes', async () => {
    const dir = await fresh()
    const total = 256 * MiB
    const before = heldBytes()
    const sent = createHash('sha256')
    let peak = 0
    const source = function* () {
      let made = 0
      for (const block of blocks(total)) {
        sent.update(block)
        if (++made % 32 === 0) peak = Math.max(peak, heldBytes())
        yield block
      }
    }
    expect(await put(`${dir}/big`, Readable.from(source()))).toMatchObject({ sizeBytes: total })
    const received = createHash('sha256')
    let length = 0
    let looked = 0
    for await (const chunk of (await get(`${dir}/big`)).body) {
      received.update(chunk)
      length += chunk.length
      if (length - looked < 32 * MiB) continue
      looked = length
      peak = Math.max(peak, heldBytes())
    }
    expect([length, received.digest('hex')]).toEqual([total, sent.digest('hex')])
    // Sender, server and receiver are all in this process.
    expect(peak - before).toBeLessThan(100 * MiB)
    await node.call('DELETE', '', { path: `${dir}/big` })
  }, 180_000)

  test('an empty file, up and down', async () => {
    const dir = await fresh()
    expect(await put(`${dir}/empty`, '')).toMatchObject({ sizeBytes: 0 })
    const answer = await get(`${dir}/empty`)
    expect(answer.headers['content-length']).toBe('0')
    expect(await answer.body.toArray()).toEqual([])
  })

  test('5 GiB, and ranges of it', async () => {
    const dir = await fresh()
    await node.sh(
      `dd if=/dev/zero of=${dir}/sparse bs=1 count=0 seek=5368709120 2>/dev/null; printf end >> ${dir}/sparse`,
    )
    const whole = await get(`${dir}/sparse`)
    expect(whole.headers['content-length']).toBe(String(5 * GiB + 3))
    whole.body.on('error', () => undefined).destroy()
    const end = await get(`${dir}/sparse`, `bytes=${5 * GiB - 1}-`)
    expect(end.headers['content-range']).toBe(`bytes ${5 * GiB - 1}-${5 * GiB + 2}/${5 * GiB + 3}`)
    expect(Buffer.concat(await end.body.toArray()).toString('latin1')).toBe('\0end')
    await quiet()
  })

  test('a full disk is told, and leaves what was there', async () => {
    await using small = await FilesNode.open({ spec: { limits: { memoryBytes: '128m', diskBytes: '64m' } } })
    const path = '/tmp/f'
    await small.json('PUT', '', { path }, { body: 'old' })
    const body = Readable.from(blocks(256 * MiB))
    expect(await small.failure('PUT', '', { path }, { body })).toMatch(/^disk_full: /)
    expect((await small.bytes('GET', '', { path })).toString()).toBe('old')
    expect(await small.sh('ls -A /tmp')).toBe('f\n')
    const tree = Readable.from(blocks(256 * MiB))
    expect(await small.failure('PUT', '', { path: '/tmp/g' }, { body: tree })).toMatch(/^disk_full: /)
    await small.json('PUT', '', { path }, { body: 'new' })
    expect((await small.bytes('GET', '', { path })).toString()).toBe('new')
  }, 180_000)
})

describe('trees', () => {
  const makeTree = (dir: string) =>
    node.sh(
      `mkdir -p ${dir}/d/e ${dir}/empty && cd ${dir} && seq 100000 > d/f && ln -s ../nowhere d/l && ln d/f d/e/h && mkfifo p; chmod 640 d/f; chown 7:8 d/e; touch -d '2020-01-01 00:00:00' d/f d/e empty d`,
    )
  const inventory = (dir: string) =>
    node.sh(`cd ${dir} && find . | sort | while read f; do stat -c '%n %F %a %u:%g %s %h' "$f"; done; cksum < d/f`)

  test.each(['plain', 'gzip'])('down and up again is the same tree, %s', async (how) => {
    const dir = await fresh()
    await makeTree(`${dir}/from`)
    const archive = await node.bytes('GET', 'archive', { path: `${dir}/from` })
    await node.sh(`mkdir ${dir}/to`)
    const body = how === 'gzip' ? gzipSync(archive) : archive
    const done = await node.json('PUT', 'archive', { path: `${dir}/to`, owner: 'archive' }, { body })
    expect(done).toEqual({ entries: 8, bytes: 588_895 })
    expect(await inventory(`${dir}/to`)).toBe(await inventory(`${dir}/from`))
  })

  test('what GNU tar packs and unpacks', async () => {
    const dir = await fresh()
    const source = expectSuccess(await run(['/bin/sh', '-c', 'cd /etc && tar cf - alternatives apt | base64 -w0']))
    const archive = Buffer.from(source.stdout, 'base64')
    await node
      .json('PUT', 'archive', { path: dir, user: 'app', owner: 'user' }, { body: archive })
      .catch(() => undefined)
    await node.sh(`chmod 777 ${dir}`)
    await node.json('PUT', 'archive', { path: dir, user: 'app', group: 'extra' }, { body: archive })
    expect(await node.sh(`stat -c %u:%g ${dir}/apt`)).toBe('1000:2000\n')
    const back = await node.bytes('GET', 'archive', { path: dir })
    const listed = await run(['/bin/sh', '-c', 'base64 -d | tar tf - | sort'], { stdin: back.toString('base64') })
    const expected = await run(['/bin/sh', '-c', 'tar tf - | sort'], { stdin: archive })
    expect(listed.stdout.split('\n').filter((name) => name !== './')).toEqual(expected.stdout.split('\n'))
  })

  test('a file alone', async () => {
    const archive = await node.bytes('GET', 'archive', { path: '/etc/hostname' })
    expect(archive.toString('latin1', 0, 8)).toBe('hostname')
    expect(archive.toString('latin1', 512, 516)).toBe('box\n')
  })

  test('what may not be read is told before anything is sent', async () => {
    const dir = await fresh()
    await node.sh(`touch ${dir}/shut && chmod 600 ${dir}/shut`)
    expect(await node.failure('GET', 'archive', { path: dir, user: 'app' })).toMatch(/^path_denied: .*shut/)
  })
})

describe('watch', () => {
  const watch = async (path: string, query = {}) => {
    const caller = new AbortController()
    const { body } = await node.call('GET', 'watch', { path, ...query }, { signal: caller.signal })
    let text = ''
    const events: { type: string; path: string; from: string | null }[] = []
    let wake: () => void = () => undefined
    body.on('data', (chunk: Buffer) => {
      text += chunk
      const lines = text.split('\n')
      text = lines.pop() ?? ''
      events.push(...lines.map((line) => JSON.parse(line)))
      wake()
    })
    const ended = new Promise<void>((resolve) => body.once('close', resolve))
    body.on('error', () => undefined)
    const until = async (type: string, at: string) => {
      while (!events.some((event) => event.type === type && event.path === at))
        await new Promise<void>((resolve) => {
          wake = resolve
        })
    }
    return { events, until, ended, leave: () => caller.abort() }
  }

  test('what happens in a tree is told with its path, until the directory is gone', async () => {
    const dir = await fresh()
    const { events, until, ended } = await watch(dir, { recursive: true })
    await until('ready', dir)
    await node.sh(`mkdir -p ${dir}/a/b && echo x > ${dir}/a/b/f`)
    await until('created', `${dir}/a/b/f`)
    await put(`${dir}/g`, 'x')
    await until('created', `${dir}/g`)
    await node.call('POST', 'rename', {}, { json: { from: `${dir}/g`, to: `${dir}/h` } })
    await until('renamed', `${dir}/h`)
    expect(events.find(({ type }) => type === 'renamed')?.from).toBe(`${dir}/g`)
    await node.call('DELETE', '', { path: dir, recursive: true })
    await until('gone', dir)
    await ended
    await quiet()
  })

  test('who leaves ends it, and is no activity meanwhile', async () => {
    const dir = await fresh()
    await quiet()
    const { until, leave } = await watch(dir)
    await until('ready', dir)
    expect([node.leases, node.occupied]).toEqual([1, 0])
    leave()
    await quiet()
  })

  test('there are so many at the same time, and no more', async () => {
    await using small = await FilesNode.open({ limits: { watches: 2 } })
    const caller = new AbortController()
    for (let i = 0; i < 2; i++) {
      const { body } = await small.call('GET', 'watch', { path: '/tmp' }, { signal: caller.signal })
      body.on('error', () => undefined).resume()
    }
    expect(await small.failure('GET', 'watch', { path: '/tmp' })).toMatch(/^watch_limit/)
    caller.abort()
  })
})

describe('who vanishes', () => {
  test('in the middle of an upload leaves nothing of it', async () => {
    const dir = await fresh()
    await put(`${dir}/f`, 'old')
    const caller = new AbortController()
    const endless = Readable.from(blocks(64 * GiB))
    const gone = node.failure('PUT', '', { path: `${dir}/f`, parents: true }, { body: endless, signal: caller.signal })
    while (!(await node.sh('cat /proc/[0-9]*/io')).match(/^wchar: [1-9]\d{6,}$/m));
    caller.abort()
    await gone.catch(() => undefined)
    await quiet()
    expect(await node.sh(`ls -A ${dir}; cat ${dir}/f; ps | grep -c '[b]erth/files'`)).toBe('f\nold0\n')
  })

  test('with a body that breaks off, though its connection lives, leaves nothing either', async () => {
    const dir = await fresh()
    const broken = Readable.from(
      (function* () {
        yield Buffer.alloc(MiB)
        throw new Error('the source broke')
      })(),
    )
    await node.failure('PUT', '', { path: `${dir}/f` }, { body: broken }).catch(() => undefined)
    await quiet()
    expect(await node.sh(`ls -A ${dir}`)).toBe('')
  })

  test('in the middle of a download ends its process', async () => {
    const dir = await fresh()
    await node.sh(`dd if=/dev/zero of=${dir}/f bs=1M count=64 2>/dev/null`)
    for (const words of ['', 'archive']) {
      const caller = new AbortController()
      const { body } = await node.call(
        'GET',
        words,
        { path: words === '' ? `${dir}/f` : dir },
        { signal: caller.signal },
      )
      body.on('error', () => undefined)
      await new Promise((resolve) => body.once('readable', resolve))
      caller.abort()
      await quiet()
    }
  })

  test('a reader that does not read holds up its own process alone', async () => {
    const dir = await fresh()
    await node.sh(`dd if=/dev/zero of=${dir}/f bs=1M count=200 2>/dev/null`)
    const before = process.memoryUsage().external
    const slow = await Promise.all(Array.from({ length: 8 }, () => get(`${dir}/f`)))
    for (let i = 0; i < 20; i++) expect((await node.json('GET', 'stat', { path: dir })).kind).toBe('directory')
    expect(process.memoryUsage().external - before).toBeLessThan(100 * MiB)
    for (const { body } of slow) body.on('error', () => undefined).destroy()
    await quiet()
  })
})

test('sixty-four at once have their turns', async () => {
  const dir = await fresh()
  const names = Array.from({ length: 64 }, (_, i) => `${dir}/f${i}`)
  await Promise.all(names.map((path) => put(path, hashOf(Buffer.from(path)))))
  const texts = await Promise.all(names.map(textOf))
  expect(texts).toEqual(names.map((path) => hashOf(Buffer.from(path))))
  await quiet()
})

test('more than may wait are refused', async () => {
  await using small = await FilesNode.open({ limits: { running: 1, waiting: 2 } })
  const results = await Promise.all(Array.from({ length: 12 }, () => small.failure('GET', 'stat', { path: '/no' })))
  const count = (code: string) => results.filter((result) => result.startsWith(`${code}:`)).length
  expect(count('path_not_found')).toBeGreaterThanOrEqual(3)
  expect(count('path_not_found') + count('unavailable')).toBe(12)
})
