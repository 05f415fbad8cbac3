import { expect, test } from '@jest/globals'
import { familiar, parseReference } from './reference.js'

const digest = `sha256:${'a'.repeat(64)}`

test.each([
  ['python', 'docker.io', 'library/python', 'latest', 'python:latest'],
  ['python:3.11-slim', 'docker.io', 'library/python', '3.11-slim', 'python:3.11-slim'],
  ['docker.io/library/python', 'docker.io', 'library/python', 'latest', 'python:latest'],
  ['team/app:1', 'docker.io', 'team/app', '1', 'team/app:1'],
  ['localhost/app', 'localhost', 'app', 'latest', 'localhost/app:latest'],
  ['localhost:5000/a/b:x', 'localhost:5000', 'a/b', 'x', 'localhost:5000/a/b:x'],
  ['ghcr.io/o/r', 'ghcr.io', 'o/r', 'latest', 'ghcr.io/o/r:latest'],
  ['GHCR.io/o/r', 'ghcr.io', 'o/r', 'latest', 'ghcr.io/o/r:latest'],
  ['Docker.IO/python', 'docker.io', 'library/python', 'latest', 'python:latest'],
  ['index.docker.io/python:3', 'docker.io', 'library/python', '3', 'python:3'],
  ['index.docker.io/team/app', 'docker.io', 'team/app', 'latest', 'team/app:latest'],
  ['LOCALHOST/app', 'localhost', 'app', 'latest', 'localhost/app:latest'],
  ['[::1]/app', '[::1]', 'app', 'latest', '[::1]/app:latest'],
  ['[FE80::1]:5000/a/b:x', '[fe80::1]:5000', 'a/b', 'x', '[fe80::1]:5000/a/b:x'],
  [`[::1]:5000/app@${digest}`, '[::1]:5000', 'app', undefined, `[::1]:5000/app@${digest}`],
  [`python@${digest}`, 'docker.io', 'library/python', undefined, `python@${digest}`],
  [`python:3@${digest}`, 'docker.io', 'library/python', '3', `python:3@${digest}`],
])('%s', (text, registry, repository, tag, short) => {
  const reference = parseReference(text)
  expect(reference).toMatchObject({ registry, repository, tag })
  expect(familiar(reference)).toBe(short)
  expect(parseReference(familiar(reference))).toEqual(reference)
})

test.each(['', 'Python', 'a//b', '/a', 'a/', 'a:', 'a@b', 'a@sha256:12', '-a', 'a b', '../a', 'a@x@y', 'a:b:c', 'é'])(
  '%p is no reference, and the message says so',
  (text) => expect(() => parseReference(text)).toThrow(JSON.stringify(text)),
)

test.each(['[::1]', '[::1]:5000', '[::1/app', '::1/app', '[host]/app', '[::1]x/app', '[::1]:/app', 'Team/app'])(
  '%p names no image',
  (text) => expect(() => parseReference(text)).toThrow(JSON.stringify(text)),
)

test.each([digest, 'a'.repeat(64)])('%p is an id, and no name', (text) =>
  expect(() => parseReference(text)).toThrow('it is an id; a name is needed'),
)
