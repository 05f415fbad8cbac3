export { openDatabase } from './database.js'
export { migrate } from './migrate.js'
export * from './repositories.js'
export { OutcomeUnknown, type StoreOptions } from './store.js'
