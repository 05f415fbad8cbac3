// section.ts: what a benchmark is. Each lives in a file of its own and is listed in main.ts; `npm run bench -- NAME`
// runs it and replaces its section of docs/benchmarks.md, and no other.
import type { Installation } from './installation.js'

export interface Section {
  readonly name: string
  readonly title: string
  /**
   * Measures, and says on stderr how far it is.
   * @returns Markdown of the section: what was measured and how, then the numbers
   * @throws when any result is wrong: a fast wrong answer is no measurement
   */
  measure(at: Installation): Promise<string>
}

export const say = (what: string) => void process.stderr.write(`bench: ${what}\n`)

/** Milliseconds, and other small quantities, with one digit behind the point. */
export const one = (value: number) => value.toFixed(1)

/** A Markdown table; cells are texts or numbers. */
export function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const line = (cells: readonly (string | number)[]) => `| ${cells.join(' | ')} |`
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n')
}
