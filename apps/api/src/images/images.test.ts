import type { Image } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { missingFrom } from './images.service.js'

const digest = `sha256:${'a'.repeat(64)}`
const image = (reference: string): Image => ({ reference, digest, sizeBytes: 1, nodes: 1 })
const known = [image('python:latest'), image('node:20'), image('registry.local:5000/team/app:latest')]

test.each(['python', 'python:latest', 'node:20', digest, `python@${digest}`, 'registry.local:5000/team/app'])(
  '%s is there',
  (reference) => expect(missingFrom(known, [reference])).toBeUndefined(),
)

test.each(['node', 'node:latest', 'python:3', 'app', `sha256:${'b'.repeat(64)}`, 'registry.local'])(
  '%s is not',
  (reference) => expect(missingFrom(known, ['python', reference])).toBe(reference),
)

test('with no image known at all nothing is refused: jobs wait for a node', () => {
  expect(missingFrom([], ['python'])).toBeUndefined()
})
