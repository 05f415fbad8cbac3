// progress.ts: an operation that tells what happens → an answer: lines of JSON, or JSON when it is over. What fails
// before anything was told is answered as any failure is.
import { Failure, type Image, type ImageProgress, invariant } from '@berth/contracts'
import type { StreamableFile } from '@nestjs/common'
import { jsonLines } from '../http/lines.js'
import type { Step } from './transfers.service.js'

interface Asked {
  readonly query: { readonly wait?: 'done' | undefined }
  readonly status: (status: number) => void
  /** Aborted when the client goes. */
  readonly signal: AbortSignal
}

/** @throws what the first step fails with; with `wait=done` what any does */
export async function progressOf(
  { query, status, signal }: Asked,
  steps: AsyncGenerator<Step>,
): Promise<StreamableFile | { images: Image[] }> {
  if (query.wait === undefined) {
    const first = await begun(steps)
    // A client that goes before its answer was begun leaves nobody who would end them.
    signal.addEventListener('abort', () => void steps.return(undefined).catch(() => undefined), { once: true })
    if (signal.aborted) await steps.return(undefined)
    return jsonLines(lines(first, steps))
  }
  for await (const step of steps) {
    if (step instanceof Failure) throw step
    if (step.step !== 'done') continue
    status(201)
    return { images: step.images }
  }
  invariant(false, 'an operation ends with done or a failure')
}

async function begun(steps: AsyncGenerator<Step>): Promise<Step> {
  const first = await steps.next()
  invariant(!first.done, 'an operation tells how it ends')
  if (!(first.value instanceof Failure)) return first.value
  await steps.return(undefined)
  throw first.value
}

async function* lines(first: Step, more: AsyncGenerator<Step>): AsyncGenerator<ImageProgress> {
  try {
    yield lineOf(first)
    for await (const step of more) yield lineOf(step)
  } catch (error) {
    // After the first line there is no status any more that could tell.
    if (!(error instanceof Failure)) throw error
    yield lineOf(error)
  } finally {
    await more.return(undefined)
  }
}

const lineOf = (step: Step): ImageProgress =>
  step instanceof Failure ? { step: 'failed', code: step.code, message: step.message } : step
