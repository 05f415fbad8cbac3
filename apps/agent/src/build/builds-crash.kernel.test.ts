// An agent that is killed while it builds leaves nothing but whole cache, whatever it was at.
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { takeInventory } from '@berth/host'
import { afterEach, beforeAll, beforeEach, expect, test } from '@jest/globals'
import { fsck } from '../images/fsck.js'
import { forever } from '../images/store.fixture.js'
import { newNodeDirectory, newTenant } from '../sandbox/node.fixture.js'
import { holdings } from '../sandbox/recovery.js'
import { TestBuilder } from './builds.fixture.js'

const repository = join(import.meta.dirname, '../../../..')
const dockerfile = ['FROM busybox', 'RUN --mount=type=cache,target=/c echo x | tee -a /c/n > /n', 'RUN sleep 0.1'].join(
  '\n',
)

let place: ReturnType<typeof newNodeDirectory>
let builder: TestBuilder | undefined

// The victim is a real process, so it runs what is built; building what is built already takes a moment.
beforeAll(() => {
  execFileSync(join(repository, 'node_modules/.bin/tsc'), ['-b', 'apps/agent'], { cwd: repository })
})
beforeEach(() => {
  place = newNodeDirectory()
})
afterEach(async () => {
  builder ??= await TestBuilder.open(place)
  await builder.close()
  builder = undefined
  const { directory: dataDir, cgroupParent } = place
  const nothing = { processes: [], mounts: [], cgroups: [], loops: [] }
  expect(await takeInventory({ dataDir, cgroupParent })).toMatchObject(nothing)
})

test.each([
  ['step.acquired container', 0],
  ['build.made', 0],
  ['build.kept', 1],
])('killed at %s', async (point, cached) => {
  const tenantId = newTenant()
  const script = join(repository, 'apps/agent/dist/build/builds-crash.fixture.js')
  const victim = spawn(process.execPath, [script, place.directory, place.cgroupParent, point], {
    stdio: ['pipe', 'inherit', 'inherit'],
  })
  victim.stdin.end(JSON.stringify({ tenantId, dockerfile }))
  const [, signal] = await once(victim, 'exit')
  expect(signal).toBe('SIGKILL')

  builder = await TestBuilder.open(place)
  const { containers, layers, groups } = await holdings(builder.node.shop)
  // What a command has written into cache stays, as it does when one fails.
  expect({ containers, groups, layers }).toEqual({
    containers: [],
    groups: [],
    layers: [expect.stringMatching(/^cache_/)],
  })
  expect(readdirSync(join(place.directory, 'agent/builds'))).toEqual([])
  expect((await fsck(builder.images, false, forever)).problems).toEqual([])
  const told = await builder.build(dockerfile, { tenantId })
  expect(told.cached).toHaveLength(cached)
  expect(await builder.file(told.image, '/n')).toBe('x\n')
})
