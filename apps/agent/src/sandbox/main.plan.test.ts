import { SandboxSpec } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { spawnFlags } from '../runtime/init-wire.js'
import { hostnameOf, mainCommand, mainRequest, stopSignal } from './main.plan.js'

type Input = Partial<typeof SandboxSpec._zod.input>
const spec = (input: Input = {}) => SandboxSpec.parse(input)
const image = { entrypoint: ['entry'], command: ['arg'], env: ['A=image'], workingDir: '/srv', stopSignal: 'SIGQUIT' }
const who = { uid: 5, gid: 6, groups: [], home: '/home' }

describe('the main command', () => {
  test.each<[string, Input, readonly string[]]>([
    ['nothing was asked for', {}, []],
    ['a command of its own', { command: ['a', 'b'] }, ['a', 'b']],
    ['an entrypoint alone drops the command of the image', { entrypoint: ['e'], runImage: true }, ['e']],
    ['both', { entrypoint: ['e'], command: ['c'] }, ['e', 'c']],
    ['what the image says', { runImage: true }, ['entry', 'arg']],
    ['the entrypoint of the image with another command', { runImage: true, command: ['c'] }, ['entry', 'c']],
    ['an empty command of an image', { runImage: true, command: [] }, ['entry']],
  ])('%s', (_, input, expected) => {
    expect(mainCommand(spec(input), image)).toEqual(expected)
  })

  test('an image without one has none', () => {
    expect(mainCommand(spec({ runImage: true }), {})).toEqual([])
  })
})

test('environment, directory and terminal are of the spec, else of the image', () => {
  const plain = mainRequest(spec({ env: { B: 'spec' } }), image, ['x'], who, 'box')
  expect(plain).toMatchObject({ argv: ['x'], cwd: '/srv', uid: 5, flags: spawnFlags.main | spawnFlags.noNewPrivs })
  expect(plain.env).toEqual(expect.arrayContaining(['A=image', 'B=spec', 'HOME=/home', 'HOSTNAME=box']))
  const terminal = spec({ tty: { rows: 3, columns: 4 }, workingDir: '/w', env: { TERM: 'dumb' } })
  const drawn = mainRequest(terminal, image, ['x'], who, 'box')
  expect(drawn).toMatchObject({ cwd: '/w', rows: 3, columns: 4 })
  expect(drawn.flags & spawnFlags.tty).toBe(spawnFlags.tty)
  expect(drawn.env).toContain('TERM=dumb')
})

test('the signal of a stop: the request’s, the spec’s, the image’s, SIGTERM', () => {
  expect(stopSignal(12, spec({ stopSignal: 'SIGUSR1' }), image)).toBe(12)
  expect(stopSignal(null, spec({ stopSignal: 'SIGUSR1' }), image)).toBe(10)
  expect(stopSignal(null, spec(), image)).toBe(3)
  expect(stopSignal(null, spec(), { stopSignal: '37' })).toBe(37)
  expect(stopSignal(null, spec(), { stopSignal: 'NONSENSE' })).toBe(15)
  expect(stopSignal(null, spec(), undefined)).toBe(15)
})

test('the name of its host is given, or the end of its id', () => {
  expect(hostnameOf({ hostname: 'h' }, 'sbx_01j9aaaaaaaaaaaaaaaaaaaaaa')).toBe('h')
  expect(hostnameOf({}, 'sbx_01j9aaaaaaaaaaaaaabbbbbbbbbb')).toBe('aabbbbbbbbbb')
})
