import { describe, expect, test } from '@jest/globals'
import { committedConfig, EMPTY_DIFF_ID } from './commit.js'

const [below, layer] = [`sha256:${'a'.repeat(64)}`, `sha256:${'b'.repeat(64)}`]
const base = {
  architecture: 'amd64',
  os: 'linux',
  created: '2026-01-01T00:00:00Z',
  container: 'c0ffee',
  'moby.buildkit.cache.v0': 'x',
  config: {
    Env: ['PATH=/bin', 'A=1'],
    Entrypoint: ['/entry'],
    Cmd: ['run'],
    Labels: { one: '1' },
    ExposedPorts: { '80/tcp': {} },
    Healthcheck: { Test: ['CMD', 'true'] },
  },
  rootfs: { type: 'layers', diff_ids: [below] },
  history: [{ created_by: 'first', odd: true }],
}
const commit = (more: Partial<Parameters<typeof committedConfig>[1]> = {}, on: unknown = base): unknown =>
  JSON.parse(
    committedConfig(Buffer.from(JSON.stringify(on)), {
      ...{ diffId: layer, createdAt: '2026-11-27T00:00:00Z', author: '', comment: '', changes: {} },
      ...more,
    }).toString(),
  )

describe('the configuration of a commit', () => {
  test('is the one below with a layer and a step of history; what is not known here stays', () => {
    const { container: _, ...kept } = base
    expect(commit()).toEqual({
      ...kept,
      created: '2026-11-27T00:00:00Z',
      rootfs: { type: 'layers', diff_ids: [below, layer] },
      history: [...base.history, { created: '2026-11-27T00:00:00Z', created_by: 'commit' }],
    })
  })

  test('names its author and comment, and has no layer where nothing changed', () => {
    expect(commit({ author: 'me', comment: 'why', diffId: EMPTY_DIFF_ID })).toMatchObject({
      author: 'me',
      rootfs: { diff_ids: [below] },
      history: [{}, { author: 'me', comment: 'why', empty_layer: true }],
    })
  })

  test.each([
    [{ env: { B: '2', PATH: '/usr/bin' } }, { Env: ['PATH=/usr/bin', 'A=1', 'B=2'] }],
    [{ entrypoint: ['/other'] }, { Entrypoint: ['/other'], Cmd: undefined }],
    [
      { entrypoint: [], command: ['a', 'b'] },
      { Entrypoint: [], Cmd: ['a', 'b'] },
    ],
    [{ labels: { two: '2' } }, { Labels: { one: '1', two: '2' } }],
    [{ exposedPorts: ['53/udp', '443'] }, { ExposedPorts: { '80/tcp': {}, '443/tcp': {}, '53/udp': {} } }],
    [
      { volumes: ['/data'], workingDir: '/w', user: 'me:me' },
      { Volumes: { '/data': {} }, WorkingDir: '/w', User: 'me:me' },
    ],
    [{ stopSignal: 2 }, { StopSignal: 'SIGINT' }],
    [{ stopSignal: 40 }, { StopSignal: '40' }],
  ])('%j', (changes, wanted) => {
    const { config } = commit({ changes }) as { config: unknown }
    expect(config).toEqual({ ...base.config, ...wanted })
  })

  test('needs room for a layer', () => {
    const full = { ...base, rootfs: { type: 'layers', diff_ids: Array.from({ length: 500 }, () => below) } }
    expect(() => commit({}, full)).toThrow('500 layers')
    expect(commit({ diffId: EMPTY_DIFF_ID }, full)).toMatchObject({ config: base.config })
  })
})
