import { BuildQuery, InvalidRequest } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { askedBuild } from './request.plan.js'

const base64 = (text: string) => Buffer.from(text).toString('base64')
const asked = (query: Record<string, unknown> = {}, headers: Record<string, string> = {}) =>
  askedBuild(BuildQuery.parse(query), headers)

test('what is not given is as documented', () => {
  expect(asked()).toEqual({
    names: [],
    options: {
      ...{ dockerfile: 'Dockerfile', target: null, args: {}, labels: {}, noCache: false, pull: false },
      ...{ network: 'default', platform: null },
    },
    limits: { cpus: 1, memoryBytes: 2 ** 30, diskBytes: 4 * 2 ** 30, pids: 1024 },
    ...{ parallel: 2, timeoutMs: 1_800_000, queueMs: 60_000, dockerfileText: null, secrets: {} },
  })
})

test('what is given once or several times, with units', () => {
  const query = { tag: ['app', 'app:latest', 'ghcr.io/team/app:1'], arg: ['A=1', 'B==', 'A=2'], label: 'x=' }
  const limits = { cpus: '0.5', memoryBytes: '256m', diskBytes: '1g', pids: '50', parallel: '4', timeoutMs: '90s' }
  expect(asked({ ...query, ...limits, noCache: 'true' })).toMatchObject({
    names: ['docker.io/library/app:latest', 'ghcr.io/team/app:1'],
    options: { args: { A: '2', B: '=' }, labels: { x: '' }, noCache: true },
    limits: { cpus: 0.5, memoryBytes: 256 * 2 ** 20, diskBytes: 2 ** 30, pids: 50 },
    ...{ parallel: 4, timeoutMs: 90_000 },
  })
})

test('secrets and a Dockerfile come in headers, a header that was repeated by commas', () => {
  const headers = {
    'berth-build-secret': `npm=${base64('a\nb')}, key.1=${base64('==')}`,
    'berth-dockerfile': base64('FROM scratch # ä'),
  }
  expect(asked({}, headers)).toMatchObject({
    secrets: { npm: base64('a\nb'), 'key.1': base64('==') },
    dockerfileText: 'FROM scratch # ä',
  })
})

test.each([
  ['tag', { tag: 'a@sha256:x' }, {}],
  ['tag', { tag: `app@sha256:${'a'.repeat(64)}` }, {}],
  ['Berth-Build-Secret', {}, { 'berth-build-secret': 'npm=hunter2!' }],
  ['Berth-Build-Secret', {}, { 'berth-build-secret': '../x=aGk=' }],
  ['Berth-Build-Secret', {}, { 'berth-build-secret': 'a=aGk=, a=aGk=' }],
  ['Berth-Dockerfile', {}, { 'berth-dockerfile': '/w==' }],
  ['Berth-Dockerfile', {}, { 'berth-dockerfile': 'FROM x' }],
])('%s that is none is refused by name, and no secret is told', (field, query, headers) => {
  const refused = () => asked(query, headers)
  expect(refused).toThrow(InvalidRequest)
  expect(refused).toThrow(field)
  expect(refused).not.toThrow('hunter2')
})

test.each([
  ['arg', { arg: 'A' }],
  ['arg', { arg: 'A B=1' }],
  ['label', { label: '=x' }],
  ['parallel', { parallel: '5' }],
  ['memoryBytes', { memoryBytes: '1m' }],
  ['dockerfile', { dockerfile: '../Dockerfile' }],
  ['platform', { platform: 'windows/amd64' }],
])('%s outside of what there is is refused', (field, query) => {
  expect(BuildQuery.safeParse(query).error?.issues[0]?.path).toEqual([field])
})
