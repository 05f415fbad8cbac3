export * from './repositories.js'
