import { InvalidRequest } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import {
  baseScope,
  idBeginning,
  nameFilter,
  nameOf,
  namesOf,
  nameToGive,
  onlyOne,
  shortName,
  wantedOf,
  wellNamed,
} from './names.plan.js'

const [a, b] = [`sha256:${'a'.repeat(64)}`, `sha256:${'b'.repeat(64)}`]
const base = [
  { reference: 'python:latest', digest: a, sizeBytes: 3, ready: true },
  { reference: 'registry.local:5000/team/app:1', digest: a, sizeBytes: 4, ready: true },
]

describe('names in full, as Docker has them', () => {
  test.each([
    ['python', 'docker.io/library/python:latest', 'python:latest'],
    ['python:3', 'docker.io/library/python:3', 'python:3'],
    ['docker.io/library/python', 'docker.io/library/python:latest', 'python:latest'],
    ['team/app', 'docker.io/team/app:latest', 'team/app:latest'],
    ['localhost/app', 'localhost/app:latest', 'localhost/app:latest'],
    ['GHCR.io/team/app:1', 'ghcr.io/team/app:1', 'ghcr.io/team/app:1'],
    ['registry.local:5000/app', 'registry.local:5000/app:latest', 'registry.local:5000/app:latest'],
    ['index.docker.io/python', 'docker.io/library/python:latest', 'python:latest'],
    ['[::1]:5000/app', '[::1]:5000/app:latest', '[::1]:5000/app:latest'],
    [`app:1@${a}`, `docker.io/library/app@${a}`, `app@${a}`],
    [`app@${a}`, `docker.io/library/app@${a}`, `app@${a}`],
  ])('%s is %s, and is shown as %s', (text, full, short) => {
    expect(nameOf(text)).toBe(full)
    expect(shortName(full)).toBe(short)
    expect(nameOf(short)).toBe(full)
  })

  test.each(['', 'App', 'a b', 'a:b:c', 'a@b', '../a', `a@sha256:${'g'.repeat(64)}`, 'a//b', '-a', 'a:-b'])(
    '%j is none',
    (text) => {
      expect(() => nameOf(text)).toThrow(InvalidRequest)
      expect(namesOf([text, 'good'])).toEqual(['docker.io/library/good:latest'])
    },
  )
})

test('an archive gives no name with a digest, and nobody else does: it says what a registry had', () => {
  expect(namesOf([`app@${a}`, `app:1@${a}`, 'app:1'])).toEqual(['docker.io/library/app:1'])
  expect(() => nameToGive(`app@${a}`, 'reference')).toThrow(InvalidRequest)
})

describe('the beginning of an id', () => {
  test.each([
    ['3f2a', 'sha256:3f2a'],
    ['sha256:3f2a', 'sha256:3f2a'],
    ['a'.repeat(63), `sha256:${'a'.repeat(63)}`],
    ['beef', 'sha256:beef'],
    ['3f2', undefined],
    ['3F2A', undefined],
    ['3f2a:1', undefined],
    ['x/3f2a', undefined],
    ['a'.repeat(64), undefined],
    ['python', undefined],
  ])('%s', (text, beginning) => expect(idBeginning(text)).toBe(beginning))

  test('means an image if it is the only one, and is refused if it is not', () => {
    expect(onlyOne('aaaa', [a, a])).toBe(a)
    expect(onlyOne('aaaa', [])).toBeUndefined()
    expect(() => onlyOne('aaaa', [a, b])).toThrow('ids of several images begin so')
  })
})

describe('what is looked for', () => {
  test('a name is looked for in full, and is a base image where nodes have one of it', () => {
    const reference = 'docker.io/library/python:latest'
    expect(wantedOf('python', base)).toEqual({
      ...{ text: 'python', reference, digest: null, base: { key: 'python:latest', digest: null } },
    })
    expect(wantedOf('python:3', base).base).toBeNull()
    expect(wantedOf('registry.local:5000/team/app:1', base).base?.key).toBe('registry.local:5000/team/app:1')
  })

  test('a digest decides, with a name or without', () => {
    const found = { reference: null, digest: a, base: { key: 'python:latest', digest: a } }
    expect(wantedOf(a, base)).toEqual({ text: a, ...found })
    const digits = a.slice('sha256:'.length)
    expect(wantedOf(digits, base)).toEqual({ text: digits, ...found })
    expect(wantedOf(`python:2@${a}`, base)).toEqual({ text: `python:2@${a}`, ...found })
    expect(wantedOf(b, base)).toEqual({ text: b, reference: null, digest: b, base: null })
  })

  test('what only a drained node has is there by its digest, and not by its name', () => {
    const drained = [{ reference: 'debian:latest', digest: b, sizeBytes: 1, ready: false }, ...base]
    expect(wantedOf('debian', drained).base).toBeNull()
    expect(wantedOf(b, drained).base).toEqual({ key: 'debian:latest', digest: b })
  })

  test('while no node is known a name may be a base image, a digest is not', () => {
    expect(wantedOf('docker.io/library/python', []).base).toEqual({ key: 'python:latest', digest: null })
    expect(wantedOf(a, []).base).toBeNull()
    expect(wantedOf(`python@${a}`, []).base).toBeNull()
  })

  test('base images are told by digest, with all their names', () => {
    const references = ['docker.io/library/python:latest', 'registry.local:5000/team/app:1']
    expect(baseScope(base)).toEqual([{ digest: a, references, sizeBytes: 4 }])
  })

  test('a base image that nodes differ on is what is told first', () => {
    const name = 'docker.io/library/python:latest'
    const later = { reference: 'python:latest', digest: b, sizeBytes: 5, ready: true }
    expect(baseScope([...base.slice(0, 1), later])).toEqual([
      { digest: a, references: [name], sizeBytes: 3 },
      { digest: b, references: [], sizeBytes: 5 },
    ])
    expect(baseScope([later, ...base.slice(0, 1)]).find(({ digest }) => digest === b)?.references).toEqual([name])
  })

  test.each([
    ['python:latest', true],
    ['ghcr.io/team/app:1', true],
    ['python', false],
    ['docker.io/library/python:latest', false],
    ['library/python:latest', false],
    ['DOCKER.io/python:latest', false],
    ['no name', false],
  ])('a base image is named as agents name it: %s: %s', (reference, counts) => {
    const one = { reference, digest: a, sizeBytes: 1, ready: true }
    expect(wellNamed([one])).toEqual(counts ? [one] : [])
  })
})

test.each([
  [undefined, {}],
  ['python', { prefix: 'docker.io/library/python:' }],
  ['python:3', { reference: 'docker.io/library/python:3' }],
  ['py*', { prefix: 'docker.io/library/py' }],
  ['team/*', { prefix: 'docker.io/team/' }],
  ['ghcr.io/team/*', { prefix: 'ghcr.io/team/' }],
  ['GHCR.io/team/*', { prefix: 'ghcr.io/team/' }],
  ['index.docker.io/team/*', { prefix: 'docker.io/team/' }],
  ['[::1]:5000/*', { prefix: '[::1]:5000/' }],
  ['*', { prefix: '' }],
  [a, { digest: a }],
  [a.slice('sha256:'.length), { digest: a }],
  [`team/app:1@${a}`, { digest: a }],
])('a list is filtered by %s', (text, filter) => expect(nameFilter(text)).toEqual(filter))

test.each(['a\0*', 'a b*', 'ä*', "a'*"])('no name begins with %j', (text) =>
  expect(() => nameFilter(text)).toThrow(InvalidRequest),
)
