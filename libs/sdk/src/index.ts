export { type Arguments, type CallOptions, Client, type ClientOptions } from './client.js'
export * from './errors.js'
export * from './streams.js'
