// What is installed in layers as berth-layer unpacks them: hidden, replaced, hostile.
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { MessageChannel } from 'node:worker_threads'
import { afterEach, expect, test } from '@jest/globals'
import { type ScanLayer, scan, scanLimits } from './scan.js'
import { work } from './scan.thread.js'
import { walkLimits } from './walk.js'

const root = mkdtempSync('/var/tmp/berth-scan-')
afterEach(() => rmSync(root, { recursive: true, force: true }))
const forever = new AbortController().signal

/** A layer of files by path; `null`: a whiteout, `opaque`: such a directory, `->x`: a link. */
function layer(name: string, files: Record<string, string | null | 'opaque'>): ScanLayer {
  const path = join(root, name)
  mkdirSync(path, { recursive: true })
  for (const [file, content] of Object.entries(files)) {
    const at = join(path, file)
    mkdirSync(content === 'opaque' ? at : dirname(at), { recursive: true })
    if (content === null) execFileSync('mknod', [at, 'c', '0', '0'])
    else if (content === 'opaque') execFileSync('setfattr', ['-n', 'trusted.overlay.opaque', '-v', 'y', at])
    else if (content.startsWith('->')) symlinkSync(content.slice(2), at)
    else writeFileSync(at, content)
  }
  return { diffId: name, path }
}

const npm = (name: string, version: string) => JSON.stringify({ name, version })
const deb = (...packages: string[]) =>
  packages.map((one) => `Package: ${one}\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n`).join('\n')
const told = async (...layers: ScanLayer[]) => {
  const { packages } = await scan(layers.reverse(), forever)
  return packages.map(({ name, version, layer }) => `${name} ${version} ${layer}`)
}
const module = (name: string) => `app/node_modules/${name}/package.json`

test('what upper layers hide is not there, and what they change is theirs', async () => {
  const lowest = layer('lowest', {
    [module('kept')]: npm('kept', '1.0.0'),
    [module('removed')]: npm('removed', '1.0.0'),
    [module('changed')]: npm('changed', '1.0.0'),
    [module('linked')]: npm('linked', '1.0.0'),
    'old/node_modules/x/package.json': npm('x', '1.0.0'),
    'gone/node_modules/y/package.json': npm('y', '1.0.0'),
    'var/lib/dpkg/status': deb('base'),
    'etc/os-release': '->../usr/lib/os-release',
    'usr/lib/os-release': 'ID=debian\nVERSION_ID=13',
  })
  const middle = layer('middle', {
    [module('removed').replace('/package.json', '')]: null,
    [module('changed')]: npm('changed', '2.0.0'),
    'app/node_modules/linked': '->kept',
    old: 'opaque',
    'old/node_modules/z/package.json': npm('z', '1.0.0'),
    gone: null,
    'var/lib/dpkg/status': deb('base', 'added'),
  })
  const top = layer('top', { 'var/lib/dpkg/status': deb('base', 'added', 'last') })
  expect(await told(lowest, middle, top)).toEqual([
    ...['added 1 middle', 'base 1 lowest', 'last 1 top'],
    ...['changed 2.0.0 middle', 'kept 1.0.0 lowest', 'z 1.0.0 middle'],
  ])
  const { distribution, complete, warnings } = await scan([top, middle, lowest], forever)
  expect({ distribution, complete, warnings }).toEqual({
    ...{ distribution: { id: 'debian', version: '13', name: 'debian' }, complete: true, warnings: [] },
  })
})

test('a link is never followed, whatever it is a link to', async () => {
  layer('outside', { 'node_modules/secret/package.json': npm('secret', '1.0.0') })
  const hostile = layer('hostile', {
    'var/lib/dpkg/status': `->${root}/outside/node_modules/secret/package.json`,
    'app/node_modules': `->${root}/outside/node_modules`,
    'up/node_modules': '->../../outside/node_modules',
    'loop/loop': '->../loop',
  })
  expect(await told(hostile)).toEqual([])
})

test('what is malformed, too large or too much is told, and the rest is read', async () => {
  const deep = Array.from({ length: 70 }, () => 'd').join('/')
  const hostile = layer('hostile', {
    [module('broken')]: '{',
    [module('large')]: npm('large', '1.0.0').padEnd(2 * 1024 * 1024),
    [module('good')]: npm('good', '1.0.0'),
    [`${deep}/node_modules/low/package.json`]: npm('low', '1.0.0'),
    'var/lib/dpkg/status': `${deb('fine')}\nPackage: no version\n`,
  })
  execFileSync('mkfifo', [join(hostile.path, 'var/lib/dpkg/status.d')])
  const { packages, complete, warnings } = await scan([hostile], forever)
  expect(packages.map(({ name }) => name)).toEqual(['fine', 'good', 'large'])
  expect(complete).toBe(false)
  expect(warnings).toEqual([
    ...[
      'not looked at: directories deeper than 64',
      'app/node_modules/broken/package.json: entries that are no packages: 1',
    ],
    'app/node_modules/large/package.json: larger than the 1048576 bytes that are read',
    'var/lib/dpkg/status: entries that are no packages: 1',
  ])
})

test.each([
  ['packages', { ...scanLimits, packages: 2 }, /packages after the first 2/],
  ['characters', { ...scanLimits, text: 500 }, /packages after 500 characters/],
  ['bytes', { ...scanLimits, bytes: 60 }, /after the first 60 bytes/],
  ['entries', { ...scanLimits, walk: { ...walkLimits, entries: 5 } }, /entries after the first 5/],
  [
    'entries of one directory',
    { ...scanLimits, walk: { ...walkLimits, entriesOfOne: 3 } },
    /of a directory after the first 3/,
  ],
  ['files', { ...scanLimits, walk: { ...walkLimits, files: 1 } }, /files after the first 1/],
])('%s have a limit', async (_, limits, warning) => {
  const many = layer('many', Object.fromEntries(['a', 'b', 'c', 'd', 'e'].map((n) => [module(n), npm(n, '1.0.0')])))
  const { packages, complete, warnings } = await scan([many], forever, limits)
  expect(packages.length).toBeLessThan(5)
  expect({ complete, said: warnings.some((one) => warning.test(one)) }).toEqual({ complete: false, said: true })
})

test('ends when its caller goes', async () => {
  const reason = new Error('gone')
  await expect(scan([layer('any', { a: 'b' })], AbortSignal.abort(reason))).rejects.toBe(reason)
})

test('its thread ends what it runs when its caller goes', async () => {
  const children = () => readFileSync('/proc/thread-self/children', 'utf8').split(' ').filter(Boolean)
  const before = children()
  const started = () => children().filter((pid) => !before.includes(pid))
  const { port1, port2 } = new MessageChannel()
  try {
    // All that this machine has takes its time.
    const working = work(port2, [
      { diffId: 'upper', path: '/' },
      { diffId: 'lower', path: root },
    ])
    while (started().length === 0) await delay(1)
    const said = once(port1, 'message')
    port1.postMessage('stop')
    await working
    expect(started()).toEqual([])
    expect(await said).toMatchObject([{ kind: 'failed', message: expect.stringContaining('canceled') }])
  } finally {
    port1.close()
  }
})

test('of this machine, dpkg says the same', async () => {
  // A layer as large as a real one: the machine's own database, under a root of its own.
  const real = layer('real', {})
  for (const path of ['var/lib/dpkg', 'usr/lib'] as const) mkdirSync(join(real.path, path), { recursive: true })
  execFileSync('cp', ['/var/lib/dpkg/status', join(real.path, 'var/lib/dpkg/status')])
  execFileSync('cp', ['/usr/lib/os-release', join(real.path, 'usr/lib/os-release')])
  // biome-ignore lint/suspicious/noTemplateCurlyInString: it is dpkg-query's
  const format = '${db:Status-Abbrev} ${Package} ${Version} ${Architecture} ${source:Package} ${source:Version}\n'
  const expected = execFileSync('dpkg-query', ['-W', '-f', format], { encoding: 'utf8' })
    .split('\n')
    .flatMap((line) => (/^.[^nc]/.test(line) && line !== '' ? [line.split(/ +/).slice(1).join(' ')] : []))
  const { packages, distribution } = await scan([real], forever)
  const found = packages.map(({ name, version, architecture, source }) => {
    const from = source ?? { name, version }
    return `${name} ${version} ${architecture} ${from.name} ${from.version}`
  })
  expect(found.sort()).toEqual(expected.sort())
  expect(found.length).toBeGreaterThan(100)
  expect(distribution?.id).toMatch(/^(debian|ubuntu)$/)
})

test('nothing is left of it', () => expect(existsSync(root)).toBe(false))
