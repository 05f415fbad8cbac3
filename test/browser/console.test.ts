import { afterAll, beforeAll, expect, jest, test } from '@jest/globals'
import type { Browser } from 'playwright-core'
import { client, stack, tenant, until } from '../support/berth.js'
import { openBrowser, signIn, visit } from '../support/browser.js'

jest.setTimeout(240_000)

let browser: Browser
beforeAll(async () => {
  browser = await openBrowser()
}, 600_000)
afterAll(async () => {
  await browser?.close()
})

const url = () => stack().url

/** The browser's own line about a request that was refused, which no page can prevent. */
const refused = (status: number) => new RegExp(`^Failed to load resource: .* status of ${status} `)
/** The same about a stream that the server ended in the middle. */
const cut = /^Failed to load resource: net::ERR_INCOMPLETE_CHUNKED_ENCODING/

test('the page comes under a policy that allows nothing inline and nothing from elsewhere', async () => {
  const page = await fetch(`${url()}/console`)
  const policy = page.headers.get('content-security-policy') ?? ''
  expect(policy).toContain("default-src 'none'")
  expect(policy).not.toContain('unsafe')
  expect(page.headers.get('cache-control')).toBe('no-cache')
  const html = await page.text()
  const [, script = ''] = /src="(\/console\/assets\/[^"]+\.js)"/.exec(html) ?? []
  const asset = await fetch(url() + script, { headers: { 'accept-encoding': 'br' } })
  expect(asset.headers.get('cache-control')).toContain('immutable')
  expect(asset.headers.get('content-encoding')).toBe('br')
  const plain = await fetch(url() + script, { headers: { 'accept-encoding': 'identity' } })
  expect(plain.headers.get('content-encoding')).toBeNull()
  expect(await asset.text()).toBe(await plain.text())
  expect((await fetch(`${url()}/console/assets/none.js`)).status).toBe(404)
  expect(await (await fetch(`${url()}/console/sandboxes/x/terminal`)).text()).toBe(html)
  for (const path of ['/console/../package.json', '/console/..%2f..%2fpackage.json', '/console/index.html.br'])
    expect(await (await fetch(url() + path)).text()).not.toContain('"name"')
})

test('signing in keeps the key nowhere in the browser, and signing out in one tab ends the other', async () => {
  const t = await tenant()
  await using one = await visit(browser)
  const { page, context } = one
  await page.goto(`${url()}/console`)
  await page.getByLabel('API key').fill('brt_'.padEnd(47, 'x'))
  await page.getByRole('button', { name: 'Sign in' }).click()
  await page.getByText('the key is not one of ours').waitFor()
  await page.getByLabel('API key').fill(t.key)
  await page.getByRole('button', { name: 'Sign in' }).click()
  await page.getByRole('heading', { name: 'Sandboxes' }).waitFor()
  const kept = await page.evaluate<string>(
    'JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href, document.body.innerHTML])',
  )
  expect(kept).not.toContain(t.key)
  expect(kept).not.toContain('brs_')
  const [cookie, ...others] = await context.cookies()
  expect(others).toEqual([])
  expect(cookie).toMatchObject({ httpOnly: true, sameSite: 'Strict' })
  const other = await context.newPage()
  await other.goto(`${url()}/console/jobs`)
  await other.getByRole('heading', { name: 'Jobs' }).waitFor()
  await page.getByRole('button', { name: 'Sign out' }).click()
  await page.getByLabel('API key').waitFor()
  await other.getByLabel('API key').waitFor()
  await other.getByText('The session is over').waitFor()
  expect(one.troubles(refused(401), cut)).toEqual([])
})

test('the page of another session is left within a second of the key’s revocation', async () => {
  const t = await tenant()
  const made = await t.post('/v1/keys', { name: 'browser' })
  await using one = await visit(browser)
  await signIn(one.page, url(), made.body.secret)
  await t.delete(`/v1/keys/${made.body.id}`)
  await one.page.getByText('was revoked').waitFor()
  expect(one.troubles(refused(401), cut)).toEqual([])
})

test('a job made in the page runs, and its output shows as it comes', async () => {
  const t = await tenant()
  await using one = await visit(browser)
  const { page } = one
  await signIn(page, url(), t.key)
  await page.getByRole('link', { name: 'Jobs' }).click()
  await page.getByRole('button', { name: 'New job' }).click()
  await page.getByLabel('Name').fill('greeting')
  await page
    .getByLabel('Command')
    .fill(
      'echo first; while [ ! -e /tmp/go ]; do sleep 0.1; [ $((n += 1)) -gt 30 ] && break; done; echo last >&2; exit 3',
    )
  await page.getByLabel('Memory').fill('64m')
  await page.getByRole('button', { name: 'Create', exact: true }).click()
  await page.getByRole('heading', { name: /^greeting/ }).waitFor()
  await page.getByText('first', { exact: true }).waitFor()
  await page.getByText('last', { exact: true }).waitFor()
  await page.getByRole('heading', { name: 'greeting failed' }).waitFor()
  await page.getByText('exit nonzero').first().waitFor()
  await page.getByRole('link', { name: 'Jobs' }).first().click()
  await page.getByRole('row', { name: /greeting.*failed/ }).waitFor()
  expect(one.troubles()).toEqual([])
})

test('a batch is a job a line, and what is wrong with a form is said at its field', async () => {
  const t = await tenant()
  await using one = await visit(browser)
  const { page } = one
  await signIn(page, url(), t.key)
  await page.goto(`${url()}/console/jobs`)
  await page.getByRole('button', { name: 'New batch' }).click()
  await page.getByLabel('Commands').fill('true\n\ntrue\nfalse')
  await page.getByLabel('Memory').fill('lots')
  await page.getByRole('button', { name: 'Create', exact: true }).click()
  await page.getByText('must be a whole number of bytes').first().waitFor()
  await page.getByLabel('Memory').fill('32m')
  await page.getByRole('button', { name: 'Create', exact: true }).click()
  await page.getByRole('heading', { name: 'Jobs of a batch' }).waitFor()
  await until(
    'all rows have ended',
    async () => {
      const states = await page.getByRole('table').locator('.state').allTextContents()
      return states.length === 3 && states.every((state) => ['succeeded', 'failed'].includes(state)) ? true : undefined
    },
    60_000,
  )
  expect(one.troubles(refused(400))).toEqual([])
})

test('a key is made, shown once, works, and is revoked', async () => {
  const t = await tenant()
  await using one = await visit(browser)
  const { page } = one
  await signIn(page, url(), t.key)
  await page.getByRole('link', { name: 'Keys' }).click()
  await page.getByRole('button', { name: 'New key' }).click()
  await page.getByLabel('Name').fill('reader')
  for (const scope of ['jobs:write', 'sandboxes:write', 'keys:write']) await page.getByLabel(scope).uncheck()
  await page.getByRole('button', { name: 'Create', exact: true }).click()
  const secret = await page.getByLabel('Secret').inputValue()
  expect((await client(secret).get('/v1/jobs')).status).toBe(200)
  expect((await client(secret).post('/v1/jobs', { command: ['true'] })).status).toBe(403)
  await page.getByRole('button', { name: 'Done' }).click()
  expect(await page.locator('body').innerHTML()).not.toContain(secret)
  await page.getByRole('button', { name: 'Revoke reader' }).click()
  await page.getByRole('dialog').getByRole('button', { name: 'Revoke' }).click()
  await page.getByRole('row', { name: /reader.*revoked/ }).waitFor()
  expect((await client(secret).get('/v1/jobs')).status).toBe(401)
  expect(one.troubles()).toEqual([])
})

test('usage shows what is used of the quota', async () => {
  const t = await tenant({ cpus: 7 })
  await using one = await visit(browser)
  await signIn(one.page, url(), t.key)
  await one.page.getByRole('link', { name: 'Usage' }).click()
  await one.page.getByText('0 of 7').waitFor()
  expect(one.troubles()).toEqual([])
})
