import { afterAll, beforeAll, expect, jest, test } from '@jest/globals'
import type { Browser, Page } from 'playwright-core'
import { stack, type TestTenant, tenant, until } from '../support/berth.js'
import { openBrowser, openLine, screen, signIn, visit } from '../support/browser.js'

jest.setTimeout(300_000)

let browser: Browser
beforeAll(async () => {
  browser = await openBrowser()
}, 600_000)
afterAll(async () => {
  await browser?.close()
})

const url = () => stack().url
/** What the browser itself notes of a request or socket that a cut network ended. */
const networkLost =
  /^Failed to load resource: net::ERR_(CONNECTION_(REFUSED|RESET|CLOSED)|INCOMPLETE_CHUNKED_ENCODING|EMPTY_RESPONSE|SOCKET_NOT_CONNECTED)|^WebSocket connection to/

async function sandbox(t: TestTenant, spec: Record<string, unknown> = {}): Promise<string> {
  const made = await t.post('/v1/sandboxes?wait=running&timeoutMs=60s', { limits: { memoryBytes: '128m' }, ...spec })
  if (made.body.state !== 'running') throw new Error(`sandbox: ${JSON.stringify(made.body)}`)
  return made.body.id
}

/** Opens the sandbox's page and a shell in it. */
async function shell(page: Page, base: string, id: string): Promise<void> {
  await page.goto(`${base}/console/sandboxes/${id}/terminal`)
  await page.getByRole('button', { name: 'Open a shell' }).click()
  await page.getByText('Connected').waitFor()
  await shows(page, /[#$]$/)
}

async function type(page: Page, text: string): Promise<void> {
  await page.keyboard.type(text)
  await page.keyboard.press('Enter')
}

/** Waits until the screen shows it. */
const shows = (page: Page, what: string | RegExp): Promise<string> =>
  until(
    `the screen shows ${what}`,
    async () => {
      const now = await screen(page)
      if (typeof what === 'string' ? now.includes(what) : what.test(now)) return now
      throw new Error(now)
    },
    60_000,
  )

test('a sandbox made in the page runs, and its state follows what happens to it', async () => {
  const t = await tenant()
  await using one = await visit(browser)
  const { page } = one
  await signIn(page, url(), t.key)
  await page.getByRole('button', { name: 'New sandbox' }).click()
  await page.getByLabel('Name').fill('first')
  await page.getByLabel('Memory').fill('64m')
  await page.getByLabel('Labels').fill('kind=test')
  await page.getByLabel('Environment').fill('GREETING=hello there')
  await page.getByRole('button', { name: 'Create', exact: true }).click()
  await page.getByRole('heading', { name: 'first running' }).waitFor()
  await page.getByRole('button', { name: 'Pause' }).click()
  await page.getByRole('heading', { name: 'first paused' }).waitFor()
  await page.getByRole('button', { name: 'Resume' }).click()
  await page.getByRole('heading', { name: 'first running' }).waitFor()
  await page.getByRole('button', { name: 'Limits' }).click()
  await page.getByLabel('Memory', { exact: true }).fill('96m')
  await page.getByRole('button', { name: 'Change' }).click()
  await page.getByText('96 MiB').waitFor()
  await t.post('/v1/sandboxes/first/stop?wait=stopped', {})
  await page.getByRole('heading', { name: 'first stopped' }).waitFor()
  await page.getByRole('link', { name: 'Events' }).click()
  await page.getByRole('row', { name: /stopped/ }).waitFor()
  await page.getByRole('link', { name: 'Sandboxes' }).first().click()
  await page.getByLabel('Label').fill('kind=test')
  await page.getByRole('row', { name: /first.*stopped/ }).waitFor()
  await page.getByLabel('Label').fill('kind=none')
  await page.getByText('No sandbox matches.').waitFor()
  await page.getByLabel('Label').fill('')
  await page.getByRole('button', { name: 'Delete first' }).click()
  await page.getByRole('dialog').getByRole('button', { name: 'Delete' }).click()
  await page.getByText('There is no sandbox yet.').waitFor()
  expect(one.troubles()).toEqual([])
})

test('a limit that need not be there is unset by emptying its field', async () => {
  const t = await tenant()
  const id = await sandbox(t, { name: 'boxed', limits: { memoryBytes: '64m', cpuset: '0', cpuShares: 512 } })
  await using one = await visit(browser)
  const { page } = one
  await signIn(page, url(), t.key)
  await page.goto(`${url()}/console/sandboxes/${id}`)
  const facts = page.getByRole('main')
  await facts.getByText('Runs on CPUs').waitFor()
  await page.getByRole('button', { name: 'Limits' }).click()
  expect(await page.getByLabel('CPUs it may run on').inputValue()).toBe('0')
  await page.getByLabel('CPUs it may run on').fill('')
  await page.getByLabel('CPU weight').fill('lots')
  await page.getByRole('button', { name: 'Change' }).click()
  await page.getByText('must be a number').waitFor()
  await page.getByLabel('CPU weight').fill('700')
  await page.getByRole('button', { name: 'Change' }).click()
  await page.getByText('The limits are changed.').waitFor()
  await facts.getByText('Runs on CPUs').waitFor({ state: 'detached' })
  const { limits } = (await t.get(`/v1/sandboxes/${id}`)).body.spec
  expect(limits).toMatchObject({ cpuShares: 700, memoryBytes: 64 * 2 ** 20 })
  expect(limits).not.toHaveProperty('cpuset')
  expect(one.troubles()).toEqual([])
})

test('a shell takes what is typed; vi and top draw whole screens, at the size of the window', async () => {
  const t = await tenant()
  const id = await sandbox(t)
  await using one = await visit(browser)
  const { page } = one
  await signIn(page, url(), t.key)
  await shell(page, url(), id)
  await type(page, 'echo $((6 * 7)) für Ärger')
  await shows(page, /^42 für Ärger$/m)

  await type(page, 'stty size')
  const [, rows, columns] = /^(\d+) (\d+)$/m.exec(await shows(page, /^\d+ \d+$/m)) ?? []
  expect(Number(columns)).toBeGreaterThan(100)
  await page.setViewportSize({ width: 800, height: 700 })
  await type(page, 'clear')
  await until('the size follows the window', async () => {
    await type(page, 'stty size')
    const [, nowRows, nowColumns] = /(\d+) (\d+)\n.*$/.exec(await screen(page)) ?? []
    return nowRows && nowColumns && Number(nowRows) < Number(rows) && Number(nowColumns) < Number(columns)
      ? true
      : undefined
  })

  await type(page, 'clear; vi /tmp/poem')
  await shows(page, /^~$/m)
  await page.keyboard.type('iRoses are red\nViolets are blue')
  await page.keyboard.press('Escape')
  await shows(page, /^Roses are red\nViolets are blue\n~\n~/)
  await type(page, ':wq')
  await shows(page, /[#$]$/)
  await type(page, 'clear; wc -l /tmp/poem')
  await shows(page, '2 /tmp/poem')

  await type(page, 'top -d 1')
  const drawn = await shows(page, /PID USER +PR +NI/)
  expect(drawn).toMatch(/^top - \d\d:\d\d:\d\d up/)
  expect(drawn).toMatch(/ top$/m)
  await page.keyboard.press('q')
  await shows(page, /[#$]$/)

  await type(page, `printf '\\033[38;2;255;0;0mred\\033[0m\\n'`)
  await shows(page, /^red$/m)
  // 24-bit colours are set on the element: under a policy that allows no inline style.
  const colour = await page.evaluate<string>(
    `getComputedStyle([...document.querySelectorAll('.xterm-rows span')].findLast((one) => one.textContent === 'red')).color`,
  )
  expect(colour).toBe('rgb(255, 0, 0)')
  await type(page, 'exit 7')
  await page.getByText('Ended, exit code 7').waitFor()
  expect(one.troubles()).toEqual([])
})

test('a cut network is waited out, and nothing on the screen is lost or doubled', async () => {
  const t = await tenant()
  const id = await sandbox(t)
  await using line = await openLine()
  await using one = await visit(browser)
  const { page } = one
  await signIn(page, line.url, t.key)
  await shell(page, line.url, id)
  await type(page, 'echo before; for i in 1 2 3 4 5 6 7 8; do sleep 0.5; echo line-$i; done; cat')
  await shows(page, /^line-1$/m)
  await line.cut()
  await page.getByText('Connection lost').waitFor()
  expect(await screen(page)).toMatch(/^before$/m)
  // The loop ends in the sandbox meanwhile; its end is what another client sees.
  await line.mend()
  await page.getByText('Connected').waitFor()
  const drawn = await shows(page, /^line-8$/m)
  expect(drawn.match(/^line-\d$/gm)).toEqual(['1', '2', '3', '4', '5', '6', '7', '8'].map((i) => `line-${i}`))
  await type(page, 'still here')
  await shows(page, /^still here\nstill here$/m)
  expect(one.troubles(networkLost)).toEqual([])
})

test('a reload and a second window show the same screen, alternate buffer included', async () => {
  const t = await tenant()
  const id = await sandbox(t)
  await using one = await visit(browser)
  const { page, context } = one
  await signIn(page, url(), t.key)
  await shell(page, url(), id)
  await type(page, 'clear; vi /tmp/both')
  await page.keyboard.type('iseen twice')
  const before = await shows(page, /^seen twice\n~/)
  await page.reload()
  await page.getByText('Connected').waitFor()
  expect((await shows(page, /^seen twice\n~/)).split('\n')[0]).toBe(before.split('\n')[0])
  const other = await context.newPage()
  await other.goto(`${url()}/console/sandboxes/${id}/terminal`)
  await shows(other, /^seen twice\n~/)
  await other.keyboard.type(' indeed')
  await shows(page, /^seen twice indeed/)
  expect(one.troubles()).toEqual([])
})

test('a shared terminal is seen without signing in, and not after it is revoked', async () => {
  const t = await tenant()
  const id = await sandbox(t)
  await using one = await visit(browser)
  const { page } = one
  await signIn(page, url(), t.key)
  await shell(page, url(), id)
  await type(page, 'echo shared words')
  await page.getByRole('button', { name: 'Share' }).click()
  await page.getByRole('button', { name: 'Make a link' }).click()
  const link = await page.getByLabel('Link').inputValue()
  await using guest = await visit(browser)
  const requests: string[] = []
  guest.page.on('request', (request) => requests.push(request.url()))
  await guest.page.goto(link)
  await guest.page.getByText('Connected, to read only').waitFor()
  await shows(guest.page, /^shared words$/m)
  await guest.page.keyboard.type('not for me')
  const token = new URL(link).hash.slice(1)
  expect(requests.filter((request) => request.includes(token))).toEqual([])
  await page.getByRole('button', { name: 'Revoke' }).click()
  await guest.page.getByText(/revoked|expired/).waitFor()
  expect(await screen(guest.page)).not.toContain('not for me')
  expect(guest.troubles()).toEqual([])
  expect(one.troubles()).toEqual([])
})

test('by keyboard alone: sign in, create a sandbox, open a shell and leave it', async () => {
  const t = await tenant()
  await using one = await visit(browser)
  const { page } = one
  const press = async (...keys: readonly string[]) => {
    for (const key of keys) await page.keyboard.press(key)
  }
  /** Presses Tab until what has the focus is so called. */
  const tabTo = (name: string) =>
    until(`Tab comes to ${name}`, async () => {
      await press('Tab')
      const focused = await page.evaluate<string>(
        '(document.activeElement.labels?.[0] ?? document.activeElement).textContent + " " + (document.activeElement.getAttribute("aria-label") ?? "")',
      )
      return focused.includes(name) ? true : undefined
    })
  await page.goto(`${url()}/console`)
  await page.getByLabel('API key').waitFor()
  await page.keyboard.insertText(t.key)
  await press('Enter')
  await page.getByRole('heading', { name: 'Sandboxes' }).waitFor()
  await tabTo('Skip to content')
  await press('Enter')
  await tabTo('New sandbox')
  await press('Enter')
  await page.getByRole('dialog').waitFor()
  await press('Escape')
  await page.getByRole('dialog').waitFor({ state: 'detached' })
  expect(await page.evaluate('document.activeElement.textContent')).toBe('New sandbox')
  await press('Enter')
  await tabTo('Name')
  await page.keyboard.type('typed')
  await press('Enter')
  await page.getByRole('heading', { name: 'typed running' }).waitFor()
  await tabTo('Terminal')
  await press('Enter')
  await page.getByRole('button', { name: 'Open a shell' }).waitFor()
  await tabTo('Open a shell')
  await press('Enter')
  await page.getByText('Connected').waitFor()
  await shows(page, /[#$]$/)
  await page.keyboard.type('echo a\tb')
  await press('Control+Shift+ArrowUp')
  await tabTo('Search')
  expect(one.troubles()).toEqual([])
})
