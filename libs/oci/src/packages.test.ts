import { describe, expect, test } from '@jest/globals'
import {
  Attribution,
  packageFileOf,
  packagePlaceOf,
  parseApkInstalled,
  parseDpkgFiles,
  parseDpkgStatus,
  parseOsRelease,
  parsePackageJson,
  parsePythonMetadata,
  type ToldPackage,
} from './packages.js'

test.each([
  ['var/lib', '/var/lib'],
  ['lib/apk', '/lib/apk'],
  ['var/lib/dpkg/status.d', '/var/lib/dpkg/status.d'],
  ['var/log', undefined],
  ['a/node_modules', 'modules'],
  ['a/node_modules/@s', 'scope'],
  ['a/node_modules/@s/x', 'module'],
  ['a/node_modules/x', 'module'],
  ['a/node_modules/.bin', undefined],
  ['a/node_modules/x/lib', undefined],
  ['a/x-1.dist-info', 'dist-info'],
  ['a/x.egg-info', 'egg-info'],
  ['a/EGG-INFO', 'egg-info'],
])('in a directory %s is looked for %s', (path, place) => expect(packagePlaceOf(path)).toBe(place))

const none = { architecture: null, source: null, license: null }

test.each([
  ['var/lib/dpkg/status', 'dpkg'],
  ['var/lib/dpkg/status.d/libc6', 'dpkg'],
  ['var/lib/dpkg/status.d/libc6.md5sums', 'dpkg-files'],
  ['var/lib/dpkg/info/libc6:amd64.list', 'dpkg-files'],
  ['lib/apk/db/installed', 'apk'],
  ['usr/lib/apk/db/installed', 'apk'],
  ['home/lib/apk/db/installed', undefined],
  ['etc/os-release', 'os-release'],
  ['app/node_modules/left-pad/package.json', 'npm'],
  ['usr/local/lib/node_modules/npm/node_modules/@npmcli/arborist/package.json', 'npm'],
  ['app/node_modules/left-pad/lib/package.json', undefined],
  ['app/node_modules/.bin/package.json', undefined],
  ['app/package.json', undefined],
  ['usr/lib/python3.11/site-packages/pip-24.0.dist-info/METADATA', 'python'],
  ['opt/x.egg-info/PKG-INFO', 'python'],
  ['opt/x-1.0.egg-info', 'python'],
  ['usr/local/lib/python3.13/dist-packages/x-1.dist-info/METADATA', 'python'],
  ['usr/lib/python3/dist-packages/x-1.dist-info/METADATA', 'python'],
  ['usr/share/nodejs/x/node_modules/y/package.json', 'npm'],
])('%s is read as %s', (path, kind) => expect(packageFileOf(path)).toBe(kind))

describe('dpkg', () => {
  test('what is installed, with its source and that one’s version', () => {
    const text = `Package: bash
Essential: yes
Status: install ok installed
Architecture: amd64
Version: 5.2.37-2+b3
Source: bash (5.2.37-2)
Description: shell
 Version: 9.9 is what a line that goes on says

Package: libssl3
Status: hold ok half-configured
Version: 3.0.1-1
Source: openssl
Architecture: amd64

Package: gone
Status: deinstall ok config-files
Version: 1

Package: never
Status: unknown ok not-installed

Package: bad version
Status: install ok installed
Version: 1
`
    expect(parseDpkgStatus(text)).toEqual({
      packages: [
        {
          ...{ type: 'deb', name: 'bash', version: '5.2.37-2+b3', architecture: 'amd64', license: null },
          source: { name: 'bash', version: '5.2.37-2' },
        },
        {
          ...{ type: 'deb', name: 'libssl3', version: '3.0.1-1', architecture: 'amd64', license: null },
          source: { name: 'openssl', version: '3.0.1-1' },
        },
      ],
      ...{ malformed: 1, cut: false },
    })
  })

  test('names of fields and of packages are in any case, as to dpkg itself', () => {
    const text = 'package: OpenSSL\nSTATUS: install ok installed\nversion: 1\narchitecture: all\n'
    expect(parseDpkgStatus(text).packages).toEqual([
      { ...none, type: 'deb', name: 'openssl', version: '1', architecture: 'all' },
    ])
  })

  test('its files, of both kinds', () => {
    const sum = '0'.repeat(32)
    expect([...parseDpkgFiles(`/.\n/usr/lib/a b\nno path\n${sum}  usr/lib/c\n`)]).toEqual([
      ...['.', 'usr/lib/a b', 'usr/lib/c'],
    ])
  })

  test('a file of a distroless image has no status', () => {
    const { packages } = parseDpkgStatus('Package: base-files\nVersion: 12.4\nArchitecture: all')
    expect(packages).toEqual([{ ...none, type: 'deb', name: 'base-files', version: '12.4', architecture: 'all' }])
  })
})

test.each([
  ['packages without end', 'Package: p\nVersion: 1\n\n', 20_001, 0],
  ['entries that are none', 'Package: p\n\n', 0, 20_001],
  ['lines without a colon', `${'a'.repeat(100)}\n`, 0, 1],
  ['empty lines', '\n', 0, 0],
])('of megabytes of %s no more is looked at than is of use', (_, entry, packages, malformed) => {
  const told = parseDpkgStatus(entry.repeat((4 * 1024 * 1024) / entry.length))
  expect([told.packages.length, told.malformed, told.cut]).toEqual([packages, malformed, packages + malformed > 20_000])
})

test('apk: with origin and licence', () => {
  const text = 'C:Q1=\nP:libcrypto3\nV:3.5.1-r0\nA:x86_64\nL:Apache-2.0\no:openssl\nF:lib\nR:x\n\nP:only\n\n'
  expect(parseApkInstalled(text)).toEqual({
    packages: [
      {
        ...{ type: 'apk', name: 'libcrypto3', version: '3.5.1-r0', architecture: 'x86_64', license: 'Apache-2.0' },
        source: { name: 'openssl', version: '3.5.1-r0' },
      },
    ],
    ...{ malformed: 1, cut: false },
  })
})

test.each<[string, Partial<ToldPackage> | undefined]>([
  ['{"name":"@a/b","version":"1.2.3","license":"MIT"}', { name: '@a/b', version: '1.2.3', license: 'MIT' }],
  ['\ufeff{"name":"x","version":"1.0.0","license":{"type":"ISC"}}', { name: 'x', version: '1.0.0', license: 'ISC' }],
  ['{"name":"x","version":"1.0.0","license":7}', { name: 'x', version: '1.0.0' }],
  ['{"type":"module"}', undefined],
  ['{"name":"a b","version":"1"}', undefined],
  ['{"name":"x\\u0000","version":"1"}', undefined],
  [`{"name":"x","version":"${'1'.repeat(300)}"}`, undefined],
  ['{', undefined],
  ['[]', undefined],
])('npm: %s', (text, found) => {
  const expected = found && [{ ...none, type: 'npm', ...found }]
  expect(parsePackageJson(text)).toEqual({ packages: expected ?? [], malformed: expected ? 0 : 1, cut: false })
})

test('python: the header only, and a licence that is a text is none', () => {
  const text = `Metadata-Version: 2.4\nName: Flask\r\nVersion: 3.0.0\nLicense: ${'long '.repeat(40)}\n\nVersion: 4\nName: no`
  expect(parsePythonMetadata(text).packages).toEqual([{ ...none, type: 'pypi', name: 'Flask', version: '3.0.0' }])
  expect(parsePythonMetadata('Name: x').malformed).toBe(1)
  expect(parsePythonMetadata('').malformed).toBe(1)
  expect(parsePythonMetadata('name: x\nVERSION: 1').packages).toHaveLength(1)
})

test.each([
  [
    'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"',
    ['debian', '13', 'Debian GNU/Linux 13 (trixie)'],
  ],
  ["# c\nID='alpine'\nVERSION_ID=3.22.1", ['alpine', '3.22.1', 'alpine']],
  ['ID=debian\nPRETTY_NAME="a \\"b\\""', ['debian', null, 'a "b"']],
  ['PRETTY_NAME=x', undefined],
])('os-release: %j', (text, expected) => {
  const [id, version, name] = expected ?? []
  expect(parseOsRelease(text)).toEqual(expected && { id, version, name })
})

test('a package is of the lowest layer that has had it, in this version, ever since', () => {
  const deb = (name: string, version: string): ToldPackage => ({ ...none, type: 'deb', name, version })
  const states = [
    { layer: 'top', packages: [deb('a', '1'), deb('b', '2'), deb('c', '1'), deb('d', '1')] },
    { layer: 'middle', packages: [deb('a', '1'), deb('b', '1'), deb('d', '1')] },
    { layer: 'bottom', packages: [deb('a', '1'), deb('b', '2'), deb('c', '1'), deb('gone', '1')] },
  ]
  const [top = { layer: '', packages: [] }, ...older] = states
  const attribution = new Attribution('status', top)
  expect(older.map((state) => attribution.below(state))).toEqual([true, true])
  expect(attribution.below({ layer: 'none', packages: [] })).toBe(false)
  expect(attribution.packages.map(({ name, layer, path }) => `${name} ${layer} ${path}`)).toEqual([
    ...['a bottom status', 'b top status', 'c top status', 'd middle status'],
  ])
})
