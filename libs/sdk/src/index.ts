export { ApiError, type Arguments, apiError, isErrorCode, Unreachable } from '@berth/contracts'
export { type CallOptions, Client, type ClientOptions } from './client.js'
export * from './streams.js'
