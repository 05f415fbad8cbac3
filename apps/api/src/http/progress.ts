// progress.ts: an operation that tells what happens → an answer: lines of JSON, or JSON when it is over. What fails
// before anything was told is answered as any failure is.
import { Failure, invariant } from '@berth/contracts'
import type { StreamableFile } from '@nestjs/common'
import { jsonLines } from './lines.js'

interface Asked {
  readonly query: { readonly wait?: 'done' | undefined }
  readonly status: (status: number) => void
  /** Aborted when the client goes. */
  readonly signal: AbortSignal
}

/** What the steps of an operation are as an answer. */
export interface Telling<Step, Done> {
  /** The line that tells of a failure. */
  readonly failed: (failure: Failure) => Step
  /** What the step that ends the operation well answers with `wait=done`; undefined for every other step. */
  readonly done: (step: Step) => Done | undefined
}

/**
 * @param steps a Failure ends them
 * @throws what the first step fails with; with `wait=done` what any does
 */
export async function progressOf<Step extends object, Done>(
  { query, status, signal }: Asked,
  steps: AsyncGenerator<Step | Failure>,
  telling: Telling<Step, Done>,
): Promise<StreamableFile | Done> {
  if (query.wait === undefined) {
    const first = await begun(steps)
    // A client that goes before its answer was begun leaves nobody who would end them.
    signal.addEventListener('abort', () => void steps.return(undefined).catch(() => undefined), { once: true })
    if (signal.aborted) await steps.return(undefined)
    return jsonLines(lines(first, steps, telling))
  }
  for await (const step of steps) {
    if (step instanceof Failure) throw step
    const done = telling.done(step)
    if (done === undefined) continue
    status(201)
    return done
  }
  invariant(false, 'an operation ends with done or a failure')
}

async function begun<Step>(steps: AsyncGenerator<Step | Failure>): Promise<Step> {
  const first = await steps.next()
  invariant(!first.done, 'an operation tells how it ends')
  if (!(first.value instanceof Failure)) return first.value
  await steps.return(undefined)
  throw first.value
}

async function* lines<Step>(
  first: Step,
  more: AsyncGenerator<Step | Failure>,
  { failed }: Pick<Telling<Step, unknown>, 'failed'>,
): AsyncGenerator<Step> {
  try {
    yield first
    for await (const step of more) yield step instanceof Failure ? failed(step) : step
  } catch (error) {
    // After the first line there is no status any more that could tell.
    if (!(error instanceof Failure)) throw error
    yield failed(error)
  } finally {
    await more.return(undefined)
  }
}
