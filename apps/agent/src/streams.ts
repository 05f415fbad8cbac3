// streams.ts: what the API may ask of this node besides commands, one line an action.
import type { Readable } from 'node:stream'
import { Failure } from '@berth/contracts'
import type { OutputRequest, ServeOptions } from '@berth/node-rpc'
import type { Logger } from '@berth/telemetry'
import { buildHandler } from './build/build-handler.js'
import type { Builds } from './build/builds.js'
import { execHandler } from './exec/exec-handler.js'
import type { Execs } from './exec/execs.js'
import { Files } from './files/files.js'
import { filesHandler } from './files/files-handler.js'
import { type ImageParts, imagesHandler } from './images/images-handler.js'
import type { Journal } from './journal.js'
import { readOutput } from './logs/store.js'
import { type ObservationParts, observationHandler } from './observation/observation-handler.js'
import type { HeldSnapshots } from './sandbox/held-snapshots.js'
import type { Residents } from './sandbox/residents.js'
import { signalHandler } from './sandbox/signal-handler.js'
import { snapshotHandler } from './sandbox/snapshot-handler.js'
import type { SnapshotImages } from './sandbox/snapshot-images.js'
import type { Supervisor } from './sandbox/supervisor.js'
import { terminalHandler } from './terminals/terminal-handler.js'
import type { Terminals } from './terminals/terminals.js'

export interface StreamParts {
  readonly journal: Journal
  readonly supervisor: Pick<Supervisor, 'output'>
  readonly residents: Residents
  readonly execs: Execs
  readonly terminals: Terminals
  readonly observation: Omit<ObservationParts, 'find'>
  readonly images: ImageParts
  readonly snapshots: { readonly images: SnapshotImages; readonly held: HeldSnapshots }
  readonly builds: Builds
  readonly log: Logger
}

/** The handlers of `serveStreams`. */
export function streamHandlers(parts: StreamParts): Pick<ServeOptions, 'output' | 'sandbox' | 'node'> {
  const { residents, execs, terminals, observation, log } = parts
  return {
    output: (call) => call.bytes(attemptOutput(parts, call.wanted, call.signal)),
    sandbox: {
      execs: execHandler(
        {
          of: (id) => execs.of(residents.find(id)),
          up: (id, signal) => execs.up(() => residents.get(id), signal),
        },
        log,
      ),
      terminals: terminalHandler({
        of: (id) => terminals.of(residents.find(id)),
        up: (id, signal) => terminals.up(() => residents.get(id), signal),
      }),
      files: filesHandler(new Files({ lease: (id) => residents.lease(id), log })),
      signal: signalHandler(residents),
      observation: observationHandler({ find: (id) => residents.find(id), ...observation }),
      snapshot: snapshotHandler({ residents, ...parts.snapshots, taking: parts.images }),
    },
    node: { images: imagesHandler(parts.images), builds: buildHandler(parts.builds) },
  }
}

/**
 * The output of an attempt. While it lives its files grow, and a follower waits for more; afterwards they are just
 * files.
 * @throws Failure output_gone when nothing is kept of it
 */
export function attemptOutput(
  { journal, supervisor }: Pick<StreamParts, 'journal' | 'supervisor'>,
  { attemptId, stream, since, follow }: OutputRequest,
  signal: AbortSignal,
): Readable {
  const live = supervisor.output(attemptId, stream)
  if (!journal.locate(attemptId)) throw new Failure('output_gone', `nothing is kept of attempt ${attemptId}`)
  // Asked for when the file is opened: until then the directory may still move to where ended attempts are kept.
  const path = () => journal.locate(attemptId)?.[stream]
  return readOutput({ path, live, since, follow, signal })
}
