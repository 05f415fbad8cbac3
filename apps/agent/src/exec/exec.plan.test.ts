import { ExecSpec, SandboxSpec } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { spawnFlags } from '../runtime/init-wire.js'
import { argumentBytes, execRequest, specDigest } from './exec.plan.js'

const accounts = {
  passwd: 'root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n',
  group: 'app:x:1000:\nvideo:x:44:app\naudio:x:29:\n',
}
const plan = (spec: object, sandbox: object = {}, image = {}) =>
  execRequest(
    ExecSpec.parse({ command: ['true'], ...spec }),
    { spec: SandboxSpec.parse(sandbox), image, hostname: 'box', ids: 65_536 },
    accounts,
  )

describe('an exec', () => {
  test('has what the sandbox has where it says nothing', () => {
    const image = { env: ['A=image', 'B=image'], workingDir: '/image', user: 'app' }
    const { env, cwd, uid, groups } = plan({}, { env: { B: 'sandbox' } }, image)
    expect({ env, cwd, uid, groups }).toEqual({
      env: [expect.stringMatching(/^PATH=/), 'HOME=/home/app', 'HOSTNAME=box', 'A=image', 'B=sandbox'],
      cwd: '/image',
      uid: 1000,
      groups: [44],
    })
    expect(plan({}, { user: 'root', workingDir: '/sandbox' }, image)).toMatchObject({ uid: 0, cwd: '/sandbox' })
  })

  test('what it says itself goes before that, and groups are added', () => {
    const sandbox = { env: { B: 'sandbox' }, workingDir: '/sandbox', user: 'root', groups: ['audio'] }
    const { env, cwd, uid, groups } = plan(
      { env: { B: 'exec' }, workingDir: '/exec', user: 'app', groups: ['7'] },
      sandbox,
    )
    expect(env).toContain('B=exec')
    expect({ cwd, uid, groups }).toEqual({ cwd: '/exec', uid: 1000, groups: [29, 7, 44] })
  })

  test('is confined as the sandbox is', () => {
    const request = plan({}, { capDrop: ['ALL'], capAdd: ['CHOWN'], noNewPrivileges: false, oomScoreAdj: 5 })
    expect(request).toMatchObject({ flags: 0, oomScoreAdj: 5, capabilities: { bounding: 1n, effective: 1n } })
    expect(plan({ user: 'app' }).capabilities.effective).toBe(0n)
    expect(plan({}).flags).toBe(spawnFlags.noNewPrivs)
  })

  test('on a terminal knows what kind it is, unless it says so itself', () => {
    const tty = { rows: 3, columns: 4 }
    const request = plan({ tty })
    expect(request).toMatchObject({ rows: 3, columns: 4, flags: spawnFlags.tty | spawnFlags.noNewPrivs })
    expect(request.env).toContain('TERM=xterm-256color')
    expect(plan({ tty, env: { TERM: 'dumb' } }).env).toContain('TERM=dumb')
    expect(plan({}).env.some((line) => line.startsWith('TERM='))).toBe(false)
  })

  test.each([{ stdin: true }, { input: 'aGk=' }])('with %j takes input', (spec) => {
    expect(plan(spec).flags & spawnFlags.stdin).toBe(spawnFlags.stdin)
  })
})

test('a request is the same in whatever order it is written, and another with another value, but for its id', () => {
  const digest = (spec: object) => specDigest(ExecSpec.parse({ command: ['a', 'b'], ...spec }))
  const one = digest({ env: { A: '1', B: '2' }, tty: { rows: 1, columns: 2 } })
  expect(digest({ id: 'x', tty: { columns: 2, rows: 1 }, env: { B: '2', A: '1' } })).toBe(one)
  expect(digest({ env: { A: '2', B: '1' }, tty: { rows: 1, columns: 2 } })).not.toBe(one)
  expect(digest({ command: ['b', 'a'] })).not.toBe(digest({}))
  expect(digest({ timeoutMs: '1s' })).toBe(digest({ timeoutMs: 1000 }))
})

test('arguments and environment count as what is kept of them', () => {
  expect(argumentBytes({ command: ['ab', 'c'], env: { D: 'ef' } })).toBe(6)
})
