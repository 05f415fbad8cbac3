import { type SandboxDesired, type SandboxState, sandboxStates } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { nodeId } from './sandbox.fixture.js'
import { waitIsOver } from './sandbox-wait.js'

// For each wanted state, the states (with what is wanted) in which a wait for it is over.
const cases: readonly (readonly [SandboxState, SandboxDesired])[] = [
  ['creating', 'running'],
  ['running', 'running'],
  ['running', 'paused'],
  ['running', 'stopped'],
  ['paused', 'paused'],
  ['paused', 'running'],
  ['stopped', 'stopped'],
  ['failed', 'stopped'],
  ['lost', 'running'],
  ['lost', 'stopped'],
  ['deleted', 'deleted'],
]

test.each<[SandboxState, string]>([
  ['creating', '+ + + + + + + + + + +'],
  ['running', '. + + + + . + + . + +'],
  ['paused', '+ + . + + + + + + + +'],
  ['stopped', '. . . . . . + + . . +'],
  ['failed', '. . . . . . + + . . +'],
  ['lost', '. . . . . . . . + + +'],
  ['deleted', '. . . . . . . . . . +'],
])('waiting for %s', (wanted, row) => {
  const over = cases.map(([state, desired]) => {
    return waitIsOver({ state, desired, nodeId, reason: null }, wanted) ? '+' : '.'
  })
  expect(over.join(' ')).toBe(row)
})

test('one that is lost for good comes to nothing but its deletion', () => {
  const lost = { state: 'lost', desired: 'stopped', nodeId: null, reason: null } as const
  expect(sandboxStates.filter((wanted) => !waitIsOver(lost, wanted))).toEqual(['deleted'])
})
