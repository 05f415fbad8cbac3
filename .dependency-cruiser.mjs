// Who may import whom. The direction is apps → libs, and decisions (pure) never reach for the machine.
const lib = (name) => `^libs/${name}/(src|dist)/`
const only = (name, from, allowed, comment) => ({
  name,
  severity: 'error',
  comment,
  from: { path: from },
  to: { path: '^(libs|apps)/', pathNot: [from, '/node_modules/', ...allowed] },
})

export default {
  forbidden: [
    {
      name: 'no-cycles',
      severity: 'error',
      comment: 'A cycle has no order to be read in.',
      from: {},
      to: { circular: true },
    },
    {
      name: 'libs-never-import-apps',
      severity: 'error',
      comment: 'Dependencies point one way.',
      from: { path: '^libs/' },
      to: { path: '^apps/' },
    },
    {
      name: 'apps-never-import-apps',
      severity: 'error',
      comment: 'Apps meet over the network, in terms of contracts.',
      from: { path: '^apps/([^/]+)/' },
      to: { path: '^apps/', pathNot: '^apps/$1/' },
    },
    {
      name: 'libs-meet-through-index',
      severity: 'error',
      comment: 'What index.ts does not export is nobody else’s business.',
      from: { path: '^(libs|apps)/([^/]+)/' },
      to: { path: '^libs/', pathNot: ['^libs/[^/]+/(src/index\\.ts|dist/index\\.(js|d\\.ts))$', '^$1/$2/'] },
    },
    only('contracts-alone', lib('contracts'), [], 'Contracts import zod and nothing of ours.'),
    only('telemetry-alone', lib('telemetry'), [], 'Logs and traces are the same on both sides.'),
    only('domain-on-contracts', lib('domain'), [lib('contracts')], 'Decisions on values.'),
    only('oci-on-contracts', lib('oci'), [lib('contracts')], 'Formats are values.'),
    only(
      'scan-on-contracts',
      lib('scan'),
      [lib('contracts')],
      'What is in an image, and what is known of it, are values.',
    ),
    only('host-on-contracts', lib('host'), [lib('contracts')], 'The one executor knows no policy.'),
    only('node-rpc-on-contracts', lib('node-rpc'), [lib('contracts')], 'Both ends of one wire.'),
    only('queue-on-contracts', lib('queue'), [lib('contracts')], 'The one door to Redis.'),
    only('sdk-on-contracts', lib('sdk'), [lib('contracts')], 'A client needs the routes only.'),
    only('persistence-on-domain', lib('persistence'), [lib('contracts'), lib('domain')], 'The one door to Postgres.'),
    only('console-on-contracts', '^apps/console/', [lib('contracts')], 'It runs in a browser: the SDK does not.'),
    {
      name: 'api-not-host',
      severity: 'error',
      comment: 'The API never touches a kernel: it runs unprivileged.',
      from: { path: '^apps/api/' },
      to: { path: lib('host') },
    },
    {
      name: 'agent-not-persistence',
      severity: 'error',
      comment: 'A node holds no database credentials.',
      from: { path: '^apps/agent/' },
      to: { path: [lib('persistence'), lib('sdk')] },
    },
    {
      name: 'plans-are-pure',
      severity: 'error',
      comment: 'Decide, then act: what to do is a value, so it can be tested by value.',
      from: { path: ['\\.plan\\.ts$', lib('domain'), lib('oci'), lib('scan')], pathNot: '\\.test\\.ts$' },
      to: {
        path: ['^(node:)?(fs|child_process|net|http|https|os|dgram|tls)(/|$)', lib('host'), lib('telemetry')],
        dependencyTypesNot: ['type-only'],
      },
    },
    {
      name: 'one-door-to-postgres',
      severity: 'error',
      comment: 'SQL lives in persistence.',
      from: { path: '^(libs|apps)/', pathNot: lib('persistence') },
      to: { path: 'node_modules/(pg|@prisma)/' },
    },
    {
      name: 'one-door-to-redis',
      severity: 'error',
      comment: 'Keys and their names live in queue; the API’s timers are Nest’s.',
      from: { path: '^(libs|apps)/', pathNot: [lib('queue'), '^apps/api/src/scheduling/'] },
      to: { path: 'node_modules/(ioredis|bullmq)/' },
    },
    {
      name: 'one-door-to-processes',
      severity: 'error',
      comment: 'Everything that spawns goes through host/run, so that argv, limits and errors are the same everywhere.',
      from: {
        path: '^(libs|apps)/',
        pathNot: [lib('host'), '^apps/cli/', '\\.test\\.ts$', '\\.fixture\\.ts$', '^libs/init/'],
      },
      to: { path: '(^(node:)?child_process$|node_modules/node-pty/)' },
    },
  ],
  options: {
    doNotFollow: { path: ['node_modules', '/dist/'] },
    // The swc parser that it brings does not know `using` yet, which tests are fond of, and is not told of JSX.
    exclude: {
      path: [
        '^apps/cli/src/(run|up/up)\\.ts$',
        '^[^/]+/[^/]+/dist/(?!index)',
        'libs/persistence/src/generated/',
        '\\.tsx$',
        '\\.test\\.ts$',
        '\\.contract\\.ts$',
      ],
    },
    tsPreCompilationDeps: true,
    parser: 'swc',
    enhancedResolveOptions: { exportsFields: ['exports'], conditionNames: ['import', 'types', 'default'] },
    moduleSystems: ['es6'],
  },
}
