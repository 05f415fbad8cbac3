export { openDatabase } from './database.js'
export { migrate } from './migrate.js'
export * from './repositories.js'
export type { StoreOptions } from './store.js'
