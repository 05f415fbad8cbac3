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
    [
      'a stage that comes later is made earlier',
      'FROM a\nCOPY --from=late / /\nFROM b AS late',
      { target: '0' },
      ['1 late b [] []', '0 null a [1] []', 'b,a'],
    ],
    ['a base of the same name as its stage', 'FROM node AS node', {}, ['0 node node [] []', 'node']],
    ['stages by number', 'FROM a\nFROM b\nCOPY --from=0 / /', {}, ['0 null a [] []', '1 null b [0] []', 'a,b']],
    ['arguments in FROM', 'ARG V=3\nARG I=alpine:$V\nFROM $I', {}, ['0 null alpine:3 [] []', 'alpine:3']],
    ['given arguments', 'ARG V=3\nFROM alpine:${V}', { args: { V: '4' } }, ['0 null alpine:4 [] []', 'alpine:4']],
    ['mounts', 'FROM a\nRUN --mount=from=b,target=/x true', {}, ['0 null a [] [b]', 'a,b']],
  ])('%s', (_, text, options, expected) => expect(shown(text, options)).toEqual(expected))

  test.each<[string, string, Partial<PlanOptions>, RegExp]>([
    ['no FROM', 'ARG a', {}, /no FROM/],
    ['before FROM', 'RUN a\nFROM b', {}, /line 1, RUN: only ARG/],
    [
      'a circle',
      'FROM a AS x\nCOPY --from=y / /\nFROM b AS y\nCOPY --from=x / /',
      {},
      /line \d, COPY: stage . needs itself/,
    ],
    ['itself', 'FROM a AS x\nCOPY --from=x / /', {}, /line 2, COPY: stage x needs itself/],
    ['names twice', 'FROM a AS x\nFROM b AS X', {}, /line 2, FROM: there are two stages named x/],
    ['an unknown target', 'FROM a AS build', { target: 'biuld' }, /no stage "biuld".*did you mean build/],
    ['an unknown number', 'FROM a\nCOPY --from=3 / /', {}, /there is no stage 3/],
    ['an empty base', 'FROM $nothing', {}, /the base is empty/],
    ['no base', 'FROM', {}, /needs the name of a base/],
    ['more than a base', 'FROM a b', {}, /a base and "AS name"/],
  ])('refuses %s', (_, text, options, message) => {
    const attempt = () => plan(text, options)
    expect(attempt).toThrow(Failure)
    expect(attempt).toThrow(message)
  })
})
