// xterm-style.ts: xterm.js under a policy that allows no inline style.
//
// It makes <style> elements (colours, cell sizes, the scroll bar) and sets `style` attributes (24-bit colours of single
// cells). The page's policy, style-src 'self', refuses both: the first would take a nonce, the second 'unsafe-inline'
// for all that runs in the page. What scripts do through the CSSOM is not inline style, so while xterm.js is bundled
// these few places are turned into that: elements whose text becomes a constructed style sheet (src/sheet.ts), and
// `element.style`. The version is pinned, and a build in which a place is not found fails.
import type { Plugin } from 'vite'

interface Replacement {
  readonly what: string
  readonly find: RegExp
  readonly by: string
  readonly times: number
}

const replacements: readonly Replacement[] = [
  {
    what: 'style elements of the renderer and the viewport',
    find: /\.createElement\("style"\)/g,
    by: '.createElement("berth-sheet")',
    times: 3,
  },
  {
    what: 'style attributes of cells',
    find: /(\w+)\.setAttribute\("style",`\$\{\1\.getAttribute\("style"\)\|\|""\}\$\{(\w+)\};`\)/g,
    by: '$1.style.cssText+=$2',
    times: 1,
  },
]

export const xtermWithoutInlineStyle: Plugin = {
  name: 'xterm-without-inline-style',
  enforce: 'pre',
  transform(code, id) {
    if (!/@xterm\/xterm\/lib\/xterm\.mjs$/.test(id.split('?')[0] ?? '')) return undefined
    let text = code
    for (const { what, find, by, times } of replacements) {
      const found = text.match(find)?.length ?? 0
      if (found !== times) this.error(`xterm.js: ${what}: expected in ${times} places, found in ${found}`)
      text = text.replace(find, by)
    }
    return { code: text, map: null }
  },
}
