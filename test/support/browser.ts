// browser.ts: Debian's Chromium, driven by playwright-core, before a console whose network can be cut.
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { createServer, connect as dial, type Socket } from 'node:net'
import { join } from 'node:path'
import {
  type Browser,
  type BrowserContext,
  type BrowserContextOptions,
  type ConsoleMessage,
  chromium,
  type Page,
} from 'playwright-core'
import { stack } from './berth.js'

const CHROMIUM = '/usr/bin/chromium'

/** Run by one worker at a time: half an installation has the file already. */
const install = `
test -x ${CHROMIUM} && exit
apt-get update -q && apt-get install -y -q --no-install-recommends chromium fonts-dejavu-core`

/** Installs the package where it is missing: no browser is downloaded from anywhere else. */
function ensureChromium(): void {
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
  execFileSync('flock', ['/var/cache/apt', 'sh', '-c', install], { stdio: 'ignore', env })
}

export async function openBrowser(): Promise<Browser> {
  ensureChromium()
  // The sandbox of Chromium refuses to work for root, which tests are.
  return chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-dev-shm-usage'] })
}

/** A way to the API that can be cut: connections are reset and new ones refused, as when a network goes away. */
export interface Line extends AsyncDisposable {
  readonly url: string
  cut(): Promise<void>
  mend(): Promise<void>
}

export async function openLine(): Promise<Line> {
  const { hostname, port } = new URL(stack().url)
  const sockets = new Set<Socket>()
  const server = createServer((near) => {
    const far = dial(Number(port), hostname)
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(one)
      one.on('error', () => other.destroy())
      one.on('close', () => {
        sockets.delete(one)
        other.destroy()
      })
      one.pipe(other)
    }
  })
  const listen = (on: number) => new Promise<void>((done) => server.listen(on, '127.0.0.1', done))
  await listen(0)
  const address = server.address()
  const own = typeof address === 'object' && address ? address.port : 0
  const cut = () =>
    new Promise<void>((done) => {
      server.close(() => done())
      for (const socket of sockets) socket.resetAndDestroy()
    })
  return {
    url: `http://127.0.0.1:${own}`,
    cut,
    mend: () => listen(own),
    [Symbol.asyncDispose]: async () => {
      if (server.listening) await cut()
    },
  }
}

export interface Visit extends AsyncDisposable {
  readonly page: Page
  readonly context: BrowserContext
  /**
   * What went wrong in the page so far: errors and warnings of its console, exceptions, violations of its policy.
   * @param expected messages that are meant to come, such as the browser's own about a refused request
   */
  troubles(...expected: readonly RegExp[]): readonly string[]
}

const tellViolations = `document.addEventListener('securitypolicyviolation', (event) =>
  console.error('policy: ' + event.violatedDirective + ' refused ' + (event.blockedURI || event.sample)))`

/** How long the page may take for anything, on a machine that does much else. */
const WAIT_MS = 40_000

/** A browser's own profile with one page in it, watched for everything that should not happen. */
export async function visit(browser: Browser, options: BrowserContextOptions = {}): Promise<Visit> {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...options })
  context.setDefaultTimeout(WAIT_MS)
  await context.addInitScript({ content: tellViolations })
  const page = await context.newPage()
  const seen: string[] = []
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type()) && !isFirstLook(message)) seen.push(message.text())
  })
  page.on('pageerror', (error) => seen.push(`exception: ${error.stack ?? error.message}`))
  page.on('crash', () => seen.push('the page crashed'))
  return {
    page,
    context,
    troubles: (...expected) => seen.filter((text) => !expected.some((pattern) => pattern.test(text))),
    [Symbol.asyncDispose]: () => context.close(),
  }
}

/** Whether there is a session can only be asked; a browser notes each answer that is a refusal. */
const isFirstLook = (message: ConsoleMessage): boolean =>
  message.location().url.endsWith('/v1/session') && message.text().includes('status of 401')

/** Signs in by the form, as a person would. */
export async function signIn(page: Page, url: string, key: string): Promise<void> {
  await page.goto(`${url}/console`)
  await page.getByLabel('API key').fill(key)
  await page.getByRole('button', { name: 'Sign in' }).click()
  await page.getByRole('heading', { name: 'Sandboxes' }).waitFor()
}

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')

/** What axe-core finds wrong with the page as it is: rule, and the elements. */
export async function barriers(page: Page): Promise<readonly string[]> {
  await page.evaluate(axe)
  return page.evaluate<readonly string[]>(`axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) =>
    violations.map(({ id, nodes }) => id + ': ' + nodes.map(({ target }) => target.join(' ')).join(', ')))`)
}

/** How far the page is wider than its window, in pixels. */
export const overflow = (page: Page): Promise<number> =>
  page.evaluate<number>('document.documentElement.scrollWidth - document.documentElement.clientWidth')

/** Keeps a picture of the page in the directory of BERTH_SCREENSHOTS, for people to look at. */
export async function picture(page: Page, name: string): Promise<void> {
  const directory = process.env.BERTH_SCREENSHOTS
  if (!directory) return
  mkdirSync(directory, { recursive: true })
  await page.screenshot({ path: join(directory, `${name}.png`) })
}

/** The lines of the terminal that is shown, as they are drawn, without those that are empty at the end. */
export async function screen(page: Page): Promise<string> {
  const rows = await page.locator('.xterm-rows:visible > div').allInnerTexts()
  return rows
    .map((row) => row.replaceAll('\u00a0', ' ').trimEnd())
    .join('\n')
    .trimEnd()
}
