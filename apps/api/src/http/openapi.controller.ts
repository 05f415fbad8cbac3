// openapi.controller.ts: the contract as a document, and as a page to read. The page is Swagger UI from npm, served
// from here: nothing is loaded from elsewhere.
import { createReadStream, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { Failure, openApi, route, routes } from '@berth/contracts'
import { Controller, Header, StreamableFile } from '@nestjs/common'
import { z } from 'zod'
import { type Call, Route } from './route.decorator.js'

const publicPage = { method: 'GET', scope: 'public', rate: 'none', tag: 'documentation', errors: [] } as const

const document = route({
  ...publicPage,
  id: 'openApiDocument',
  path: '/openapi.json',
  summary: 'The OpenAPI document',
  reply: { 200: 'bytes' },
})
const page = route({
  ...publicPage,
  id: 'docs',
  path: '/docs',
  summary: 'The document to read',
  reply: { 200: 'bytes' },
})
const asset = route({
  ...publicPage,
  id: 'docsAsset',
  path: '/docs/:name',
  summary: 'A part of the page',
  params: z.object({ name: z.string() }),
  reply: { 200: 'bytes' },
})

/** The page runs its own script and style, and nothing of others. */
const PAGE_POLICY =
  "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

const html = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Berth API</title>
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<noscript>This page needs JavaScript; the document itself is at <a href="/openapi.json">/openapi.json</a>.</noscript>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
`
const start = `SwaggerUIBundle({ url: '/openapi.json', dom_id: '#page', deepLinking: true, validatorUrl: null })\n`

const START = 'start.js'
const parts: ReadonlySet<string> = new Set(['swagger-ui.css', 'swagger-ui-bundle.js', START, 'favicon-32x32.png'])

const types: Readonly<Record<string, string>> = {
  css: 'text/css; charset=utf-8',
  js: 'text/javascript; charset=utf-8',
  png: 'image/png',
}

const assets = dirname(createRequire(import.meta.url).resolve('swagger-ui-dist/package.json'))

/** Version of this package, as the document states it. */
export const version: string = z
  .object({ version: z.string() })
  .parse(JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))).version

@Controller()
export class OpenApiController {
  private readonly document = Buffer.from(JSON.stringify(openApi(routes, version)))

  @Route(document)
  async openApiDocument(): Promise<StreamableFile> {
    return new StreamableFile(this.document, { type: 'application/json; charset=utf-8' })
  }

  @Route(page)
  @Header('content-security-policy', PAGE_POLICY)
  async docs(): Promise<StreamableFile> {
    return new StreamableFile(Buffer.from(html), { type: 'text/html; charset=utf-8' })
  }

  @Route(asset)
  @Header('cache-control', 'public, max-age=3600')
  async docsAsset({ params: { name } }: Call<typeof asset>): Promise<StreamableFile> {
    const type = types[name.slice(name.lastIndexOf('.') + 1)]
    if (!type || !parts.has(name)) throw new Failure('route_not_found', 'the page has no such part')
    if (name === START) return new StreamableFile(Buffer.from(start), { type })
    return new StreamableFile(createReadStream(join(assets, name)), { type })
  }
}
