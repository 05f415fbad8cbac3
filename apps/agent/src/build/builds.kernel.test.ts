// Builds on a real node: containers, layers, cache.
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { BuildStep } from '@berth/contracts'
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals'
import { holdings } from '../sandbox/recovery.js'
import { newBuild, TestBuilder, type WantedBuild } from './builds.fixture.js'

let builder: TestBuilder
beforeAll(async () => {
  builder = await TestBuilder.open()
})
afterAll(() => builder?.close())
// Whatever became of a build: nothing of it is left but cache.
afterEach(async () => {
  const held = await holdings(builder.node.shop)
  expect({ ...held, layers: held.layers.filter((name) => !name.startsWith('cache_')) }).toEqual({
    containers: [],
    layers: [],
    groups: [],
  })
  expect(readdirSync(join(builder.place.directory, 'agent/builds'))).toEqual([])
})

const lines = (...text: readonly string[]) => `${text.join('\n')}\n`
const build = (text: readonly string[], wanted?: WantedBuild) => builder.build(lines(...text), wanted)

describe('an image', () => {
  const dockerfile = [
    'FROM busybox',
    'ARG WHO=world',
    'ENV GREETING=hello',
    'WORKDIR /srv/app',
    'COPY . .',
    'RUN echo "$GREETING $WHO" > greeting && cat a.txt && echo oops >&2 && rm /etc/group',
    'USER app',
    'RUN id -u && touch /tmp/mine',
    'LABEL made=by-test',
    'CMD ["cat", "greeting"]',
  ]
  const files = { 'a.txt': 'from the context\n', '.dockerignore': '*.log\n', 'b.log': 'no' }

  test('is what its steps make of it: files, configuration, history', async () => {
    const told = await build(dockerfile, { files, labels: { extra: '1' }, args: { WHO: 'you' } })
    expect(told.output).toBe('from the context\noops\n1000\n')
    const { image } = told
    expect(await builder.file(image, '/srv/app/greeting')).toBe('hello you\n')
    expect(await builder.file(image, '/etc/group')).toBeUndefined()
    expect(await builder.file(image, '/srv/app/b.log')).toBeUndefined()
    // What the node places in every container is in no layer, nor is the directory that it is in.
    expect(await builder.file(image, '/etc/hosts')).toBeUndefined()
    expect(await builder.changed(image)).toEqual(['./tmp', './tmp/mine'])
    expect(await (await builder.tree(image)).lstat('tmp/mine')).toMatchObject({ uid: 1000, gid: 1000 })
    expect(image.settings).toMatchObject({
      env: ['PATH=/bin', 'GREETING=hello'],
      command: ['cat', 'greeting'],
      workingDir: '/srv/app',
      user: 'app',
      labels: { made: 'by-test', extra: '1' },
    })
    expect(image.layers).toHaveLength(5)
    expect(image.history.map(({ createdBy, emptyLayer }) => [createdBy.split(' ')[0], emptyLayer])).toEqual([
      ['import', false],
      ...[
        ['ARG', true],
        ['ENV', true],
        ['WORKDIR', false],
        ['COPY', false],
        ['RUN', false],
        ['USER', true],
      ],
      ...[
        ['RUN', false],
        ['LABEL', true],
        ['CMD', true],
      ],
    ])
    expect(image.history.every(({ createdAt }) => createdAt !== null)).toBe(true)
  })

  test('that was built before is the same, at once; what changes is made anew, and what comes after it', async () => {
    const first = await build(dockerfile, { files })
    const again = await build(dockerfile, { files })
    expect(again.image.digest).toBe(first.image.digest)
    expect([again.made, again.output]).toEqual([[], ''])
    expect(again.cached).toHaveLength(4)
    const changed = await build(dockerfile, { files: { ...files, 'a.txt': 'other\n' } })
    expect(changed.cached).toEqual(['[2/5] WORKDIR /srv/app'])
    expect(changed.output).toContain('other')
    const uncached = await build(dockerfile, { files, noCache: true })
    expect(uncached.cached).toEqual([])
    // Nobody has anything of another tenant's cache.
    const stranger = await build(dockerfile, { files, tenantId: builder.stranger })
    expect(stranger.cached).toEqual([])
  })

  test('of SOURCE_DATE_EPOCH has no later time in it, and is the same whenever it is built', async () => {
    const wanted = { files, args: { SOURCE_DATE_EPOCH: '1000000000' }, noCache: true }
    const { image } = await build(dockerfile, wanted)
    expect((await build(dockerfile, wanted)).image.digest).toBe(image.digest)
    expect(image.createdAt).toBe('2001-09-09T01:46:40.000Z')
    expect((await (await builder.tree(image)).lstat('srv/app/greeting'))?.mtimeMs).toBe(1_000_000_000_000)
  })

  test('of several stages has what is copied from the others; stages that nothing needs are not made', async () => {
    const told = await build([
      ...['FROM busybox AS one', 'RUN echo 1 > /one'],
      ...['FROM busybox AS never', 'RUN exit 1'],
      ...['FROM one AS two', 'RUN cat /one > /two'],
      ...['FROM scratch', 'COPY --from=two /two /from-two', 'COPY --from=busybox /bin/busybox /bin/sh'],
      ...['RUN echo and more > /more', 'ENTRYPOINT ["/bin/sh"]'],
    ])
    expect(await builder.file(told.image, '/from-two')).toBe('1\n')
    expect(told.steps).toContainEqual(expect.objectContaining({ step: 'begin', name: '[two 1/2] FROM one' }))
    // Nothing of what the runtime mounts and the node places.
    expect(await builder.changed(told.image)).toEqual(['./more'])
  })
})

describe('a command', () => {
  test('that changes nothing makes a layer that the image may have already', async () => {
    const told = await build([
      ...['FROM busybox AS same', 'RUN true', 'RUN : && true', 'RUN : && : && true'],
      ...['FROM same', 'RUN --mount=from=same,target=/m ls /m/bin > /seen', 'COPY --from=same /bin/busybox /'],
    ])
    expect(told.image.layers).toHaveLength(6)
    expect(new Set(told.image.layers.map(({ diffId }) => diffId)).size).toBe(4)
    expect(await builder.file(told.image, '/seen')).toContain('busybox\n')
  })

  test('that fails ends the build, and says where and how', async () => {
    const told = await build(['FROM busybox', 'RUN echo before', 'RUN echo why >&2; exit 42'])
    expect(told.failed).toMatchObject({
      code: 'build_failed',
      line: 3,
      instruction: 'RUN echo why >&2; exit 42',
      message: 'line 3, RUN: exit code 42',
    })
    expect(told.steps.at(-2)).toMatchObject({ step: 'end', exitCode: 42, layer: null })
    const missing = await build(['FROM scratch', 'COPY Dockerfile /', 'RUN true'])
    expect(missing.failed.message).toMatch(/^line 3, RUN: "\/bin\/sh": the command.* was not found$/)
    expect(told.output).toBe('before\nwhy\n')
  })

  test('is held to its limits: time, memory, disk', async () => {
    const slow = await build(['FROM busybox', 'RUN sleep 60'], { runTimeoutMs: 100 })
    expect(slow.failed.message).toContain('longer than the 100 ms')
    const limits = { cpus: 1, memoryBytes: 16 * 1024 ** 2, pids: 64, diskBytes: 8 * 1024 ** 2 }
    const greedy = await build(['FROM busybox', 'RUN x=$(yes | head -c 100000000)'], { limits })
    expect(greedy.failed.message).toContain('ran out of memory (OOM)')
    const killed = await build(['FROM busybox', 'CMD ["x"]', 'RUN kill -9 $$'])
    expect(killed.failed.message).toBe('line 3, RUN: exit code 137 (SIGKILL)')
    expect(killed.steps.at(-2)).toMatchObject({ step: 'end', exitCode: 137 })
    const large = await build(['FROM busybox', 'RUN dd if=/dev/zero of=/big bs=1M count=20'], { limits })
    expect(large.output).toContain('Disk quota exceeded')
    const quota = await build(['FROM busybox', 'RUN yes | head -c 2000000 > /big'], { maxBytes: 1e6, cacheBytes: 1e9 })
    expect(quota.failed.code).toBe('quota_exceeded')
  })

  test('is packed, and what is copied is unpacked, in the group of its tenant', async () => {
    const { cgroups, tenants } = builder.node.shop
    const errands = (group: string) => cgroups.children(group).filter((name) => name.startsWith('errand_'))
    for (const step of ['RUN head -c 30000000 /dev/urandom > /noise', 'COPY noise /']) {
      const files = step.startsWith('COPY') ? { noise: randomBytes(30_000_000) } : {}
      const over = build(['FROM busybox', step], { files }).then((told) => told.image)
      const group = tenants.group(builder.tenantId)
      const seen = () => errands(group).some((name) => cgroups.processes(`${group}/${name}`).length > 0)
      let isSeen = false
      const looking = setInterval(() => {
        isSeen ||= seen()
      }, 2)
      await over.finally(() => clearInterval(looking))
      expect([isSeen, errands(group)]).toEqual([true, []])
    }
  })

  test('gains nothing by a set-user-id program, unless that is allowed', async () => {
    const dockerfile = [
      'FROM busybox',
      'RUN cp /bin/busybox /su && chmod 4755 /su && echo root::0:0:root:/:/bin/sh > /etc/passwd',
      'USER 1000',
      'RUN /su -c "id -u"',
    ]
    expect((await build(dockerfile)).output).toMatch(/must be suid/)
    expect((await build(dockerfile, { newPrivileges: true })).output).toBe('0\n')
  })

  test('of two stages run at the same time, but no more than may', async () => {
    const meet = (own: string, other: string) =>
      `RUN --mount=type=cache,target=/c touch /c/${own}; while [ ! -e /c/${other} ]; do sleep 0.02; done`
    const told = await build([
      ...['FROM busybox AS a', meet('a', 'b'), 'RUN echo a > /a'],
      ...['FROM busybox AS b', meet('b', 'a'), 'RUN echo b > /b'],
      ...['FROM busybox', 'COPY --from=a /a /a', 'COPY --from=b /b /b'],
    ])
    expect(await builder.file(told.image, '/b')).toBe('b\n')
    const alone = `RUN --mount=type=cache,target=/c,id=alone mkdir /c/busy && sleep 0.05 && rm -r /c/busy`
    const stages = ['a', 'b', 'c'].flatMap((name) => [`FROM busybox AS ${name}`, `${alone}; echo ${name} > /x`])
    const copies = ['FROM busybox', ...['a', 'b', 'c'].map((name) => `COPY --from=${name} /x /${name}`)]
    expect((await build([...stages, ...copies], { parallel: 1 })).image.layers).toHaveLength(4)
  })

  test('of a stage that fails ends those of the others', async () => {
    const told = await build([
      ...['FROM busybox AS bad', 'RUN sleep 0.2; exit 3'],
      ...['FROM busybox AS endless', 'RUN sleep 100'],
      ...['FROM busybox', 'COPY --from=bad /x /x', 'COPY --from=endless /x /x'],
    ])
    expect(told.failed).toMatchObject({ line: 2, message: 'line 2, RUN: exit code 3' })
  })
})

describe('mounts', () => {
  test('of a cache keep what they hold between builds, and are in no layer', async () => {
    const count = (id: string, sharing: string) => [
      'FROM busybox',
      `RUN --mount=type=cache,id=${id},target=/root/.cache/deep,sharing=${sharing},mode=0700,uid=1000 \\`,
      '  echo x >> /root/.cache/deep/n; cat /root/.cache/deep/n | wc -l > /n; ls -ldn /root/.cache/deep | cut -c1-24',
    ]
    const first = await build(count('counter', 'locked'))
    expect(first.output).toMatch(/^drwx------ +\d+ 1000/)
    expect(await builder.changed(first.image)).toEqual(['./n'])
    const second = await build(count('counter', 'locked'), { noCache: true })
    expect(await builder.file(second.image, '/n')).toBe('2\n')
    const stranger = await build(count('counter', 'locked'), { tenantId: builder.stranger })
    expect(await builder.file(stranger.image, '/n')).toBe('1\n')
    const other = await build(count('private', 'private'))
    expect(await builder.file(other.image, '/n')).toBe('1\n')
  })

  test('of a cache begin with what they are seeded with', async () => {
    const told = await build([
      ...['FROM busybox AS seed', 'RUN mkdir -p /s/d && echo seeded > /s/d/f && chown 1000 /s/d/f'],
      ...['FROM busybox', 'RUN --mount=type=cache,target=/c,from=seed,source=/s cp -a /c/d/f /f; echo + >> /c/d/f'],
    ])
    expect(await builder.file(told.image, '/f')).toBe('seeded\n')
    expect(await (await builder.tree(told.image)).lstat('f')).toMatchObject({ uid: 1000 })
  })

  test('of other stages and of the context show their files; what is written goes', async () => {
    const told = await build(
      [
        ...['FROM busybox AS lib', 'RUN mkdir /lib1 && echo lib > /lib1/f && ln -s /lib1 /link'],
        'FROM busybox',
        'RUN --mount=from=lib,source=/link,target=/a --mount=target=/ctx,rw --mount=source=src/x,target=/one/x \\',
        '  cat /a/f /ctx/src/x /one/x; echo gone > /ctx/new; cat /ctx/new; (echo no > /a/f) 2>&1; touch /made',
      ],
      { files: { 'src/x': 'x\n' } },
    )
    expect(told.output).toContain('lib\nx\nx\ngone\n')
    expect(told.output).toContain('Read-only file system')
    expect(await builder.changed(told.image)).toEqual(['./made'])
  })

  test('in memory are empty, of their size, and gone', async () => {
    const told = await build([
      'FROM busybox',
      'RUN --mount=type=tmpfs,target=/m,size=1m df -k /m | tail -1; touch /m/x',
    ])
    expect(told.output).toContain(' 1024 ')
    expect(await builder.changed(told.image)).toEqual([])
  })

  test('a script of a heredoc is executed, by whatever interpreter', async () => {
    const told = await build(['FROM busybox', 'RUN <<EOT', '#!/bin/busybox sh', 'echo "by $0"', 'EOT'])
    expect(told.output).toMatch(/^by \/dev\/pipes\/EOT/)
  })

  test('nothing is mounted where the node mounts, nor from where nothing is', async () => {
    const links = 'RUN ln -s / /root-of-all && ln -s proc /p'
    const mounts = ['type=tmpfs,target=/proc/x', 'type=cache,target=/dev', 'from=busybox,source=/no,target=/x']
    const linked = ['type=cache,target=/root-of-all', 'type=tmpfs,target=/p/sys', 'source=../../etc,target=/x']
    const within = 'from=lib,source=/d,target=/a --mount=type=tmpfs,target=/a/l/sys'
    const inCache = 'type=cache,target=/c --mount=type=cache,target=/c/l'
    const lib = [
      'FROM busybox AS lib',
      'RUN --mount=type=cache,target=/c mkdir /d; ln -sfn /proc /d/l; ln -sfn /proc /c/l',
    ]
    for (const mount of [...mounts, ...linked, within, inCache]) {
      const { failed } = await build([...lib, 'FROM lib', links, `RUN --mount=${mount} true`])
      expect(failed).toMatchObject({ code: 'build_failed', message: expect.stringContaining('--mount') })
    }
  })

  test('that the runtime cannot make are told where they are, with what it said', async () => {
    const lib = ['FROM busybox AS lib', 'RUN mkdir /d && touch /d/f']
    const refused = async (...mounts: readonly string[]) => {
      const { failed } = await build([
        ...lib,
        'FROM lib',
        `RUN ${mounts.map((one) => `--mount=${one}`).join(' ')} true`,
      ])
      expect(failed).toMatchObject({
        code: 'build_failed',
        line: 4,
        instruction: expect.stringMatching(/^RUN --mount/),
      })
      expect(failed.message).not.toContain(builder.place.directory)
      return failed.message
    }
    const within = await refused('from=lib,source=/d,target=/a', 'type=cache,target=/a/new')
    expect(within).toMatch(/could not be started: .*\/a\/new.*Read-only file system.*mount with rw/)
    expect(await refused('from=lib,source=/d/f,target=/a', 'type=tmpfs,target=/a/b')).toContain('Not a directory')
    const file = await refused('from=lib,source=/d,target=/a', 'from=lib,source=/d/f,target=/a/new')
    expect(file).toContain('open `/a/new`: No such file or directory (make the place before')
    const system = await build(['FROM scratch', 'COPY Dockerfile /proc', 'RUN ["/x"]'])
    expect(system.failed).toMatchObject({ line: 3, message: expect.stringContaining('`/proc` is invalid') })
    expect(await refused('from=lib,source=/d,target=/d/f')).toMatch(/what is mounted at \/d\/f.*Not a directory/)
  })

  const secret = 'correct-horse-battery-staple'
  test('secrets are there for their command, and nowhere else', async () => {
    const dockerfile = [
      'FROM busybox',
      'RUN --mount=type=secret,id=token,required,uid=1000,mode=0440 --mount=type=secret,id=token,env=TOKEN \\',
      '  ls -ln /run/secrets/token | cut -c1-24; cat /run/secrets/token; echo; echo "$TOKEN" | cut -c1-28;' +
        ' wc -c < /run/secrets/token > /size; (echo > /run/secrets/token) 2>&1 | cut -c1-99',
      'RUN test ! -e /run',
    ]
    const told = await build(dockerfile, { secrets: { token: secret } })
    expect(told.output).toMatch(/^-r--r----- +1 1000/)
    expect(told.output).toContain('***\n***\n')
    expect(told.output).toContain('Read-only file system')
    expect(await builder.file(told.image, '/size')).toBe(`${secret.length}\n`)
    expect(JSON.stringify(told.steps)).not.toContain(secret)
    const grep = ['-rlF', '--devices=skip', secret, builder.place.directory]
    expect(execFileSync('sh', ['-c', 'grep "$@" || true', 'sh', ...grep], { encoding: 'utf8' })).toBe('')
    // Another value is no other step.
    expect((await build(dockerfile, { secrets: { token: 'another-value-of-it' } })).made).toEqual([])
    expect((await build(dockerfile, { noCache: true })).failed.message).toContain('the secret token is needed')
  })
})

describe('a build ends', () => {
  const endless = ['FROM busybox', 'RUN echo up; sleep 100; echo never']

  /** Waits until its command runs, and then does something. */
  async function whenUp(wanted: WantedBuild, then: () => void) {
    const onStep = (step: BuildStep) => {
      if (step.step === 'output') then()
    }
    return build(endless, { ...wanted, onStep })
  }

  test('when it is canceled, with what it ran', async () => {
    const id = newBuild()
    const told = await whenUp({ id }, () => void builder.builds.cancel(id))
    expect(told.failed.code).toBe('build_canceled')
    await expect(builder.builds.context(id, process.stdin, new AbortController().signal)).rejects.toMatchObject({
      code: 'build_not_found',
    })
  })

  test('when its caller goes', async () => {
    const caller = new AbortController()
    await whenUp({ signal: caller.signal }, () => caller.abort())
  })

  test('with a context or a Dockerfile that is none, and says what is wrong', async () => {
    await expect(build(['FROM busybox', 'RUNE x'])).rejects.toMatchObject({
      code: 'dockerfile_invalid',
      data: { line: 2 },
    })
    const lower = { dockerfile: 'FROM busybox\nCOPY . /c\n', 'dockerfile.dockerignore': 'a', a: '', b: '' }
    const named = await builder.build('', { dockerfile: 'Dockerfile', files: { ...lower, Dockerfile: null } })
    expect(await builder.changed(named.image)).toEqual([
      './c',
      ...['Dockerfile', 'b', 'dockerfile', 'dockerfile.dockerignore'].map((name) => `./c/${name}`),
    ])
    await expect(build(['FROM busybox'], { dockerfile: 'other' })).rejects.toMatchObject({ code: 'dockerfile_invalid' })
    await expect(build(['FROM busybox'], { target: 'nowhere' })).rejects.toMatchObject({ code: 'dockerfile_invalid' })
    const missing = await build(['FROM busybox', 'COPY nothing /'])
    expect(missing.failed).toMatchObject({ code: 'build_failed', line: 2 })
  })
})

describe('the cache', () => {
  test('is told, keeps to its size by what was used last, and is pruned', async () => {
    const tenantId = builder.newTenant()
    const make = (name: string, more: WantedBuild = {}) =>
      build(['FROM busybox', `RUN head -c 1000000 /dev/urandom > /${name}`], { tenantId, ...more })
    await make('a')
    await make('b')
    await build(['FROM busybox', 'RUN --mount=type=cache,target=/c head -c 100000 /dev/urandom > /c/x'], { tenantId })
    const { cache } = builder.builds
    const usage = await cache.usage(tenantId)
    expect(usage.entries.map(({ kind, inUse }) => [kind, inUse])).toEqual(
      expect.arrayContaining([['mount', false], ...Array.from({ length: 3 }, () => ['layer', false])]),
    )
    expect(usage.bytes).toBeGreaterThan(4_000_000)
    // The one that was used last stays.
    expect((await make('a', { cacheBytes: 2_500_000 })).made).toEqual([])
    expect((await cache.usage(tenantId)).bytes).toBeLessThan(2_500_000)
    expect((await make('a', { cacheBytes: 2_500_000 })).made).toEqual([])
    expect(await cache.prune(tenantId, { unusedForMs: 3_600_000 })).toEqual({ removed: 0, freedBytes: 0 })
    expect((await cache.prune(tenantId, {})).freedBytes).toBeGreaterThan(1_000_000)
    expect(await cache.usage(tenantId)).toEqual({ bytes: 0, entries: [] })
    expect((await make('a')).made).toHaveLength(1)
  })

  test('is kept from being collected, and what is gone is made anew', async () => {
    const text = ['FROM busybox', 'RUN echo kept > /kept']
    const { image } = await build(text)
    await builder.images.drop(image.digest)
    const later = new Date(Date.now() + 24 * 3_600_000)
    await builder.images.collect(new Set(), later)
    expect((await build(text)).made).toEqual([])
    const { tenantId } = builder
    await builder.images.drop(image.digest)
    await builder.builds.cache.prune(tenantId, {})
    await builder.images.collect(new Set(), later)
    expect(await builder.images.layers.bytes(image.layers.at(-1)?.diffId ?? '')).toBeUndefined()
    expect((await build(text)).made).toHaveLength(1)
  })

  test('two builds of the same step at the same time come to the same', async () => {
    const text = ['FROM busybox', 'RUN sleep 0.1; head -c 100 /dev/urandom > /r']
    const [one, two] = await Promise.all([build(text), build(text)])
    expect(one.image.digest).toBe(two.image.digest)
    expect([...one.made, ...two.made]).toHaveLength(1)
  })
})

test('a disk that is short costs the cache what is missing, what was used last longest ago, and no more while that goes', async () => {
  await using own = await TestBuilder.open()
  const { cache } = own.builds
  const make = async (name: string) => {
    // One that is half of two for certain.
    const noise = `RUN head -c ${name === 'c' ? 2_000_000 : 1_000_000} /dev/urandom > /${name}`
    const { image, made } = await own.build(lines('FROM busybox', noise))
    await own.images.drop(image.digest)
    return { layer: own.images.layers.path(image.layers.at(-1)?.diffId ?? ''), isNew: made.length > 0 }
  }
  const { layer: a } = await make('a')
  await make('b')
  const { layer: c } = await make('c')
  await make('d')
  expect(await make('a')).toEqual({ layer: a, isNew: false })
  const collected = () => own.images.collect(new Set(), new Date(Date.now() + 24 * 3_600_000))
  const left = async () => (await cache.usage(own.tenantId)).entries.map(({ description }) => description.at(-1)).sort()
  const bytes = 1_000_000
  await cache.shrink({ bytes: 1, inodes: false }, new Set())
  expect(await left()).toEqual(['a', 'c', 'd'])
  await cache.shrink({ bytes, inodes: false }, new Set())
  expect(await left()).toEqual(['a', 'c', 'd'])
  await collected()
  // What a sandbox or an image has would not go.
  await cache.shrink({ bytes, inodes: false }, new Set([c]))
  expect(await left()).toEqual(['a', 'c'])
  await collected()
  await own.build(lines('FROM busybox', 'RUN head -c 1000000 /dev/urandom > /d'))
  await cache.shrink({ bytes: 0, inodes: true }, new Set())
  expect(await left()).toEqual(['a', 'd'])
  await cache.shrink({ bytes: 0, inodes: true }, new Set())
  expect(await left()).toEqual(['a', 'd'])
  await cache.shrink({ bytes: 1e9, inodes: true }, new Set())
  expect(await left()).toEqual(['d'])
})

test('records of the cache are whole', () => {
  const directory = join(builder.place.directory, 'agent/build-cache')
  const found = execFileSync('find', [directory, '-type', 'f'], { encoding: 'utf8' }).split('\n').filter(Boolean)
  expect(found.length).toBeGreaterThan(0)
  for (const path of found) expect(() => JSON.parse(readFileSync(path, 'utf8'))).not.toThrow()
})
