import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { RecordLog } from './record-log.js'

let directory: string
let path: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-records-'))
  path = join(directory, 'records')
})
afterEach(() => rmSync(directory, { recursive: true }))

const contents = (log: RecordLog) => Object.fromEntries([...log.keys()].map((key) => [key, log.get(key)]))

/** Reads it as a new process would. */
function reopened<T>(look: (log: RecordLog) => T): T {
  const log = RecordLog.open(path)
  try {
    return look(log)
  } finally {
    log.close()
  }
}

test('the last record of a key counts, and a removed one is gone, here and after a restart', () => {
  const log = RecordLog.open(path)
  log.set('a', { n: 1, text: 'zwölf\nlines' })
  log.set('b', { n: 2 })
  log.set('a', { n: 3 })
  log.delete('b')
  log.delete('never')
  log.set('c', { n: 4 })
  log.close()
  reopened((again) => {
    expect(contents(again)).toEqual({ a: { n: 3 }, c: { n: 4 } })
    expect([...again.keys()]).toEqual(['a', 'c'])
    expect(again.has('b')).toBe(false)
    expect(again.get('b')).toBeUndefined()
    expect(again.bytes).toBe(again.bytesOf('a') + again.bytesOf('c'))
  })
})

test('a line torn by a kill did not happen, wherever it was torn, and the next one is whole', () => {
  const log = RecordLog.open(path)
  log.set('a', { text: 'ä' })
  const { size } = statSync(path)
  log.set('b', { text: 'ü' })
  log.close()
  const whole = readFileSync(path)
  for (let cut = size; cut < whole.length; cut++) {
    writeFileSync(path, whole.subarray(0, cut))
    reopened((torn) => {
      expect(contents(torn)).toEqual({ a: { text: 'ä' } })
      torn.set('c', { text: 'after' })
    })
    expect(reopened(contents)).toEqual({ a: { text: 'ä' }, c: { text: 'after' } })
  }
})

test('a file that holds something else is not guessed at', () => {
  writeFileSync(path, '{"key":"a","value":{}}\nnonsense\n')
  expect(() => RecordLog.open(path)).toThrow(/open .*records/)
  writeFileSync(path, '{"name":"a"}\n')
  expect(() => RecordLog.open(path)).toThrow('a line is not a record')
})

test('ten thousand records that come and go leave a small file, and the rest as it was', () => {
  const log = RecordLog.open(path)
  log.set('kept', { text: 'x'.repeat(1000) })
  for (let i = 0; i < 10_000; i++) {
    log.set(`key${i}`, { i, text: 'y'.repeat(100) })
    if (i >= 50) log.delete(`key${i - 50}`)
  }
  expect(statSync(path).size).toBeLessThan(400 * 1024)
  log.close()
  const left = reopened(contents)
  expect(Object.keys(left)).toHaveLength(51)
  expect(left.kept).toEqual({ text: 'x'.repeat(1000) })
  expect(left.key9999).toMatchObject({ i: 9999 })
})

test('whatever is set and removed, with restarts and torn ends in between, a map would hold the same', () => {
  const key = fc.constantFrom('a', 'b', 'c', 'd')
  const step = fc.oneof(
    fc.record({ do: fc.constant('set' as const), key, value: fc.record({ s: fc.string(), n: fc.integer() }) }),
    fc.record({ do: fc.constant('fill' as const), key, value: fc.constant({ s: 'f'.repeat(90_000), n: 0 }) }),
    fc.record({ do: fc.constant('delete' as const), key }),
    fc.record({ do: fc.constant('restart' as const), torn: fc.boolean() }),
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      rmSync(path, { force: true })
      let log = RecordLog.open(path)
      const model = new Map<string, object>()
      for (const s of steps) {
        if (s.do === 'restart') {
          const { size } = statSync(path)
          if (s.torn) log.set('torn', { lost: true })
          const after = statSync(path).size
          log.close()
          // Where it was written anew meanwhile there is no telling where the last line began.
          if (s.torn && after > size) truncateSync(path, after - 1)
          log = RecordLog.open(path)
          if (s.torn) log.delete('torn')
        } else if (s.do === 'delete') {
          log.delete(s.key)
          model.delete(s.key)
        } else {
          log.set(s.key, s.value)
          model.set(s.key, s.value)
        }
        expect(contents(log)).toEqual(Object.fromEntries(model))
      }
      log.close()
    }),
    { numRuns: 100 },
  )
})
