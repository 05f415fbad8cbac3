// summary.ts: what is kept of a build's stream beside its log: each instruction with how it went, and the last output of
// those that go on, which says why one failed.
import type { BuildProgress, BuildStepSummary } from '@berth/contracts'

/** Instructions that are kept, and characters of their names and errors. */
const MOST = 500
const LONGEST = 256
/** Characters of output that are kept of an instruction that goes on. */
const TAIL = 4096

export class BuildSummary {
  readonly #steps = new Map<number, BuildStepSummary>()
  readonly #tails = new Map<number, string>()
  /** Output of the instruction that failed last, its last 4 KiB. */
  failedOutput = ''

  get steps(): readonly BuildStepSummary[] {
    return [...this.#steps.values()]
  }

  add(step: BuildProgress): void {
    switch (step.step) {
      case 'begin':
        this.#tails.set(step.vertex, '')
        if (this.#steps.size < MOST) this.#steps.set(step.vertex, begun(step))
        return
      case 'cached':
        this.#change(step.vertex, { state: 'cached', ms: 0 })
        return
      case 'output':
        this.#tails.set(step.vertex, ((this.#tails.get(step.vertex) ?? '') + step.data).slice(-TAIL))
        return
      case 'end': {
        const { vertex, ms, exitCode, error, layer } = step
        if (error !== null) this.failedOutput = this.#tails.get(vertex) ?? ''
        const state = error === null ? 'done' : 'failed'
        this.#change(vertex, { state, ms, exitCode, error: cut(error), layerBytes: layer?.bytes ?? null })
        return
      }
      default:
    }
  }

  #change(vertex: number, change: Partial<BuildStepSummary>): void {
    this.#tails.delete(vertex)
    const step = this.#steps.get(vertex)
    if (step) this.#steps.set(vertex, { ...step, ...change })
  }
}

const cut = <T extends string | null>(text: T) => (text === null ? null : text.slice(0, LONGEST))

const begun = ({ vertex, name, stage, at }: BuildProgress & { readonly step: 'begin' }): BuildStepSummary => ({
  ...{ vertex, name: name.slice(0, LONGEST), stage, state: 'running', startedAt: at },
  ...{ ms: null, exitCode: null, error: null, layerBytes: null },
})
