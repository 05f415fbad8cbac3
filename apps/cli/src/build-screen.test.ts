import type { BuildProgress } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { argumentsOf } from './build.js'
import { BuildView } from './build-screen.js'

const at = '2026-01-01T00:00:00.000Z'
const begin = (vertex: number, name: string): BuildProgress => ({ step: 'begin', vertex, name, stage: null, at })
const output = (vertex: number, data: string): BuildProgress => ({
  ...{ step: 'output', vertex, stream: 'stdout', data, at },
})
const end = (vertex: number, error: string | null = null): BuildProgress => ({
  ...{ step: 'end', vertex, at, ms: 1234, exitCode: null, error, layer: null },
})
const frame = (steps: readonly BuildProgress[], rows = 24, over = false) => {
  const view = new BuildView(0)
  for (const step of steps) view.add(step, 1000)
  return view.frame(3000, 40, rows, over)
}

test('each instruction has a line with its time, those that go on their last output', () => {
  const steps = [begin(0, 'FROM python'), { step: 'cached', vertex: 0 } as const, begin(1, 'RUN a'), begin(2, 'RUN b')]
  expect(frame([...steps, output(2, 'one\ntw'), output(2, 'o\nthree'), end(1)])).toEqual([
    '[+] Building 3.0s (2/3)',
    ` => CACHED FROM python${' '.repeat(13)} 0.0s`,
    ` => RUN a${' '.repeat(26)} 1.2s`,
    ` => RUN b${' '.repeat(26)} 2.0s`,
    ...[' => # one', ' => # two', ' => # three'],
  ])
  expect(frame([begin(0, 'RUN false'), end(0, 'exit code 1')], 24, true)).toEqual([
    '[+] Building 3.0s (1/1) FINISHED',
    ` => ERROR RUN false${' '.repeat(16)} 1.2s`,
  ])
})

test('progress that is written over and over is shown as far as it is', () => {
  const shown = (...pieces: readonly string[]) =>
    frame([begin(0, 'RUN get'), ...pieces.map((piece) => output(0, piece))]).slice(2)
  expect(shown('Reading ...\r', 'Reading ... 5%\r')).toEqual([' => # Reading ... 5%'])
  expect(shown('Reading ...\rReading ... 5%\rReading ... 1', '0%')).toEqual([' => # Reading ... 10%'])
  expect(shown('1\n2\n3\n4\n5\n6\n', '7%\u001b[2J\r')).toEqual(
    ['2', '3', '4', '5', '6', '7%'].map((text) => ` => # ${text}`),
  )
})

test('of an instruction that failed the last output stays, and warnings are told in the end', () => {
  const text = '\rone 1%\rone 100%\ntwo\r\nthree'
  const warning = { step: 'warning', message: 'A is not set', line: 3 } as const
  const steps = [begin(0, 'RUN false'), warning, output(0, text), end(0, 'exit code 1')]
  expect(frame(steps, 24, true)).toEqual([
    '[+] Building 3.0s (1/1) FINISHED, 1 war…',
    ` => ERROR RUN false${' '.repeat(16)} 1.2s`,
    ' => # one 100%',
    ' => # two',
    ' => # three',
    ' ! line 3: A is not set',
  ])
})

test('it fits the terminal, and nothing that a command writes moves its cursor', () => {
  const many = Array.from({ length: 50 }, (_, i) => begin(i, `RUN ${'x'.repeat(100)} ${i}`))
  const lines = frame([...many, output(49, '\u001b[2J\u001b[1;1Hhere\u0007\u009b\r\n')], 10)
  expect(lines).toHaveLength(9)
  expect(lines.every((line) => line.length <= 40)).toBe(true)
  expect(lines.at(-1)).toBe(' => # here')
  const hostile = 'RUN \u001b]52;c;eA==\u0007\u001b[2J\u009b1Ax'
  const failed = {
    step: 'failed',
    code: 'build_failed',
    message: `${hostile}\r`,
    line: 3,
    instruction: hostile,
  } as const
  const warning = { step: 'warning', message: hostile, line: null } as const
  const all = frame([begin(0, hostile), warning, output(0, `${hostile}\n`), end(0, hostile), failed], 24, true)
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not be there
  expect(all.filter((line) => /[\u0000-\u001f\u007f-\u009f]/.test(line))).toEqual([])
  expect(all.at(-1)).toBe('berth: Dockerfile:3: RUN ]52;c;eA==1Ax: RUN ]52;c;eA==1Ax')
})

test('an argument without a value has that of the environment, or is none', () => {
  expect(argumentsOf(['A=1', 'B', 'C', 'D='], { B: 'b' })).toEqual(['A=1', 'B=b', 'D='])
})
