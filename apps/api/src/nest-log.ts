import type { LoggerService } from '@nestjs/common'
import type { Logger } from './tokens.js'

/** Nest's own lines in our form. What it tells of a normal start is for debugging only. */
export class NestLog implements LoggerService {
  constructor(private readonly destination: Logger) {}

  log(message: unknown): void {
    this.destination.debug({ message: String(message) }, 'nest')
  }

  error(message: unknown, stack?: unknown): void {
    this.destination.error({ err: message, message: String(message), stack: String(stack ?? '') }, 'nest.error')
  }

  warn(message: unknown): void {
    this.destination.warn({ message: String(message) }, 'nest.warning')
  }
}
