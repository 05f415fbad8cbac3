import { afterAll, beforeAll, expect, jest, test } from '@jest/globals'
import type { Browser } from 'playwright-core'
import { stack, tenant } from '../support/berth.js'
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

test('a reload of the files page shows the directory that it was at, whatever its name', async () => {
  const t = await tenant()
  const made = await t.post('/v1/sandboxes?wait=running&timeoutMs=60s', {
    name: 'shelf',
    limits: { memoryBytes: '64m', diskBytes: '64m' },
    command: ['sh', '-c', 'mkdir -p "/srv/a & b?=ü" && echo hi > "/srv/a & b?=ü/note" && exec sleep infinity'],
  })
  expect(made.body).toMatchObject({ state: 'running' })
  await using one = await visit(browser)
  const { page } = one
  await signIn(page, url(), t.key)
  await page.goto(`${url()}/console/sandboxes/shelf/files`)
  await page.getByRole('button', { name: 'srv/' }).click()
  await page.getByRole('button', { name: 'a & b?=ü/' }).click()
  await page.getByRole('button', { name: 'note', exact: true }).waitFor()
  const at = page.url()
  expect(new URL(at).searchParams.get('path')).toBe('/srv/a & b?=ü')
  const answer = await page.reload()
  expect(answer?.status()).toBe(200)
  await page.getByRole('button', { name: 'note', exact: true }).waitFor()
  expect(page.url()).toBe(at)
  await page.goBack()
  await page.getByRole('button', { name: 'a & b?=ü/' }).waitFor()
  expect(one.troubles()).toEqual([])
})

test('the console takes any query; the API names one that it does not know', async () => {
  const plain = await (await fetch(`${url()}/console`)).text()
  for (const path of ['/console?a=b', '/console/sandboxes/x/files?path=%2Fsrv&path=%00&__proto__=1'])
    expect(await (await fetch(url() + path)).text()).toBe(plain)
  const refused = await fetch(`${url()}/openapi.json?a=b`)
  expect(refused.status).toBe(400)
  expect(await refused.json()).toMatchObject({ code: 'invalid_request', errors: [{ field: 'a' }] })
})
