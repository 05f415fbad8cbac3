export * from './consumer.js'
export * from './node-queue.js'
export { parseRedisUrl, type QueueLog, type RedisAddress, withoutCredentials } from './redis.js'
