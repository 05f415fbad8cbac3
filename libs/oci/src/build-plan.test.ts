// biome-ignore-all lint/suspicious/noTemplateCurlyInString: they are variables of Dockerfiles
import { Failure } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { type PlanOptions, planBuild } from './build-plan.js'
import { parseDockerfile } from './dockerfile.js'

const plan = (text: string, options: Partial<PlanOptions> = {}) =>
  planBuild(parseDockerfile(text), { target: null, args: {}, platform: 'linux/amd64', ...options })

/** Stages as `index name source needs`, and the references. */
const shown = (text: string, options: Partial<PlanOptions> = {}) => {
  const { stages, references } = plan(text, options)
  const source = (from: (typeof stages)[number]['from']) =>
    from.kind === 'image' ? from.reference : from.kind === 'stage' ? `#${from.index}` : 'scratch'
  return [...stages.map((s) => `${s.index} ${s.name} ${source(s.from)} [${s.needs}] [${s.images}]`), references.join()]
}

test('a plan knows where each image is named first', () => {
  const text =
    'FROM a AS x\nFROM b\nRUN --mount=from=c,target=/c true\nCOPY --from=c / /\nCOPY --from=x \\\n  / /\nFROM b'
  const places = (target: string) =>
    [...plan(text, { target }).places].map(([reference, at]) => `${reference} ${at.line} ${at.text}`)
  expect(places('1')).toEqual(['a 1 FROM a AS x', 'b 2 FROM b', 'c 3 RUN --mount=from=c,target=/c true'])
  expect(places('2')).toEqual(['b 7 FROM b'])
})

describe('planBuild', () => {
  test.each<[string, string, Partial<PlanOptions>, string[]]>([
    ['one stage', 'FROM alpine:3', {}, ['0 null alpine:3 [] []', 'alpine:3']],
    ['scratch is no image', 'FROM scratch', {}, ['0 null scratch [] []', '']],
    [
      'only what the target needs',
      'FROM a AS x\nFROM b AS y\nFROM X\nCOPY --from=c /a /b',
      {},
      ['0 x a [] []', '2 null #0 [0] [c]', 'a,c'],
    ],
    ['a target by name', 'FROM a AS x\nFROM b AS y', { target: 'X' }, ['0 x a [] []', 'a']],
    ['a target by number', 'FROM a AS x\nFROM b AS y', { target: '0' }, ['0 x a [] []', 'a']],
    ['a base of the same name as its stage', 'FROM node AS node', {}, ['0 node node [] []', 'node']],
    ['stages by number', 'FROM a\nFROM b\nCOPY --from=0 / /', {}, ['0 null a [] []', '1 null b [0] []', 'a,b']],
    ['arguments in FROM', 'ARG V=3\nARG I=alpine:$V\nFROM $I', {}, ['0 null alpine:3 [] []', 'alpine:3']],
    ['given arguments', 'ARG V=3\nFROM alpine:${V}', { args: { V: '4' } }, ['0 null alpine:4 [] []', 'alpine:4']],
    ['the platform that it is anyway', 'FROM --platform=$BUILDPLATFORM a', {}, ['0 null a [] []', 'a']],
    [
      'a stage for another platform that nothing needs',
      'FROM --platform=linux/arm64 a AS arm64\nFROM --platform=linux/amd64 b AS amd64\nFROM $TARGETARCH',
      {},
      ['1 amd64 b [] []', '2 null #1 [1] []', 'b'],
    ],
    [
      'a platform of few words',
      'FROM --platform=x86_64 a AS b\nFROM --platform=linux b',
      {},
      ['0 b a [] []', '1 null #0 [0] []', 'a'],
    ],
    [
      'a stage is of the platform of its base',
      'FROM a AS b\nFROM --platform=arm64 b',
      {},
      ['0 b a [] []', '1 null #0 [0] []', 'a'],
    ],
    ['a later stage is none in FROM', 'FROM b\nFROM a AS b', { target: '0' }, ['0 null b [] []', 'b']],
    [
      'each image once',
      'FROM a\nFROM a AS b\nFROM b\nCOPY --from=a / /',
      {},
      ['1 b a [] []', '2 null #1 [1] [a]', 'a'],
    ],
    [
      'a name in either case',
      'FROM a AS Build\nFROM b\nCOPY --from=bUILD / /',
      {},
      ['0 build a [] []', '1 null b [0] []', 'a,b'],
    ],
    ['mounts', 'FROM a\nRUN --mount=from=b,target=/x true', {}, ['0 null a [] [b]', 'a,b']],
  ])('%s', (_, text, options, expected) => expect(shown(text, options)).toEqual(expected))

  test('warns of arguments that nothing declares', () => {
    const args = { a: '1', b: '2', HTTP_PROXY: 'p', TARGETARCH: 'x', SOURCE_DATE_EPOCH: '0' }
    expect(plan('ARG b\nFROM i', { args }).warnings).toEqual([
      { line: null, message: 'no ARG declares the build arguments a' },
    ])
  })

  test.each<[string, string, Partial<PlanOptions>, RegExp]>([
    ['no FROM', 'ARG a', {}, /no FROM/],
    ['before FROM', 'RUN a\nFROM b', {}, /line 1, RUN: only ARG/],
    [
      'a circle',
      'FROM a AS x\nCOPY --from=y / /\nFROM b AS y\nCOPY --from=x / /',
      {},
      /line 2, COPY: stage y comes later/,
    ],
    ['itself', 'FROM a AS x\nCOPY --from=x / /', {}, /line 2, COPY: stage x cannot copy from itself/],
    ['names twice', 'FROM a AS x\nFROM b AS X', {}, /line 2, FROM: there are two stages named x/],
    ['an unknown target', 'FROM a AS build', { target: 'biuld' }, /no stage "biuld".*did you mean build/],
    ['an unknown number', 'FROM a\nCOPY --from=3 / /', {}, /there is no stage 3/],
    ['an empty base', 'FROM $nothing', {}, /the base "\$nothing" is empty/],
    [
      'a later stage',
      'FROM a\nCOPY --from=later / /\nFROM b AS later',
      { target: '0' },
      /line 2, COPY: stage later comes later/,
    ],
    [
      'a later mount',
      'FROM a\nRUN --mount=from=1,target=/x a\nFROM b',
      { target: '0' },
      /line 2, RUN: stage 1 comes later/,
    ],
    ['no platform', 'FROM --platform=x a', {}, /line 1, FROM: "x" is no platform/],
    [
      'another platform of few words',
      'FROM --platform=arm64 a',
      {},
      /builds for linux\/amd64 only, and not for linux\/arm64/,
    ],
    ['an empty platform', 'FROM --platform=$x a', {}, /"" is no platform/],
    ['another platform', 'FROM --platform=linux/arm64 a', {}, /builds for linux\/amd64 only/],
    ['no name of an image', 'FROM python:3@sha256:abc', {}, /line 1, FROM: no name of an image: "python:3@sha256:abc"/],
    ['no name of an image to copy from', 'FROM a\nCOPY --from=B/C / /', {}, /line 2, COPY: no name of an image/],
    ['a base that is told to be given', 'FROM ${x:?say-x}', {}, /line 1, FROM: x: say-x/],
    ['many stages', 'FROM a\n'.repeat(201), {}, /line 201, FROM: there are more than 200 stages/],
    [
      'many images',
      `FROM a\n${Array.from({ length: 201 }, (_, i) => `COPY --from=i${i} / /`).join('\n')}`,
      {},
      /more than 200 images/,
    ],
    ['no base', 'FROM', {}, /needs a base/],
    ['more than a base', 'FROM a b', {}, /a base and "AS name"/],
  ])('refuses %s', (_, text, options, message) => {
    const attempt = () => plan(text, options)
    expect(attempt).toThrow(Failure)
    expect(attempt).toThrow(message)
  })
})
