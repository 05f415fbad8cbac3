// Every page, light and dark, wide and narrow: nothing sticks out, axe-core finds no barrier, and nothing is refused by
// the page's policy. BERTH_SCREENSHOTS=directory keeps pictures.
import { afterAll, beforeAll, expect, jest, test } from '@jest/globals'
import type { Browser, Page } from 'playwright-core'
import { run, sh, stack, type TestTenant, tenant, until } from '../support/berth.js'
import { barriers, openBrowser, overflow, picture, screen, signIn, visit } from '../support/browser.js'

jest.setTimeout(300_000)

let browser: Browser
let t: TestTenant
let newcomer: TestTenant
let sandboxId: string
let endedId: string
let jobId: string
beforeAll(async () => {
  browser = await openBrowser()
  t = await tenant()
  newcomer = await tenant()
  const tree = 'mkdir -p /srv/work/empty; echo first line >/srv/work/notes.txt; ln -s notes.txt /srv/work/latest'
  const long = `/srv/work/${'a-rather-long-name-of-a-file-'.repeat(4)}.tar.gz`
  const script = `${tree}; echo x >${long}; echo ready; while :; do echo tick; echo oops >&2; sleep 1; done`
  const limits = { memoryBytes: '256m', cpuset: '0', cpuShares: 512 }
  const spec = { name: 'web', labels: { team: 'shop' }, env: { MODE: 'demo' }, limits, command: ['sh', '-c', script] }
  const made = await t.post('/v1/sandboxes?wait=running&timeoutMs=60s', spec)
  if (made.body.state !== 'running') throw new Error(`sandbox: ${JSON.stringify(made.body)}`)
  sandboxId = made.body.id
  const ended = await t.post('/v1/sandboxes?wait=stopped&timeoutMs=60s', { name: 'worker', ...sh('exit 3') })
  endedId = ended.body.id
  jobId = (await run(t, { name: 'report', ...sh('echo all is well; echo but this >&2; exit 3') })).id
  await t.post('/v1/keys', { name: 'reader', scopes: ['jobs:read'] })
}, 600_000)
afterAll(async () => {
  await browser?.close()
})

/** Where each page is, and what shows that it is there. */
const pages: readonly {
  readonly name: string
  readonly path: () => string
  readonly there: (page: Page) => Promise<unknown>
}[] = [
  { name: 'sandboxes', path: () => '/sandboxes', there: (page) => page.getByRole('link', { name: 'web' }).waitFor() },
  {
    name: 'create',
    path: () => '/sandboxes',
    there: async (page) => {
      await page.getByRole('button', { name: 'New sandbox' }).click()
      await page.getByText('Clocks, restart, user').click()
      await page.getByLabel('Idle time-out').waitFor()
    },
  },
  { name: 'overview', path: () => `/sandboxes/${sandboxId}`, there: (page) => page.getByText('Ready after').waitFor() },
  {
    name: 'limits',
    path: () => `/sandboxes/${sandboxId}`,
    there: async (page) => {
      await page.getByRole('button', { name: 'Limits' }).click()
      await page.getByLabel('CPU weight').waitFor()
    },
  },
  {
    name: 'delete',
    path: () => `/sandboxes/${sandboxId}`,
    there: (page) => page.getByRole('button', { name: 'Delete' }).click(),
  },
  {
    name: 'logs',
    path: () => `/sandboxes/${sandboxId}/logs`,
    there: (page) => page.getByText('oops').first().waitFor(),
  },
  {
    name: 'charts',
    path: () => `/sandboxes/${sandboxId}/charts`,
    there: (page) => page.locator('.chart path').first().waitFor({ state: 'attached' }),
  },
  {
    name: 'files',
    path: () => `/sandboxes/${sandboxId}/files`,
    there: (page) => page.getByRole('button', { name: 'etc/', exact: true }).waitFor(),
  },
  {
    name: 'directory',
    path: () => `/sandboxes/${sandboxId}/files?path=/srv/work`,
    there: (page) => page.getByRole('button', { name: 'notes.txt', exact: true }).waitFor(),
  },
  {
    name: 'file',
    path: () => `/sandboxes/${sandboxId}/files?path=/srv/work`,
    there: async (page) => {
      await page.getByRole('button', { name: 'notes.txt', exact: true }).click()
      await page.getByText('first line').waitFor()
    },
  },
  {
    name: 'empty-directory',
    path: () => `/sandboxes/${sandboxId}/files?path=/srv/work/empty`,
    there: (page) => page.getByRole('button', { name: '← up' }).waitFor(),
  },
  {
    name: 'processes',
    path: () => `/sandboxes/${sandboxId}/processes`,
    there: (page) =>
      page
        .getByRole('row', { name: /sleep \d/ })
        .last()
        .waitFor(),
  },
  { name: 'terminal', path: () => `/sandboxes/${sandboxId}/terminal`, there: openTerminal },
  {
    name: 'events',
    path: () => `/sandboxes/${sandboxId}/events`,
    there: (page) =>
      page
        .getByRole('row', { name: /running/ })
        .first()
        .waitFor(),
  },
  {
    name: 'ended',
    path: () => `/sandboxes/${endedId}`,
    there: (page) => page.getByRole('row', { name: /exit nonzero/ }).waitFor(),
  },
  {
    name: 'no-processes',
    path: () => `/sandboxes/${endedId}/processes`,
    there: (page) => page.getByText('has no processes').waitFor(),
  },
  {
    name: 'no-sandbox',
    path: () => '/sandboxes/none-such',
    there: (page) => page.getByText('there is no sandbox').waitFor(),
  },
  {
    name: 'no-job',
    path: () => '/jobs/none-such',
    there: (page) => page.getByText('That is not the id of a job.').waitFor(),
  },
  { name: 'jobs', path: () => '/jobs', there: (page) => page.getByRole('link', { name: 'report' }).waitFor() },
  { name: 'job', path: () => `/jobs/${jobId}`, there: (page) => page.getByText('all is well').first().waitFor() },
  { name: 'new-job', path: () => '/jobs', there: (page) => page.getByRole('button', { name: 'New job' }).click() },
  { name: 'usage', path: () => '/usage', there: (page) => page.getByText('Now, against quota').waitFor() },
  { name: 'keys', path: () => '/keys', there: (page) => page.getByText('reader').waitFor() },
  { name: 'new-key', path: () => '/keys', there: (page) => page.getByRole('button', { name: 'New key' }).click() },
]

async function openTerminal(page: Page): Promise<void> {
  const shown = page.getByText('Connected')
  const open = page.getByRole('button', { name: 'Open a shell' })
  await open.waitFor()
  await until(
    'the terminals are listed',
    async () =>
      (await shown.isVisible()) || (await page.getByText('No terminal is open').isVisible()) ? true : undefined,
    60_000,
  )
  if (!(await shown.isVisible())) await open.click()
  await shown.waitFor()
  await until('a prompt', async () => (/[#$]$/.test(await screen(page)) ? true : undefined), 60_000)
}

const windows = [
  ['light', 'wide'],
  ['dark', 'wide'],
  ['light', 'narrow'],
  ['dark', 'narrow'],
] as const

test.each(windows)('%s, %s: every page fits and has no barrier', async (colorScheme, width) => {
  const narrow = { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 }
  await using one = await visit(browser, {
    colorScheme,
    reducedMotion: 'reduce',
    ...(width === 'narrow' ? narrow : {}),
  })
  const { page } = one
  await page.goto(`${stack().url}/console`)
  await page.getByLabel('API key').waitFor()
  const found: Record<string, readonly string[]> = {}
  const look = async (name: string) => {
    const wrong = [...(await barriers(page))]
    const pixels = await overflow(page)
    if (pixels > 0) wrong.push(`${pixels} px wider than the window`)
    if (wrong.length > 0) found[name] = wrong
    await picture(page, `${name}-${colorScheme}-${width}`)
  }
  await look('sign-in')
  await signIn(page, stack().url, t.key)
  for (const { name, path, there } of pages) {
    await page.goto(`${stack().url}/console${path()}`)
    await there(page)
    await look(name)
  }
  await page.goto(`${stack().url}/console`)
  await page.getByRole('button', { name: 'Sign out' }).click()
  await page.getByLabel('API key').waitFor()
  await signIn(page, stack().url, newcomer.key)
  await page.getByText('There is no sandbox yet.').waitFor()
  await look('sandboxes-none')
  await page.goto(`${stack().url}/console/jobs`)
  await page.getByText('There is no job yet.').waitFor()
  await look('jobs-none')
  expect(found).toEqual({})
  // The browser's own notes: of the sandbox that is not there, and of the stream of events that the sign-out ended.
  expect(one.troubles(/status of 404/, /ERR_INCOMPLETE_CHUNKED_ENCODING/)).toEqual([])
})

test('the theme is chosen, kept, and drawn before anything else', async () => {
  await using one = await visit(browser, { colorScheme: 'light' })
  const { page } = one
  await signIn(page, stack().url, t.key)
  const ground = () => page.evaluate<string>('getComputedStyle(document.body).backgroundColor')
  const light = await ground()
  await page.getByRole('button', { name: 'Theme: system' }).click()
  await page.getByRole('button', { name: 'Theme: light' }).click()
  await page.getByRole('button', { name: 'Theme: dark' }).waitFor()
  const dark = await ground()
  expect(dark).not.toBe(light)
  await page.reload()
  expect(await ground()).toBe(dark)
  expect(await page.evaluate('JSON.stringify(localStorage)')).toBe('{"berth-theme":"dark"}')
  expect(await one.context.cookies()).toHaveLength(1)
  expect(one.troubles()).toEqual([])
})
