import * as build from './build.js'
import * as event from './event.js'
import * as exec from './exec.js'
import * as file from './file.js'
import * as image from './image.js'
import * as imageScan from './image-scan.js'
import * as job from './job.js'
import * as node from './node.js'
import * as observation from './observation.js'
import type { Route } from './route.js'
import * as sandbox from './sandbox.js'
import * as session from './session.js'
import * as snapshot from './snapshot.js'
import * as template from './template.js'
import * as tenant from './tenant.js'
import * as terminal from './terminal.js'

export * from './build.js'
export * from './build-node.js'
export * from './build-text.js'
export * from './command.js'
export * from './errors.js'
export * from './event.js'
export * from './exec.js'
export * from './file.js'
export * from './ids.js'
export * from './image.js'
export * from './image-node.js'
export * from './image-scan.js'
export * from './job.js'
export * from './node.js'
export * from './observation.js'
export * from './openapi.js'
export * from './process.js'
export * from './report.js'
export * from './request.js'
export * from './route.js'
export * from './sandbox.js'
export * from './session.js'
export * from './snapshot.js'
export * from './template.js'
export * from './tenant.js'
export * from './terminal.js'
export * from './units.js'

const isRoute = (value: unknown): value is Route =>
  typeof value === 'object' && value !== null && 'scope' in value && 'path' in value && 'method' in value

/** Every route of the API, in the order of the document. */
export const routes: readonly Route[] = [
  job,
  sandbox,
  snapshot,
  exec,
  terminal,
  file,
  observation,
  event,
  image,
  template,
  build,
  imageScan,
  tenant,
  session,
  node,
].flatMap((resource) => Object.values(resource).filter(isRoute))
