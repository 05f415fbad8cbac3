import { AttemptId, mintId, NodeId, SandboxId } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { nodePath, outputPath, parsePath, sandboxActions, sandboxPath } from './wire.js'

const id = mintId('attempt', 1, Buffer.alloc(10, 7))
const box = SandboxId.parse(mintId('sandbox', 1, Buffer.alloc(10, 7)))
const node = NodeId.parse(mintId('node', 1, Buffer.alloc(10, 7)))
const digest = `sha256:${'a1'.repeat(32)}`
const random = fc.uint8Array({ minLength: 10, maxLength: 10 })
const word = fc.stringMatching(/^[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,40}$/)
const text = fc.string({ unit: 'grapheme', maxLength: 60 })

describe('a path', () => {
  test('of output that is written is read back', () => {
    const request = fc.record({
      attemptId: random.map((bytes) => AttemptId.parse(mintId('attempt', 1, bytes))),
      stream: fc.constantFrom('stdout' as const, 'stderr' as const),
      since: fc.integer({ min: 0, max: 999_999_999_999_999 }),
      follow: fc.boolean(),
    })
    fc.assert(
      fc.property(request, (one) =>
        expect(parsePath(outputPath(one))).toEqual({
          ...{ kind: 'attempt', subject: one.attemptId, action: 'output' },
          ...one,
        }),
      ),
    )
  })

  test('of a sandbox that is written is read back', () => {
    fc.assert(
      fc.property(
        random.map((bytes) => SandboxId.parse(mintId('sandbox', 1, bytes))),
        fc.constantFrom(...sandboxActions),
        fc.array(word, { maxLength: 5 }),
        fc.dictionary(text, text, { maxKeys: 5, noNullPrototype: true }),
        (subject, action, words, query) => {
          const parsed = parsePath(sandboxPath(subject, [action, ...words], query))
          expect(parsed).toMatchObject({ kind: 'sandbox', subject, action, rest: [action, ...words] })
          expect(Object.fromEntries(parsed?.kind === 'sandbox' ? parsed.query : [])).toEqual(query)
        },
      ),
    )
  })

  test('of a node that is written is read back, digests too', () => {
    const path = nodePath(node, ['images', digest], { image: [digest, digest], config: '{"a": 1}' })
    const parsed = parsePath(path)
    expect(parsed).toMatchObject({ kind: 'node', subject: node, action: 'images', rest: ['images', digest] })
    expect(parsed?.kind === 'node' ? [...parsed.query] : []).toEqual([
      ['image', digest],
      ['image', digest],
      ['config', '{"a": 1}'],
    ])
  })

  test('that is read is the one that is written: no two paths mean the same', () => {
    const parts = fc.constantFrom(
      ...['/', '//', '..', '.', '?', '&', '=', '%2f', '%00', '#', '+', ' ', 'a', 'x=1', 'é', '\0', '\r\n'],
      ...['/v1/sandboxes/', '/v1/attempts/', box, id, '/execs', '/files', '/output/stdout', '?since=0&follow=true'],
    )
    fc.assert(
      fc.property(
        fc.array(parts, { maxLength: 12 }).map((some) => `/v1/sandboxes/${box}/execs${some.join('')}`),
        (path) => {
          const parsed = parsePath(path)
          if (parsed?.kind !== 'sandbox') return
          const query = parsed.query.toString()
          expect(`/v1/sandboxes/${box}/${parsed.rest.join('/')}${query && `?${query}`}`).toBe(path)
          expect(parsed.rest.every((one) => /^[\w-][\w.-]*$/.test(one))).toBe(true)
        },
      ),
      { numRuns: 2000 },
    )
    fc.assert(
      fc.property(fc.array(parts, { maxLength: 12 }), (some) => {
        expect(() => parsePath(some.join(''))).not.toThrow()
      }),
      { numRuns: 2000 },
    )
  })

  test('leaves out what is undefined, and repeats lists', () => {
    const path = sandboxPath(box, ['files'], { path: '/a b', since: 0, follow: true, user: undefined, group: [1, 'x'] })
    expect(path).toBe(`/v1/sandboxes/${box}/files?path=%2Fa+b&since=0&follow=true&group=1&group=x`)
  })

  test.each(['', '.', '..', '.hidden', 'a/b', 'a?b', 'é', 'a\0', 'a:b', 'sha256:1', 'x'.repeat(129)])(
    'is not written with the word %j',
    (one) => {
      expect(() => sandboxPath(box, ['execs', one])).toThrow(RangeError)
    },
  )
})

test.each([
  '/',
  `/v1/attempts/${id}/output/stdout`,
  `/v1/attempts/${id}/output/stdin?since=0&follow=true`,
  `/v1/attempts/${id}/output/stdout?since=-1&follow=true`,
  `/v1/attempts/${id}/output/stdout?since=1e3&follow=true`,
  `/v1/attempts/${id}/output/stdout?since=00&follow=true`,
  `/v1/attempts/${id}/output/stdout?since=0&follow=1`,
  `/v1/attempts/${id}/output/stdout?follow=true&since=0`,
  `/v1/attempts/${id}/output/stdout?since=0&follow=true&x=1`,
  `/v1/attempts/${id}/output/stdout?since=0&follow=true#x`,
  `/v1/attempts/${id}/../${id}/output/stdout?since=0&follow=true`,
  `//v1/attempts/${id}/output/stdout?since=0&follow=true`,
  '/v1/attempts/../../etc/passwd/output/stdout?since=0&follow=true',
  `/v1/attempts/${id}%00/output/stdout?since=0&follow=true`,
  `/v1/attempts/job_${id.slice(4)}/output/stdout?since=0&follow=true`,
  `/v1/sandboxes/${box}`,
  `/v1/sandboxes/${box}/`,
  `/v1/sandboxes/${box}/output/stdout`,
  `/v1/sandboxes/${box}/nonsense`,
  `/v1/sandboxes/${box}/execs/`,
  `/v1/sandboxes/${box}/execs//x`,
  `/v1/sandboxes/${box}/execs/../files`,
  `/v1/sandboxes/${box}/execs/%2e%2e/files`,
  `/v1/sandboxes/${box}/execs/a%2fb`,
  `/v1/sandboxes/${box}/files?path=/etc/passwd`,
  `/v1/sandboxes/${box}/files?path=a%20b`,
  `/v1/sandboxes/${box}/files?`,
  `/v1/sandboxes/${box}/files#x`,
  `/v1/sandboxes/${id}/files`,
  `/v1/sandboxes/my-box/files`,
  `/v1/nodes/${node}`,
  `/v1/nodes/${node}/files`,
  `/v1/nodes/${box}/images`,
  `/v1/sandboxes/${node}/images`,
  `/v1/nodes/${node}/images/sha256:${'A1'.repeat(32)}`,
  `/v1/nodes/${node}/images/sha512:${'a1'.repeat(32)}`,
  `/v1/nodes/${node}/images/a:b`,
  `/v1/sandboxes/${box}/files?path=${'x'.repeat(30_000)}`,
])('refuses %s', (path) => expect(parsePath(path)).toBeUndefined())
