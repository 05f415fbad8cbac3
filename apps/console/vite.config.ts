import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { brotliCompress, constants, gzip as zlibGzip } from 'node:zlib'
import { defineConfig, type Plugin } from 'vite'
import { xtermWithoutInlineStyle } from './xterm-style.js'

const [brotli, gzip] = [promisify(brotliCompress), promisify(zlibGzip)]
/** The best takes several times as long, for 8 % less. */
const quick = { params: { [constants.BROTLI_PARAM_QUALITY]: 9 } }

/**
 * Beside every text its compressed copies, which the API sends to who takes them. Browsers take Brotli on https only.
 * From the files as they were written: the bundle is still changed by others while it is generated.
 */
const compressed: Plugin = {
  name: 'compressed',
  apply: 'build',
  async writeBundle({ dir = '' }, bundle) {
    for (const { fileName } of Object.values(bundle)) {
      if (!/\.(js|css|svg)$/.test(fileName)) continue
      const path = join(dir, fileName)
      const source = await readFile(path)
      await writeFile(`${path}.br`, await brotli(source, quick))
      await writeFile(`${path}.gz`, await gzip(source, { level: 9 }))
    }
  },
}

export default defineConfig({
  base: '/console/',
  plugins: [xtermWithoutInlineStyle, compressed],
  build: {
    target: 'es2022',
    // Nothing as data: URLs: the policy allows scripts and styles from files only.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 600,
    // On a machine that does much else any build is slow.
    rolldownOptions: { checks: { pluginTimings: false } },
  },
  server: { proxy: { '/v1': { target: process.env.BERTH_URL ?? 'http://127.0.0.1:7433', ws: true } } },
})
