/**
 * A stack of releases, run in reverse order unless kept:
 *
 *     await using undo = new Unwind()
 *     await mkdir(dir); undo.add(() => removeTree(dir))
 *     …
 *     undo.keep()        // all went well: nothing is undone
 *
 * Every release runs even when another fails; the failures come together as one AggregateError.
 */
export class Unwind implements AsyncDisposable {
  #releases: (() => unknown)[] = []

  /** Registers what undoes the step just made; releases must bear being run on a half-made thing. */
  add(release: () => unknown): void {
    this.#releases.push(release)
  }

  /** Forgets every release: what was made stays. */
  keep(): void {
    this.#releases = []
  }

  /** Runs and forgets the releases. @throws AggregateError of what failed */
  async run(): Promise<void> {
    const errors: unknown[] = []
    for (let release = this.#releases.pop(); release; release = this.#releases.pop()) {
      try {
        await release()
      } catch (error) {
        errors.push(error)
      }
    }
    if (errors.length > 0) throw new AggregateError(errors, `${errors.length} of the releases failed: ${list(errors)}`)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.run()
  }
}

const list = (errors: readonly unknown[]) =>
  errors.map((error) => (error instanceof Error ? error.message : String(error))).join('; ')
