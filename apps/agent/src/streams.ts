// streams.ts: the output of attempts, for the API to read. While an attempt lives its files grow, and a follower waits
// for more; afterwards they are just files.

import type { Readable } from 'node:stream'
import type { AttemptId, OutputStream } from '@berth/contracts'
import type { Journal } from './journal.js'
import { readOutput } from './logs/store.js'
import type { Supervisor } from './sandbox/supervisor.js'

/** @returns how `node-rpc` opens a stream; undefined from it when nothing is kept of the attempt */
export function outputOpener(journal: Journal, supervisor: Pick<Supervisor, 'output'>) {
  return (
    id: AttemptId,
    stream: OutputStream,
    since: number,
    follow: boolean,
    signal: AbortSignal,
  ): Readable | undefined => {
    const live = supervisor.output(id, stream)
    if (!journal.locate(id)) return undefined
    // Asked for when the file is opened: until then the directory may still move to where ended attempts are kept.
    const path = () => journal.locate(id)?.[stream]
    return readOutput({ path, live, since, follow, signal })
  }
}
