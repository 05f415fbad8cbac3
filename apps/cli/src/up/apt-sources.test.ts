import { expect, test } from '@jest/globals'
import { fetchOptions, formatSources, parseOsRelease, selectSources } from './apt-sources.js'

const target = (fields: Readonly<Record<string, string>>) =>
  Object.entries({ MetaKey: 'main/binary-amd64/Packages', ...fields })
    .map(([key, value]) => `${key}: ${value}\n`)
    .join('')

const targets = [
  target({ 'Repo-URI': 'http://mirror.test/debian/', Release: 'bookworm', Component: 'main', Origin: 'Debian' }),
  target({
    'Repo-URI': 'http://mirror.test/security/',
    Release: 'bookworm-security',
    Component: 'main',
    Origin: 'Debian',
  }),
  target({ 'Repo-URI': 'http://mirror.test/debian/', Release: 'trixie', Component: 'main', Origin: 'Debian' }),
  target({ 'Repo-URI': 'http://third.test/node/', Release: 'nodistro', Component: 'main', Origin: 'Someone' }),
].join('\n')

test('only the own distribution and release is a source of base images', () => {
  expect(selectSources(targets, 'debian', 'bookworm').map(({ suite }) => suite)).toEqual([
    'bookworm',
    'bookworm-security',
  ])
})

test('sources are written once each, in a fixed order', () => {
  const [first, second] = selectSources(targets, 'debian', 'bookworm')
  if (!first || !second) throw new Error('the fixture has two sources')
  expect(formatSources([second, first, first])).toBe(formatSources([first, second]))
  expect(formatSources([{ ...first, signedBy: '/usr/share/keyrings/a.gpg' }])).toBe(
    'Types: deb\nURIs: http://mirror.test/debian/\nSuites: bookworm\nComponents: main\n' +
      'Signed-By: /usr/share/keyrings/a.gpg\n',
  )
})

test('an address with a password is refused, because images are readable by tenants', () => {
  const source = { uri: 'https://user:secret@mirror.test/debian', suite: 'x', component: 'main', signedBy: '' }
  expect(() => formatSources([source])).toThrow(/auth\.conf\.d/)
  expect(() => formatSources([source])).not.toThrow(/secret/)
})

test('options about fetching are taken over, others are not', () => {
  const dump = [
    'Acquire "";',
    'Acquire::http::Proxy "http://proxy.test:3128";',
    'Acquire::Check-Valid-Until "false";',
    'Acquire::https "";',
    'APT::Install-Recommends "true";',
  ]
  expect(fetchOptions(dump)).toEqual([dump[1], dump[2]])
})

test('os-release values come with and without quotes', () => {
  expect(parseOsRelease('ID=debian\nVERSION_CODENAME="bookworm"\nNAME="Debian GNU/Linux"\n')).toEqual({
    ID: 'debian',
    VERSION_CODENAME: 'bookworm',
    NAME: 'Debian GNU/Linux',
  })
})
