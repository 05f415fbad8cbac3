import type { ImagePolicy } from '@berth/contracts'
import { beforeEach, expect, test } from '@jest/globals'
import type { Logger } from '../tokens.js'
import { KnownVulnerabilities } from './known-vulnerabilities.js'
import type { Answers, Kind } from './questions.js'
import type { ScanThread } from './scan-thread.js'

/** A file whose every state is a number, and what has been done with it. */
class File {
  state: number | undefined = 1
  isBroken = false
  readonly closed: string[] = []
  readonly opened: TestDatabase[] = []

  known(path: string | null = '/srv/osv'): KnownVulnerabilities {
    return new KnownVulnerabilities({
      path: path ?? undefined,
      signature: async () => this.state?.toString(),
      open: async () => {
        if (this.isBroken) throw new Error('it is broken')
        const database = new TestDatabase(String(this.state), this.closed)
        this.opened.push(database)
        return database
      },
      clock: { now: () => new Date(0) },
      log: { info: () => undefined, error: () => undefined } as unknown as Logger,
    })
  }
}

class TestDatabase implements ScanThread {
  ended = false
  readonly facts
  constructor(
    version: string,
    private readonly closed: string[],
  ) {
    this.facts = { version, records: 1, skipped: 0, problems: [] }
  }
  async ask<K extends Kind>(): Promise<Answers[K]> {
    if (this.ended) throw new Error('it has ended')
    return { mode: 'off', allowed: true, against: [] } as unknown as Answers[K]
  }
  close(): void {
    this.closed.push(this.facts.version)
  }
}

const policy: ImagePolicy = { mode: 'off', severity: 'high', fixableOnly: false, exempt: [] }
const nothing = { digest: 'sha256:x', packed: new Uint8Array(), policy }
let file: File
beforeEach(() => {
  file = new File()
})
const version = async (known: KnownVulnerabilities) => (await known.ask('verdict', nothing)).database.version

test('a new state takes the place of the old one, which is closed; the same state is not read again', async () => {
  const known = file.known()
  await known.check()
  await known.check()
  expect([await version(known), file.opened.length]).toEqual(['1', 1])
  file.state = 2
  await known.check()
  expect([await version(known), file.closed]).toEqual(['2', ['1']])
})

test('the old state holds while the new one cannot be used, or is gone', async () => {
  const known = file.known()
  await known.check()
  file.state = 2
  file.isBroken = true
  await known.check()
  expect(await version(known)).toBe('1')
  file.state = undefined
  await known.check()
  expect([await version(known), file.closed]).toEqual(['1', []])
})

test('who asks before the first state is there waits for it', async () => {
  const known = file.known()
  const asked = version(known)
  await known.check()
  expect(await asked).toBe('1')
})

test.each<[string, (file: File) => KnownVulnerabilities, RegExp]>([
  ['given', (file) => file.known(null), /has given no database/],
  [
    'to be used',
    (file) => {
      file.isBroken = true
      return file.known()
    },
    /it is broken/,
  ],
  [
    'there',
    (file) => {
      file.state = undefined
      return file.known()
    },
    /there is no \/srv\/osv/,
  ],
])('without one that is %s nothing is known', async (_, make, message) => {
  const known = make(file)
  await known.check()
  await expect(known.ask('verdict', nothing)).rejects.toMatchObject({ code: 'scan_unavailable' })
  await expect(known.database()).rejects.toThrow(message)
})

test('one that has ended by itself is read again', async () => {
  const known = file.known()
  await known.check()
  const [first] = file.opened
  if (first) first.ended = true
  await expect(known.ask('verdict', nothing)).rejects.toThrow('it has ended')
  await known.check()
  expect([await version(known), file.opened.length]).toEqual(['1', 2])
})

test('after its end there is nothing, and nothing is read', async () => {
  const known = file.known()
  await known.check()
  known.close()
  await known.check()
  await expect(known.database()).rejects.toThrow('the API ends')
  expect([file.opened.length, file.closed]).toEqual([1, ['1']])
})
