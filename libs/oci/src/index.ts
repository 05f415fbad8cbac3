export * from './profile.js'
export * from './runtime-spec.js'
