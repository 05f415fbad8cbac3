import { beforeAll, expect, test } from '@jest/globals'
import { client, operator, run, sh, type TestTenant, tenant } from '../support/berth.js'

let t: TestTenant
beforeAll(async () => {
  t = await tenant()
})

const job = (change: object) => ({ command: ['true'], ...change })

test.each<[string, unknown, string]>([
  ['no command', {}, 'command'],
  ['an empty command', job({ command: [] }), 'command'],
  ['a command that is text', job({ command: 'true' }), 'command'],
  ['an unknown field', job({ comand: ['x'] }), 'comand'],
  ['an unknown limit', job({ limits: { memory: 1 } }), 'limits.memory'],
  ['negative memory', job({ limits: { memoryBytes: -1 } }), 'limits.memoryBytes'],
  ['huge memory', job({ limits: { memoryBytes: '9999t' } }), 'limits.memoryBytes'],
  ['memory that is not a size', job({ limits: { memoryBytes: 'lots' } }), 'limits.memoryBytes'],
  ['memory beyond what a number holds', job({ limits: { memoryBytes: 1e300 } }), 'limits.memoryBytes'],
  ['no CPU at all', job({ limits: { cpus: 0 } }), 'limits.cpus'],
  ['too many CPUs', job({ limits: { cpus: 1e6 } }), 'limits.cpus'],
  ['part of a process', job({ limits: { pids: 2.5 } }), 'limits.pids'],
  ['too many processes', job({ limits: { pids: 10_000_000 } }), 'limits.pids'],
  ['a NUL in an argument', job({ command: ['echo', 'a\0b'] }), 'command[1]'],
  ['a NUL in a variable', job({ env: { A: 'x\0y' } }), 'env.A'],
  ['a newline in a variable name', job({ env: { 'A\nB': 'x' } }), 'env'],
  ['an equals sign in a variable name', job({ env: { 'A=B': 'x' } }), 'env'],
  [
    '10 MiB of environment',
    job({ env: Object.fromEntries(Array.from({ length: 100 }, (_, i) => [`V${i}`, 'x'.repeat(104_857)])) }),
    'env',
  ],
  ['a newline in a name', job({ name: 'a\nb' }), 'name'],
  ['a NUL in a name', job({ name: 'a\0b' }), 'name'],
  ['a path in a name', job({ name: '../../etc' }), 'name'],
  ['a relative directory', job({ workingDir: 'tmp' }), 'workingDir'],
  ['a NUL in a directory', job({ workingDir: '/tmp\0' }), 'workingDir'],
  ['a directory of 5,000 characters', job({ workingDir: `/${'a'.repeat(5000)}` }), 'workingDir'],
  ['a user that is an option', job({ user: '-u' }), 'user'],
  ['a host name with a dot-dot', job({ hostname: '..' }), 'hostname'],
  ['input that is not base64', job({ stdin: '***' }), 'stdin'],
  ['a timeout of nothing', job({ timeoutMs: 0 }), 'timeoutMs'],
  ['a timeout of a year', job({ timeoutMs: '365d' }), 'timeoutMs'],
  ['a priority of ten', job({ priority: 10 }), 'priority'],
  ['a hundred attempts', job({ retry: { maxAttempts: 100 } }), 'retry.maxAttempts'],
  ['a retry on nothing known', job({ retry: { on: ['rain'] } }), 'retry.on[0]'],
  ['a deadline that is no time', job({ deadline: 'tomorrow' }), 'deadline'],
  ['an image that is an option', job({ image: '--help' }), 'image'],
  ['a body that is a list', [], ''],
])('%s is refused, and the field is named', async (_, body, field) => {
  const answer = await t.post('/v1/jobs', body)
  expect(answer).toMatchObject({ status: 400, body: { code: 'invalid_request', status: 400 } })
  expect(answer.headers.get('content-type')).toContain('application/problem+json')
  expect(answer.body.errors.map((e: { field: string }) => e.field).join(' ')).toContain(field)
  expect(answer.body.requestId).toMatch(/^req_/)
})

test('a batch names the job that is wrong', async () => {
  const answer = await t.post('/v1/batches', { jobs: [job({}), job({}), job({ limits: { cpus: -1 } })] })
  expect(answer.body.errors[0].field).toBe('jobs[2].limits.cpus')
  const many = await t.post('/v1/batches', { jobs: Array.from({ length: 1001 }, () => job({})) })
  expect(many.body.errors[0].field).toBe('jobs')
})

test('an image that no node has is refused by name', async () => {
  const answer = await t.post('/v1/jobs', job({ image: 'no-such-image:1' }))
  expect(answer).toMatchObject({ status: 404, body: { code: 'image_not_found' } })
  expect(answer.body.detail).toContain('no-such-image')
})

test('an argument may hold newlines, quotes and any Unicode, and reaches the program as it is', async () => {
  const nasty = 'a\nb "c" \'d\' $(e) `f` \\ ; | & ☃ \u{1f4a5}'
  const done = await run(t, { command: ['printf', '%s', nasty] })
  expect(done.output?.stdout.data).toBe(nasty)
})

test('a body that is not JSON, not an object, or too large is told apart', async () => {
  const send = (body: string, type = 'application/json') =>
    t
      .raw('POST', '/v1/jobs', { body, headers: { 'content-type': type } })
      .then(async (r) => ({ status: r.status, body: await r.json() }))
  expect(await send('{"command":')).toMatchObject({ status: 400, body: { code: 'invalid_json' } })
  expect(await send('command=true', 'application/x-www-form-urlencoded')).toMatchObject({
    status: 415,
    body: { code: 'unsupported_media_type' },
  })
  expect(await send(`{"command":["${'x'.repeat(17 * 1024 * 1024)}"]}`)).toMatchObject({
    status: 413,
    body: { code: 'body_too_large' },
  })
})

test('what is not there is 404, and a wrong method 405', async () => {
  expect(await t.get('/v1/nothing')).toMatchObject({ status: 404, body: { code: 'route_not_found' } })
  expect(await t.delete('/v1/jobs')).toMatchObject({ status: 405, body: { code: 'method_not_allowed' } })
  expect(await t.get('/v1/jobs/job_00000000000000000000000000')).toMatchObject({
    status: 404,
    body: { code: 'job_not_found' },
  })
  expect(await t.get('/v1/jobs/..%2f..%2fetc')).toMatchObject({ status: 400, body: { code: 'invalid_request' } })
  expect(await t.get('/v1/jobs?limit=0')).toMatchObject({ status: 400 })
  expect(await t.get('/v1/jobs?limit=abc')).toMatchObject({ status: 400 })
  expect(await t.get('/v1/jobs?cursor=%00%ff')).toMatchObject({ status: 400 })
  expect(await t.get('/v1/jobs?colour=red')).toMatchObject({ status: 400 })
})

test('without a valid key there is nothing', async () => {
  expect(await client('').get('/v1/jobs')).toMatchObject({ status: 401, body: { code: 'unauthenticated' } })
  expect(await client(`brt_${'a'.repeat(43)}`).get('/v1/jobs')).toMatchObject({ status: 401 })
  expect(await client('x'.repeat(8000)).get('/v1/jobs')).toMatchObject({ status: 401 })
})

test('a key may be sent as X-API-Key', async () => {
  const response = await client('').raw('GET', '/v1/tenant', { headers: { authorization: '', 'x-api-key': t.key } })
  expect(response.status).toBe(200)
})

test('the OpenAPI document describes every route and its page is readable', async () => {
  const { body } = await t.get('/openapi.json')
  expect(body.openapi).toBe('3.1.0')
  const bodyOf = (path: string) => body.paths[path].post.requestBody.content['application/json'].schema
  expect(bodyOf('/v1/tenants').required).toEqual(['name'])
  expect(bodyOf('/v1/jobs').properties).toMatchObject({ command: { type: 'array' }, image: { default: 'debian' } })
  const page = await t.raw('GET', '/docs')
  expect(page.status).toBe(200)
  expect(page.headers.get('content-security-policy')).toContain("default-src 'self'")
})

test('an operator’s key does not act as a tenant, nor a tenant’s as an operator', async () => {
  expect(await operator().post('/v1/jobs', sh('true'))).toMatchObject({
    status: 403,
    body: { code: 'forbidden_scope' },
  })
  expect(await t.get('/v1/tenants')).toMatchObject({ status: 403, body: { code: 'forbidden_scope' } })
  expect(await t.post('/v1/nodes', { name: 'x' })).toMatchObject({ status: 403 })
  expect(await t.post('/v1/node/heartbeat', {})).toMatchObject({ status: 403 })
})
