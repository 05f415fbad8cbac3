import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { createLogger, type LogLevel } from './log.js'

function captured(level: LogLevel = 'info') {
  const lines: string[] = []
  const log = createLogger({ name: 'agent', level, destination: { write: (line: string) => void lines.push(line) } })
  return { log, lines, last: () => JSON.parse(lines.at(-1) ?? 'null') }
}

describe('createLogger', () => {
  test('writes an event name and its fields as one line', () => {
    const { log, lines, last } = captured()
    log.info({ sandbox: 'att_1', ms: 12 }, 'sandbox.started')
    expect(lines).toHaveLength(1)
    expect(last()).toMatchObject({ level: 'info', name: 'agent', event: 'sandbox.started', sandbox: 'att_1', ms: 12 })
    expect(new Date(last().time).toISOString()).toBe(last().time)
  })

  test('leaves out what is below its level', () => {
    const { log, lines } = captured('warn')
    log.info({}, 'quiet')
    log.warn({}, 'loud')
    expect(lines).toHaveLength(1)
  })

  test.each([
    [{ password: 'hunter2' }],
    [{ queue: { redisUrl: 'redis://x', password: 'hunter2' } }],
    [{ req: { headers: { authorization: 'Bearer hunter2' } } }],
    [{ req: { headers: { 'x-api-key': 'hunter2' } } }],
    [{ headers: { 'berth-build-secret': 'npm=hunter2' } }],
    [{ res: { headers: { 'set-cookie': 'hunter2' } } }],
    [{ headers: { cookie: 'hunter2' } }],
    [{ node: { token: 'hunter2' } }],
    [{ key: { secret: 'hunter2' } }],
    [{ secret: 'hunter2' }],
    [{ databaseUrl: 'postgresql://u:hunter2@h/db' }],
    [{ Authorization: 'Bearer hunter2' }],
    [{ nodes: [{ id: 1, at: { queue: { deep: { password: 'hunter2' } } } }] }],
    [{ err: Object.assign(new Error('refused'), { options: { password: 'hunter2' } }) }],
  ])('hides secrets: %j', (fields) => {
    const { log, lines } = captured()
    log.info(fields, 'x')
    expect(lines.join()).not.toContain('hunter2')
    expect(lines.join()).toContain('[redacted]')
  })

  test('hides secrets bound to a child', () => {
    const { log, lines, last } = captured()
    const child = log.child({ queue: { password: 'hunter2' } })
    child.info({}, 'x')
    child.child({ secret: 'hunter2', node: 'nod_1' }).info({}, 'x')
    expect(lines.join()).not.toContain('hunter2')
    expect(last()).toMatchObject({ queue: { password: '[redacted]' }, node: 'nod_1' })
  })

  test('tells the whole chain of causes of an error', () => {
    const { log, last } = captured()
    log.error({ err: new Error('placing failed', { cause: new Error('socket closed') }) }, 'place.failed')
    expect(last().err.message).toContain('socket closed')
    expect(last().err.stack).toContain('placing failed')
  })

  test('logs what has no secret as it is, cycles and classes included', () => {
    const { log, last } = captured()
    const cycle: { self?: unknown } = {}
    cycle.self = cycle
    log.info({ at: new Date(0), list: [1, { a: null }], url: new URL('http://h/'), cycle }, 'x')
    expect(last()).toMatchObject({ at: '1970-01-01T00:00:00.000Z', list: [1, { a: null }], url: 'http://h/' })
  })

  test('a line is in the file by the time the call returns, so a kill right after it loses nothing', () => {
    const dir = mkdtempSync(join(tmpdir(), 'berth-log-'))
    try {
      const file = join(dir, 'log')
      createLogger({ name: 'agent', level: 'info', destination: file }).fatal({}, 'last.words')
      createLogger({ name: 'agent', level: 'info', destination: file }).info({}, 'next.start')
      expect(readFileSync(file, 'utf8').trim().split('\n')).toHaveLength(2)
    } finally {
      rmSync(dir, { recursive: true })
    }
  })
})
