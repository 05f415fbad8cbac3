// Three projects: `unit` is pure and runs in seconds, `kernel` needs root and a real kernel, `system` starts the
// whole product as processes and talks to its public faces. Sources are run as TypeScript; the built product (dist)
// is only used by `system`.
const base = {
  testEnvironment: 'node',
  rootDir: import.meta.dirname,
  extensionsToTreatAsEsm: ['.ts'],
  transform: {
    '^.+\\.ts$': [
      '@swc/jest',
      {
        jsc: {
          parser: { syntax: 'typescript', decorators: true },
          transform: { legacyDecorator: true, decoratorMetadata: true },
          target: 'es2022',
        },
        module: { type: 'es6' },
        sourceMaps: 'inline',
      },
    ],
  },
  moduleNameMapper: {
    '^@berth/([a-z-]+)$': '<rootDir>/libs/$1/src/index.ts',
    '^fast-check$': '<rootDir>/test/support/chance.ts',
    '^(\\.{1,2}/.*)\\.js$': '$1',
  },
  modulePathIgnorePatterns: ['<rootDir>/.*/dist/'],
}
// On a real kernel, real time passes: see the file for why a test may be tried again.
const real = { ...base, setupFilesAfterEnv: ['<rootDir>/test/support/retries.ts'] }
export default {
  testTimeout: 120_000,
  projects: [
    {
      ...base,
      displayName: 'unit',
      testMatch: ['<rootDir>/{libs,apps,bench}/**/*.test.ts'],
      testPathIgnorePatterns: ['\\.kernel\\.test\\.ts$', '/node_modules/', '/dist/'],
    },
    { ...real, displayName: 'kernel', testMatch: ['<rootDir>/{libs,apps}/**/*.kernel.test.ts'] },
    {
      ...real,
      displayName: 'system',
      testMatch: ['<rootDir>/test/**/*.test.ts'],
      globalSetup: '<rootDir>/test/support/dist/setup.js',
      globalTeardown: '<rootDir>/test/support/dist/teardown.js',
    },
  ],
}
