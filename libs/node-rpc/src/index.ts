export { bodyOf, lingerAfter, wholeOf } from './body.js'
export { type AnswerHead, NodeCall, OutputCall, RestCall } from './call.js'
export * from './certificate.js'
export * from './client.js'
export * from './server.js'
export { closeCodes, closeOf, closeSocket, isWebSocket, MAX_MESSAGE, SocketAcceptor, type WebSocket } from './socket.js'
export { GRANT_LIFETIME_MS, type Grant, Grants, newGrantKeys } from './token.js'
export {
  type NodeAction,
  nodePath,
  type OutputRequest,
  outputPath,
  type Query,
  type SandboxAction,
  sandboxPath,
} from './wire.js'
