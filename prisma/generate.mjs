// Makes Prisma's client from schema.prisma, only when the schema is newer than what was made from it.
//
// `prisma generate` insists on a schema-engine binary, which is downloaded at install time and not at all on machines
// without a way out, though generating is done by WebAssembly and never starts it (measured with 7.10: 46 ms). Any
// file that exists satisfies the check.
import { spawnSync } from 'node:child_process'
import { statSync } from 'node:fs'
import { join } from 'node:path'

const root = join(import.meta.dirname, '..')
const schema = join(root, 'prisma/schema.prisma')
const made = join(root, 'libs/persistence/src/generated/client.ts')

const modified = (path) => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0

if (modified(made) < modified(schema)) {
  const { status } = spawnSync(process.execPath, [join(root, 'node_modules/prisma/build/index.js'), 'generate'], {
    cwd: root,
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { PRISMA_SCHEMA_ENGINE_BINARY: process.execPath, ...process.env, CHECKPOINT_DISABLE: '1' },
  })
  if (status !== 0 || modified(made) < modified(schema)) {
    process.stderr.write('prisma generate failed\n')
    process.exitCode = 1
  }
}
