// progress.ts: how far long work is, as lines for whoever asked for it. Of a layer only the latest is told, at most five
// times a second: a reader that is slow, or fast, gets no more than it needs.
import { Failure, type ImageStep } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'

type LayerStep = Extract<ImageStep, { step: 'layer' }>
type Done = Extract<ImageStep, { step: 'done' }>['images']

const EVERY_MS = 200
const MAX_RETRIES_TOLD = 100

export class Progress {
  readonly #layers = new Map<string, LayerStep>()
  readonly #told = new Map<string, LayerStep['state']>()
  #retries: string[] = []
  #urgent: () => void = () => undefined

  layer(digest: string, state: LayerStep['state'], bytes: number, totalBytes: number | null): void {
    // Layers that are in an image twice are one.
    this.#layers.set(digest, { step: 'layer', digest, state, bytes, totalBytes })
    if (this.#told.get(digest) !== state) this.#urgent()
  }

  /** Something failed and is tried again. */
  readonly retrying = (message: string): void => {
    if (this.#retries.length < MAX_RETRIES_TOLD) this.#retries.push(message)
    this.#urgent()
  }

  /** What there is to tell since the last time. */
  take(): readonly ImageStep[] {
    const layers = [...this.#layers.values()]
    const retries = this.#retries.map((message): ImageStep => ({ step: 'retry', message }))
    for (const { digest, state } of layers) this.#told.set(digest, state)
    this.#layers.clear()
    this.#retries = []
    return [...retries, ...layers]
  }

  /** Resolves when there is something that cannot wait, or it is time again. */
  async next(): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    await new Promise<void>((resolve) => {
      this.#urgent = resolve
      timer = setTimeout(resolve, EVERY_MS)
    })
    clearTimeout(timer)
  }

  /** Has `next` resolve. */
  wake(): void {
    this.#urgent()
  }
}

/**
 * Runs work, and tells of it: steps as they come, then `done` or `failed`. Ends, without a word, when the signal does.
 */
export async function* steps(
  work: (progress: Progress) => Promise<Done>,
  signal: AbortSignal,
  log: Logger,
): AsyncGenerator<ImageStep> {
  const progress = new Progress()
  let end: ImageStep | undefined
  const running = work(progress).then(
    (images) => {
      end = { step: 'done', images }
    },
    (error: unknown) => {
      if (!signal.aborted && !(error instanceof Failure)) log.error({ err: error }, 'images.failed')
      end = failed(error)
    },
  )
  void running.then(() => progress.wake())
  try {
    while (end === undefined) {
      await progress.next()
      yield* progress.take()
    }
    yield* progress.take()
    if (!signal.aborted) yield end
  } finally {
    // Nothing goes on behind the back of a caller that has left.
    await running
  }
}

const failed = (error: unknown): ImageStep =>
  error instanceof Failure
    ? { step: 'failed', code: error.code, message: error.message }
    : { step: 'failed', code: 'internal_error', message: 'see the log of the node' }
