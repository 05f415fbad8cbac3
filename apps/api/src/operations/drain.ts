import { setMaxListeners } from 'node:events'
import { Failure } from '@berth/contracts'
import { Injectable } from '@nestjs/common'

/** Told once that the process is to end: whatever waits for long (long-polls, followed output, loops) ends with it. */
@Injectable()
export class Drain {
  private readonly controller = new AbortController()

  constructor() {
    // Every request that waits listens.
    setMaxListeners(0, this.controller.signal)
  }

  get signal(): AbortSignal {
    return this.controller.signal
  }

  begin(): void {
    this.controller.abort(new Failure('unavailable', 'this process is shutting down; ask again'))
  }
}
