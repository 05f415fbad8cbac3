// npm run bench: measures a running Berth (`./berth up`) and writes docs/benchmarks.md.
//
//   npm run bench                    every section
//   npm run bench -- jobs batch      these; the others stay as they are
//
// A new benchmark is a file of its own and a line in `sections`.
import { readFileSync, writeFileSync } from 'node:fs'
import { cpus, release, totalmem } from 'node:os'
import { resolve } from 'node:path'
import { ignore } from '@berth/contracts'
import { batch } from './batch.js'
import { builds } from './builds.js'
import { withSections } from './document.js'
import { execs } from './execs.js'
import { files } from './files.js'
import { idle } from './idle.js'
import { installation } from './installation.js'
import { jobs } from './jobs.js'
import { sandboxes } from './sandboxes.js'
import { type Section, say } from './section.js'
import { snapshots } from './snapshots.js'
import { terminals } from './terminals.js'
import { transfers } from './transfers.js'

const sections: readonly Section[] = [
  jobs,
  batch,
  sandboxes,
  execs,
  terminals,
  files,
  transfers,
  builds,
  snapshots,
  idle,
]

const file = resolve(import.meta.dirname, '../../docs/benchmarks.md')
const names = sections.map(({ name }) => name)
const wanted = process.argv.slice(2)
const unknown = wanted.filter((name) => !names.includes(name))
if (unknown.length > 0) {
  process.stderr.write(`bench: no section ${unknown.join(', ')}; there are ${names.join(', ')}\n`)
  process.exit(2)
}

const at = installation(process.env.BERTH_DATA || '/var/lib/berth')
for (const section of sections.filter(({ name }) => wanted.length === 0 || wanted.includes(name))) {
  say(section.title)
  const body = await section.measure(at)
  // Written one by one: what was measured is kept even if the next fails.
  const written = { ...section, body, circumstances: circumstances(section.name) }
  writeFileSync(file, withSections(readDocument(), [written], names))
}

function readDocument(): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    return ignore(error, 'ENOENT') ?? ''
  }
}

function circumstances(name: string): string {
  const memory = Math.round(totalmem() / 1024 ** 3)
  const machine = `${cpus().length} × ${cpus()[0]?.model.trim() ?? 'unknown'}, ${memory} GiB, Linux ${release()}`
  const day = new Date().toISOString().slice(0, 10)
  return `\`npm run bench -- ${name}\`, ${day}; ${machine}, Node ${process.versions.node}.`
}
