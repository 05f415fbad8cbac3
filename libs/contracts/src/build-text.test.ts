import { expect, test } from '@jest/globals'
import type { BuildProgress } from './build.js'
import { BuildText, failureText } from './build-text.js'

const at = (ms: number) => new Date(Date.parse('2026-01-01T00:00:00Z') + ms).toISOString()
const textOf = (steps: readonly BuildProgress[]): string => {
  const text = new BuildText()
  return steps.map((step) => text.add(step)).join('')
}
const output = (vertex: number, data: string, ms: number): BuildProgress => ({
  ...{ step: 'output', vertex, stream: 'stdout', data, at: at(ms) },
})
const begin = (vertex: number, name: string): BuildProgress => ({ step: 'begin', vertex, name, stage: null, at: at(0) })
const end = (vertex: number, error: string | null = null): BuildProgress => ({
  ...{ step: 'end', vertex, at: at(1250), ms: 1250, exitCode: null, error, layer: null },
})

test('output is told by whole lines, whatever pieces it came in, and the last one at the end', () => {
  const steps = [begin(1, 'RUN a'), begin(2, 'RUN b\n  && c'), output(1, 'on', 100), output(2, 'x\ny\r\nz', 200)]
  expect(textOf([...steps, output(1, 'e\n', 300), end(1), end(2, 'exit code 1')])).toBe(
    [
      '#1 RUN a',
      '#2 RUN b && c',
      '#2 0.200 x',
      '#2 0.200 y',
      '#1 0.300 one',
      '#1 DONE 1.3s',
      '#2 1.250 z',
      '#2 ERROR: exit code 1',
      '',
    ].join('\n'),
  )
})

test.each([
  ['as dpkg does', ['(Reading ...\r(Reading ... 5%\r(Reading', ' ... 100%\r', '\r(Reading ... done.)\n']],
  [
    'with an end that comes in pieces',
    ['(Reading ...\r(Reading ... 5%\r(Reading ... 100%\r', '(Reading ... done.)\r', '\n'],
  ],
])('what is written again from the beginning of its line is a line each time, %s', (_, pieces) => {
  const told = textOf([
    begin(1, 'RUN a'),
    ...pieces.map((piece) => output(1, piece, 100)),
    output(1, '\n\r\nx\r', 200),
    end(1),
  ])
  expect(told.split('\n').slice(1, -2)).toEqual([
    ...['', ' 5%', ' 100%'].map((far) => `#1 0.100 (Reading ...${far}`),
    ...['#1 0.100 (Reading ... done.)', '#1 0.200 ', '#1 0.200 ', '#1 0.200 x'],
  ])
})

test('a line that has no end is broken, so that nothing grows', () => {
  const text = new BuildText()
  text.add(begin(0, 'RUN yes'))
  const told = Array.from({ length: 100 }, (_, i) => text.add(output(0, 'y'.repeat(1000), i))).join('')
  expect(told.length).toBeGreaterThan(90_000)
})

test('what is cached, pulled, warned of and failed has a line, a layer only when it moves on', () => {
  const layer = `sha256:${'a'.repeat(64)}`
  const pull = (state: 'fetching' | 'done', bytes: number): BuildProgress => ({
    ...{ step: 'pull', reference: 'alpine', layer, state, bytes, totalBytes: 10 },
  })
  const failed = { code: 'build_failed', message: 'exit code 1', line: 3, instruction: 'RUN false' }
  expect(
    textOf([
      ...[pull('fetching', 1), pull('fetching', 2), pull('done', 10)],
      ...[begin(0, 'FROM alpine'), { step: 'cached', vertex: 0 } as const],
      { step: 'warning', message: 'MAINTAINER is deprecated', line: 2 },
      { step: 'failed', ...failed },
    ]),
  ).toBe(
    [
      'pull alpine aaaaaaaaaaaa fetching',
      'pull alpine aaaaaaaaaaaa done',
      '#0 FROM alpine',
      '#0 CACHED',
      'WARNING: MAINTAINER is deprecated (line 2)',
      'ERROR: Dockerfile:3: RUN false: exit code 1',
      '',
    ].join('\n'),
  )
})

test.each([
  ['line 3, RUN: exit code 1', 3, 'RUN false', 'Dockerfile:3: RUN false: exit code 1'],
  ['line 3: no instruction', 3, null, 'Dockerfile:3: no instruction'],
  ['line 3, RUN: what was asked for', null, null, 'line 3, RUN: what was asked for'],
])('where it failed is told once: %s', (message, line, instruction, text) => {
  expect(failureText({ message, line, instruction })).toBe(text)
})
