// document.ts: docs/benchmarks.md as text. A section stands between two marks, so that one can be measured again
// without losing the others; in which order they stand is main.ts' business.

export interface Written {
  readonly name: string
  readonly title: string
  /** When, where and by which command: one paragraph. */
  readonly circumstances: string
  readonly body: string
}

const begin = (name: string) => `<!-- ${name}: begin -->`
const end = (name: string) => `<!-- ${name}: end -->`

const head = `# Benchmarks

\`npm run bench\` after \`BERTH_INSECURE_REGISTRIES=127.0.0.1:5999 BERTH_MAX_SANDBOXES=400 ./berth up\` repeats all of it and
writes this file; \`npm run bench -- NAME …\` only the sections named. The registry is one that the bench starts, to pull from.
It needs root and a machine that does nothing else. Every number of Berth's stands beside one of a peer's from the same
run: on another machine the milliseconds differ, the ratios should not much.
`

/**
 * The document with some sections replaced or added.
 * @param before the document as it is, or '' for none
 * @param order names of all sections there can be; a section of another name is dropped
 */
export function withSections(before: string, written: readonly Written[], order: readonly string[]): string {
  const fresh = new Map(written.map((section) => [section.name, textOf(section)]))
  const sections = order.flatMap((name) => fresh.get(name) ?? sectionOf(before, name) ?? [])
  return [head, ...sections.map((text) => `${text}\n`)].join('\n')
}

function textOf({ name, title, circumstances, body }: Written): string {
  return [begin(name), `## ${title}`, '', circumstances, '', body.trim(), end(name)].join('\n')
}

function sectionOf(document: string, name: string): string | undefined {
  const [from, to] = [document.indexOf(begin(name)), document.indexOf(end(name))]
  return from < 0 || to < from ? undefined : document.slice(from, to + end(name).length)
}
