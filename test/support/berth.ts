import { readFileSync } from 'node:fs'
import type { Job, Quota } from '@berth/contracts'
import { afterAll } from '@jest/globals'

/** What test/support/setup.ts wrote about the product that all system tests of a worker share. */
export interface Stack {
  readonly url: string
  readonly operatorKey: string
  readonly dataDir: string
  readonly cgroupParent: string
  /** Ports on loopback of registries that the operator allows by http; nothing listens there before a test does. */
  readonly registries: { readonly open: number; readonly locked: number }
}

export function stack(): Stack {
  const files = process.env.BERTH_TEST_STACK?.split(':') ?? []
  const file = files[Number(process.env.JEST_WORKER_ID ?? 1) - 1]
  if (!file) throw new Error('system tests run through `./berth test`, which starts the product')
  return JSON.parse(readFileSync(file, 'utf8'))
}

export interface Answer {
  readonly status: number
  readonly headers: Headers
  // Tests read fields of JSON they expect; a wrong shape fails the expectation that follows.
  // biome-ignore lint/suspicious/noExplicitAny: answers of every shape, checked by each test
  readonly body: any
}

export interface Api {
  readonly key: string
  get(path: string, headers?: Record<string, string>): Promise<Answer>
  post(path: string, body?: unknown, headers?: Record<string, string>): Promise<Answer>
  patch(path: string, body: unknown): Promise<Answer>
  delete(path: string): Promise<Answer>
  raw(method: string, path: string, init?: RequestInit): Promise<Response>
}

/** A client of the public API as any service would write one: fetch, a key, JSON. */
export function client(key: string): Api {
  const raw = (method: string, path: string, init: RequestInit = {}) =>
    fetch(stack().url + path, {
      ...init,
      method,
      headers: { authorization: `Bearer ${key}`, ...Object.fromEntries(new Headers(init.headers)) },
    })
  const call = async (method: string, path: string, body?: unknown, headers: Record<string, string> = {}) => {
    const response = await raw(
      method,
      path,
      body === undefined
        ? { headers }
        : { body: JSON.stringify(body), headers: { 'content-type': 'application/json', ...headers } },
    )
    const text = await response.text()
    const json = /json/.test(response.headers.get('content-type') ?? '')
    return { status: response.status, headers: response.headers, body: json ? JSON.parse(text) : text }
  }
  return {
    key,
    raw,
    get: (path, headers) => call('GET', path, undefined, headers),
    post: (path, body, headers) => call('POST', path, body, headers),
    patch: (path, body) => call('PATCH', path, body),
    delete: (path) => call('DELETE', path),
  }
}

export const operator = (): Api => client(stack().operatorKey)

let counter = 0
const unique = () => `t${process.pid}-${Date.now().toString(36)}-${counter++}`

export interface TestTenant extends Api {
  readonly id: string
}

const tenants: TestTenant[] = []

// The node that all test files share has room for so many sandboxes: a file gives back what its tenants hold.
afterAll(async () => {
  await Promise.all(tenants.splice(0).map(emptied))
}, 120_000)

async function emptied(api: TestTenant): Promise<void> {
  // A tenant that the test ended or suspended may not list.
  const { items = [] } = await until('sandboxes are listed', async () => {
    const answer = await api.get('/v1/sandboxes?limit=200')
    return answer.status < 500 ? answer.body : undefined
  })
  await Promise.all(
    items.map(async ({ id }: { id: string }) => {
      await api.delete(`/v1/sandboxes/${id}?force=true`)
      // No longer than that: the node of a test may be one that obeys nothing.
      await api.get(`/v1/sandboxes/${id}?wait=deleted&timeoutMs=20s`)
    }),
  )
}

/** A tenant of its own for one test, with a key that holds every scope; its sandboxes end with the test's file. */
export async function tenant(quota: Partial<Quota> = {}): Promise<TestTenant> {
  const made = await operator().post('/v1/tenants', { name: unique(), quota })
  if (made.status !== 201) throw new Error(`tenant: ${JSON.stringify(made.body)}`)
  const key = await operator().post(`/v1/tenants/${made.body.id}/keys`, { name: 'test' })
  if (key.status !== 201) throw new Error(`key: ${JSON.stringify(key.body)}`)
  const api = { ...client(key.body.secret), id: made.body.id }
  tenants.push(api)
  return api
}

/** Waits for a job's end, however long its own timeout lets it run. */
export async function finished(api: Api, jobId: string): Promise<Job> {
  for (;;) {
    const answer = await api.get(`/v1/jobs/${jobId}?wait=finished&timeoutMs=30s&output=true`)
    if (answer.status !== 200) throw new Error(`job ${jobId}: ${JSON.stringify(answer.body)}`)
    if (answer.body.finishedAt !== null) return answer.body
  }
}

export type Spec = Record<string, unknown> & { readonly command: readonly string[] }

/** Submits a job and answers with its id. */
export async function submit(api: Api, spec: Spec): Promise<string> {
  const made = await api.post('/v1/jobs', spec)
  if (made.status !== 201) throw new Error(`submit: ${JSON.stringify(made.body)}`)
  return made.body.id
}

/** Runs a job to its end. */
export const run = async (api: Api, spec: Spec): Promise<Job> => finished(api, await submit(api, spec))

export const sh = (script: string): Spec => ({ command: ['sh', '-c', script] })
export const python = (script: string): Spec => ({ image: 'python', command: ['python3', '-c', script] })

/** A job's stdout as text; fails on a job that has none. */
export function stdout(job: Job): string {
  if (!job.output) throw new Error(`job ${job.id} ${job.state} has no output: ${JSON.stringify(job.reason)}`)
  const { data, encoding } = job.output.stdout
  return Buffer.from(data, encoding).toString('utf8')
}

/** Polls until `probe` gives something, and on time-out says what it saw last. */
export async function until<T>(what: string, probe: () => Promise<T | undefined>, timeoutMs = 20_000): Promise<T> {
  const end = Date.now() + timeoutMs
  let last: unknown
  while (Date.now() < end) {
    try {
      const found = await probe()
      if (found !== undefined) return found
      last = 'nothing yet'
    } catch (error) {
      last = error
    }
    await new Promise((wake) => setTimeout(wake, 50))
  }
  throw new Error(`${what}: not within ${timeoutMs} ms; last seen: ${String(last)}`)
}
