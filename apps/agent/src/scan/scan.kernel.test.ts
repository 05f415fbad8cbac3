// What is installed in layers as berth-layer unpacks them: hidden, replaced, hostile.
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { MessageChannel } from 'node:worker_threads'
import { afterEach, expect, test } from '@jest/globals'
import fc from 'fast-check'
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

test('a link leads to nothing outside of the image', async () => {
  layer('outside', { 'node_modules/secret/package.json': npm('secret', '1.0.0') })
  const hostile = layer('hostile', {
    'var/lib/dpkg/status': `->${root}/outside/node_modules/secret/package.json`,
    'app/node_modules': `->${root}/outside/node_modules`,
    'up/node_modules': '->../../outside/node_modules',
    'far/node_modules': `->${'../'.repeat(40)}${root}/outside/node_modules`,
    'loop/node_modules': '->../loop/node_modules',
    'a/node_modules': '->../b/node_modules',
    'b/node_modules': '->../a/node_modules',
    'self/node_modules/self': '->..',
    'file/node_modules/x': '->../../etc/os-release/x',
    'etc/os-release': 'ID=debian',
  })
  expect(await told(hostile)).toEqual([])
})

test('what a container finds by a link, through all layers, is found', async () => {
  const lowest = layer('lowest', {
    'data/dpkg/status': deb('base'),
    'data/os': 'ID=debian\nVERSION_ID=13',
    'opt/deps/x/package.json': npm('x', '1.0.0'),
    'opt/deps/@s/y/package.json': npm('@s/y', '1.0.0'),
    'opt/deps/gone/package.json': npm('gone', '1.0.0'),
    'opt/z/package.json': npm('z', '1.0.0'),
    'opt/z/node_modules/deep/package.json': npm('deep', '1.0.0'),
    'opt/meta': 'Name: py\nVersion: 1\n',
    'store/node_modules/real/package.json': npm('real', '1.0.0'),
  })
  const top = layer('top', {
    'var/lib': '->/var/moved',
    'var/moved/dpkg': '->/../data/./dpkg/',
    'etc/os-release': '->../data/os',
    'app/node_modules': '->/opt/deps',
    'opt/deps/z': '->../z',
    'opt/deps/gone': null,
    'more/node_modules/x': '->/opt/deps/x',
    'more/node_modules/real': '->/store/node_modules/real',
    'lib/py-1.dist-info/METADATA': '->../../opt/meta',
    'data/dpkg/status': deb('base', 'added'),
  })
  expect((await told(lowest, top)).sort()).toEqual([
    ...['@s/y 1.0.0 lowest', 'added 1 top', 'base 1 lowest', 'deep 1.0.0 lowest', 'py 1 lowest'],
    ...['real 1.0.0 lowest', 'x 1.0.0 lowest', 'z 1.0.0 lowest'],
  ])
  const { distribution, packages, complete } = await scan([top, lowest], forever)
  expect({ id: distribution?.id, complete }).toEqual({ id: 'debian', complete: true })
  expect(packages.find(({ name }) => name === 'base')?.path).toBe('var/lib/dpkg/status')
})

test('of layers by chance, what is found is what a container reads', async () => {
  const places = [
    'a/node_modules',
    'a/node_modules/x',
    'b/deps',
    'b/deps/x',
    'b/deps/@s',
    'b/deps/@s/y',
    'b',
    'data/dpkg',
  ]
  const files = ['b/deps/x', 'b/deps/@s/y', 'a/node_modules/x', 'a/node_modules/x/node_modules/z']
    .map((at) => `${at}/package.json`)
    .concat('data/dpkg/status', 'var/lib/dpkg/status')
  const to = fc.oneof({ weight: 4, arbitrary: fc.constantFrom(...places) }, fc.constantFrom(...files, 'a', 'none'))
  const link = fc.tuple(fc.constantFrom('/', '../', '../../', '../../../'), to).map(([up, at]) => `->${up}${at}`)
  const entry = fc.oneof(
    { weight: 5, arbitrary: fc.tuple(fc.constantFrom(...files), fc.constant('file')) },
    { weight: 4, arbitrary: fc.tuple(fc.constantFrom(...places, ...files, 'var', 'var/lib', 'var/lib/dpkg'), link) },
    fc.tuple(fc.constantFrom(...places, ...files, 'var'), fc.constantFrom(null, 'opaque' as const)),
  )
  const tree = fc.array(entry, { minLength: 4, maxLength: 14 })
  // All that npm and dpkg would look for: there are no other directories of modules, and links give a module any name.
  const modules = ['a/node_modules', 'a/node_modules/x/node_modules']
  const names = ['x', 'y', 'z', 'a', 'b', 'deps', 'data', 'dpkg', 'var', 'lib', 'bin']
  const looked = modules
    .flatMap((at) => names.flatMap((name) => [`${at}/${name}`, `${at}/@s/${name}`]))
    .map((at) => `${at}/package.json`)
  const merged = join(root, 'merged')
  let made = 0
  await fc.assert(
    fc.asyncProperty(fc.array(tree, { minLength: 2, maxLength: 3 }), async (trees) => {
      made++
      const layers = trees.map((tree, index) => {
        const given: Record<string, string | null | 'opaque'> = {}
        for (const [path, what] of tree) {
          const parents = Object.entries(given).some(([at, its]) => path.startsWith(`${at}/`) && its !== 'opaque')
          if (parents || Object.keys(given).some((at) => at.startsWith(`${path}/`) || at === path)) continue
          const version = `${made}.${index}.${Object.keys(given).length}`
          const text = path.endsWith('status') ? deb(`p${version}`) : npm('n', version)
          given[path] = what === 'file' ? text : what
        }
        return layer(`${made}-${index}`, given)
      })
      const [lowest] = layers
      mkdirSync(join(lowest?.path ?? '', 'bin'))
      copyFileSync('/bin/busybox', join(lowest?.path ?? '', 'bin/busybox'))
      const lower = layers.map(({ path }) => path).reverse()
      mkdirSync(merged, { recursive: true })
      execFileSync('mount', ['-t', 'overlay', '-o', `ro,lowerdir=${lower.join(':')}`, 'overlay', merged])
      let read: string
      try {
        // A link may lead from a place of one kind to a file of the other, which is none of either.
        const all = [
          ...looked.map((path) => `echo npm; /bin/busybox cat '/${path}'`),
          "echo deb; /bin/busybox cat '/var/lib/dpkg/status'",
        ]
        const script = all.map((each) => `${each}; echo`).join('\n')
        const stdio = ['ignore', 'pipe', 'ignore'] as const
        read = execFileSync('chroot', [merged, '/bin/busybox', 'sh', '-c', script], {
          encoding: 'utf8',
          stdio: [...stdio],
        })
      } finally {
        execFileSync('umount', [merged])
      }
      const told = [...read.matchAll(/^npm\n\{.*"version":"([^"]*)"|^deb\nPackage: p(.*)$/gm)]
      const expected = new Set(told.map(([, module, debian]) => module ?? debian))
      const { packages, complete } = await scan([...layers].reverse(), forever)
      const found = packages.map(({ name, version }) => (name === 'n' ? version : name.slice(1)))
      expect({ found: found.sort(), complete }).toEqual({ found: [...expected].sort(), complete: true })
      for (const { path } of layers) rmSync(path, { recursive: true })
    }),
    { numRuns: 40 },
  )
})

test('a name that is no UTF-8 hides nothing, of its own or under a name that looks the same', async () => {
  const lower = layer('lower', { [`\ufffd/${module('whiteout')}`]: npm('shown', '1.0.0') })
  const upper = layer('upper', { [`\ufffd/${module('seen')}`]: npm('seen', '1.0.0') })
  const bytes = (name: string) => Buffer.concat([Buffer.from(`${upper.path}/`), Buffer.from(name, 'latin1')])
  // Both are U+FFFD to who reads them as text; the first one is opaque.
  for (const name of ['\xff', '\xfe']) mkdirSync(bytes(`${name}/node_modules/odd${name}`), { recursive: true })
  writeFileSync(bytes('\xff/node_modules/odd\xff/package.json'), npm('odd', '1.0.0'))
  execFileSync('sh', ['-c', `setfattr -n trusted.overlay.opaque -v y "${upper.path}/$(printf '\\377')"`])
  const { packages, complete, warnings } = await scan([upper, lower], forever)
  expect(packages.map(({ name, path }) => [name, path])).toEqual([
    ...[
      ['odd', '\ufffd/node_modules/odd\ufffd/package.json'],
      ['seen', '\ufffd/app/node_modules/seen/package.json'],
      ['shown', '\ufffd/app/node_modules/whiteout/package.json'],
    ],
  ])
  expect({ complete, warnings }).toEqual({ complete: true, warnings: [] })
})

test('below dist-packages of Debian, what dpkg lists is its own, and all else is pip’s', async () => {
  const place = 'usr/lib/python3/dist-packages'
  const python = (name: string) => `Name: ${name}\nVersion: 1\n`
  const debian = layer('debian', {
    'var/lib/dpkg/status': deb('python3-six'),
    'var/lib/dpkg/info/python3-six.list': `/.\n/${place}\n/${place}/six-1.egg-info/PKG-INFO\n${'/usr/share/doc/x\n'.repeat(300_000)}`,
    'var/lib/dpkg/status.d/python3-ply': 'Package: python3-ply\nVersion: 1\n',
    'var/lib/dpkg/status.d/python3-ply.md5sums': `${'0'.repeat(32)}  ${place}/ply-1.egg-info\n`,
    [`${place}/six-1.egg-info/PKG-INFO`]: python('six'),
    [`${place}/ply-1.egg-info`]: python('ply'),
    [`${place}/other-1.dist-info/METADATA`]: python('other'),
    // Debian's modules are where node finds them by a link only.
    'var/lib/dpkg/info/node-linked.list': '/usr/share/nodejs/linked/package.json\n',
    'usr/share/nodejs/linked/package.json': npm('linked', '1.0.0'),
    'usr/share/nodejs/unlisted/package.json': npm('unlisted', '1.0.0'),
    'usr/lib/node_modules/linked': '->/usr/share/nodejs/linked',
    'usr/lib/node_modules/unlisted': '->/usr/share/nodejs/unlisted',
  })
  const { packages, complete } = await scan([debian], forever)
  expect(packages.map(({ name }) => name)).toEqual(['python3-ply', 'python3-six', 'unlisted', 'other'])
  expect(complete).toBe(true)
})

test('a path that is too long for who reads attributes costs no more than itself', async () => {
  const long = Array.from({ length: 15 }, () => 'd'.repeat(255)).join('/')
  const lower = layer('lower', { [module('kept')]: npm('kept', '1.0.0') })
  const upper = layer('upper', {})
  execFileSync('sh', ['-c', `mkdir -p ${long} && cd ${long} && mkdir -p ${'e'.repeat(250)}/${'f'.repeat(250)}`], {
    cwd: upper.path,
  })
  const { packages, complete } = await scan([upper, lower], forever)
  expect({ found: packages.length, complete }).toEqual({ found: 1, complete: false })
  execFileSync('rm', ['-r', upper.path])
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
  ['links', { ...scanLimits, walk: { ...walkLimits, links: 1 } }, /links after the first 1/],
  ['names of links', { ...scanLimits, walk: { ...walkLimits, steps: 5 } }, /links after the first 5 names/],
  [
    'entries of one directory',
    { ...scanLimits, walk: { ...walkLimits, entriesOfOne: 3 } },
    /of a directory after the first 3/,
  ],
  ['files', { ...scanLimits, walk: { ...walkLimits, files: 1 } }, /files after the first 1/],
])('%s have a limit', async (_, limits, warning) => {
  const many = layer('many', {
    ...Object.fromEntries(['a', 'b', 'c', 'd'].map((name) => [module(name), npm(name, '1.0.0')])),
    ...Object.fromEntries(['e', 'f'].map((name) => [`app/node_modules/${name}`, `->/opt/${name}`])),
    ...Object.fromEntries(['e', 'f'].map((name) => [`opt/${name}/package.json`, npm(name, '1.0.0')])),
  })
  const { packages, complete, warnings } = await scan([many], forever, limits)
  expect(packages.length).toBeLessThan(6)
  expect({ complete, said: warnings.some((one) => warning.test(one)) }).toEqual({ complete: false, said: true })
})

test('older states of a database are read as long as they say since when something is there', async () => {
  const status = (...packages: string[]) => ({ 'var/lib/dpkg/status': deb(...packages) })
  const [lowest, lower] = [layer('lowest', status(...'abcdefgh')), layer('lower', status('gone'))]
  const top = layer('top', status('new'))
  const bytes = 2 * deb('gone').length
  const { packages, complete } = await scan([top, lower, lowest], forever, { ...scanLimits, bytes })
  expect(packages.map(({ name, layer: brought }) => `${name} ${brought}`)).toEqual(['new top'])
  expect(complete).toBe(true)
})

test('entries that are none do not push those behind them out unseen', async () => {
  const status = `${'Package: x\n\n'.repeat(20_001)}${deb('behind')}`
  const { packages, complete, warnings } = await scan([layer('any', { 'var/lib/dpkg/status': status })], forever)
  expect({ packages, complete }).toEqual({ packages: [], complete: false })
  expect(warnings).toContain('var/lib/dpkg/status: entries after the first 20000 are not read')
})

test('a header of metadata that is longer than what is read is told', async () => {
  const header = 'Keywords: many\n'.repeat(8192)
  const files = (end: string) => ({ 'x-1.dist-info/METADATA': `Name: x\nVersion: 1\n${end}` })
  expect((await scan([layer('short', files(`\n${header}`))], forever)).complete).toBe(true)
  const { complete, warnings } = await scan([layer('long', files(header))], forever)
  expect({ complete, warnings }).toEqual({
    ...{ complete: false, warnings: ['x-1.dist-info/METADATA: larger than the 65536 bytes that are read'] },
  })
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
