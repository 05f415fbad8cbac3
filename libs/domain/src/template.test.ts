import { GivenJob, GivenSandbox, JobSpec, SandboxSpec, TemplateSpec } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { jobOf, over, sandboxOf } from './template.js'

const template = TemplateSpec.parse({
  image: 'python',
  entrypoint: ['python3'],
  command: ['-m', 'http.server'],
  env: { A: 'template', B: 'template' },
  labels: { team: 'web', tier: 'front' },
  limits: { memoryBytes: '256m', cpus: 2, ulimits: { nofile: { soft: 10, hard: 20 }, core: { soft: 0, hard: 0 } } },
  clocks: { idleTimeoutMs: '5m', deleteAfterMs: null },
  tmpfs: [{ path: '/scratch' }],
  user: 'app',
  tty: { rows: 24, columns: 80 },
  readOnlyRootfs: true,
  stopSignal: 'INT',
})
const sandbox = (fields: object) =>
  SandboxSpec.parse(sandboxOf(template, GivenSandbox.parse({ template: 'web', ...fields }), 'web@3'))
const job = (fields: object) => JobSpec.parse(jobOf(template, GivenJob.parse({ template: 'web', ...fields }), 'web@3'))

describe('a sandbox of a template', () => {
  test('is as the template says, and by default where that says nothing', () => {
    expect(sandbox({})).toEqual(SandboxSpec.parse({ ...template, template: 'web@3' }))
    expect(sandbox({}).limits).toMatchObject({ memoryBytes: 256 * 1024 ** 2, cpus: 2, pids: 256 })
    expect(sandbox({ name: 'mine' })).toMatchObject({ name: 'mine', template: 'web@3', stopSignal: 2 })
  })

  test.each<[string, object, object]>([
    ['an image', { image: 'debian' }, { image: 'debian', entrypoint: ['python3'], command: ['-m', 'http.server'] }],
    ['a command, whole', { command: ['app.py'] }, { entrypoint: ['python3'], command: ['app.py'] }],
    ['no command', { command: [] }, { entrypoint: ['python3'], command: [] }],
    [
      'an entrypoint with a command',
      { entrypoint: ['sh'], command: ['-c', 'x'] },
      { entrypoint: ['sh'], command: ['-c', 'x'] },
    ],
    ['a variable', { env: { B: 'mine', C: 'mine' } }, { env: { A: 'template', B: 'mine', C: 'mine' } }],
    ['a label', { labels: { tier: 'back' } }, { labels: { team: 'web', tier: 'back' } }],
    ['a list, whole', { tmpfs: [] }, { tmpfs: [] }],
    ['a flag that is off', { readOnlyRootfs: false }, { readOnlyRootfs: false }],
    ['null', { tty: null, clocks: { idleTimeoutMs: null } }, { tty: null, clocks: { idleTimeoutMs: null } }],
  ])('has what is given over it: %s', (_, given, expected) => expect(sandbox(given)).toMatchObject(expected))

  test('has limits and clocks merged field by field', () => {
    const { limits, clocks } = sandbox({
      limits: { memoryBytes: '1g', ulimits: { core: { soft: 5, hard: 5 } } },
      clocks: { maxLifetimeMs: '1h' },
    })
    expect(limits).toMatchObject({ memoryBytes: 1024 ** 3, cpus: 2 })
    expect(limits.ulimits).toEqual({ nofile: { soft: 10, hard: 20 }, core: { soft: 5, hard: 5 } })
    expect(clocks).toMatchObject({ idleTimeoutMs: 300_000, maxLifetimeMs: 3_600_000 })
  })

  test('with another entrypoint alone has no command of the template', () => {
    expect(sandbox({ entrypoint: ['sh'] })).not.toHaveProperty('command')
  })
})

describe('a job of a template', () => {
  test('runs its entrypoint with its command, or what is given instead', () => {
    expect(job({})).toMatchObject({
      ...{ image: 'python', command: ['python3', '-m', 'http.server'], user: 'app', template: 'web@3' },
      ...{ env: { A: 'template', B: 'template' }, limits: { memoryBytes: 256 * 1024 ** 2, cpus: 2 } },
    })
    expect(job({ command: ['true'], limits: { cpus: 1 }, env: { A: 'mine' } })).toMatchObject({
      ...{ command: ['true'], env: { A: 'mine', B: 'template' }, limits: { memoryBytes: 256 * 1024 ** 2, cpus: 1 } },
    })
  })

  test('of one without a command needs one', () => {
    const bare = jobOf(TemplateSpec.parse({ image: 'python' }), {}, 'web@1')
    expect(JobSpec.safeParse(bare).error?.issues[0]?.path).toEqual(['command'])
  })
})

test('what is given of a spec, whole, parses to the spec, with or without what is default', () => {
  for (const fields of [
    {},
    { limits: { memoryBytes: '64m' }, logs: { maxFiles: 2 }, stopGraceMs: '1s', capAdd: ['net_raw'] },
  ])
    expect(SandboxSpec.parse(GivenSandbox.parse(fields))).toEqual(SandboxSpec.parse(fields))
  const fields = { command: ['true'], retry: { maxAttempts: 2 }, limits: { outputBytes: '1m' }, timeoutMs: '1m' }
  expect(JobSpec.parse(GivenJob.parse(fields))).toEqual(JobSpec.parse(fields))
  expect(GivenSandbox.parse({})).toEqual({})
})

test('a template is checked as a sandbox of it would be', () => {
  const { error } = TemplateSpec.safeParse({ image: 'python', limits: { memoryReservationBytes: '1g' } })
  expect(error?.issues[0]).toMatchObject({ path: ['limits', 'memoryReservationBytes'] })
  expect(TemplateSpec.safeParse({ command: ['true'] }).error?.issues[0]?.path).toEqual(['image'])
  for (const field of ['name', 'template', 'privileged', 'init'])
    expect(TemplateSpec.safeParse({ image: 'python', [field]: 'x' }).success).toBe(false)
})

test('law: nothing given changes nothing, what is given is all there, and no name is special', () => {
  const value = fc.letrec((tie) => ({
    any: fc.oneof(fc.integer(), fc.string(), fc.constant(null), fc.array(fc.integer()), tie('record')),
    record: fc.dictionary(fc.oneof(fc.string(), fc.constantFrom('__proto__', 'constructor')), tie('any'), {
      maxKeys: 4,
    }),
  }))
  fc.assert(
    fc.property(value.record, value.record, (below, above) => {
      expect(over(below, undefined)).toEqual(below)
      expect(over(below, {})).toEqual(below)
      expect(over({}, above)).toEqual(above)
      expect(over(over(below, above), above)).toEqual(over(below, above))
    }),
  )
  expect(over({}, JSON.parse('{"__proto__":{"polluted":1}}'))).not.toHaveProperty('polluted')
})
