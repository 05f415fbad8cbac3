import type { SandboxId } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import type { LiveSandbox } from './live.js'
import { Upcoming } from './upcoming.js'

/** A sandbox of which nothing but id and state is looked at. */
function sandbox(state: LiveSandbox['state']): { live: LiveSandbox; become(state: LiveSandbox['state']): void } {
  const fields = { id: 'sbx_1' as SandboxId, state }
  const become = (next: LiveSandbox['state']) => {
    fields.state = next
  }
  return { live: fields as LiveSandbox, become }
}

const never = new AbortController().signal

test('one whose command comes later is waited for, and until its run is up', async () => {
  const upcoming = new Upcoming('commands')
  const { live, become } = sandbox('creating')
  let [there, attached] = [false, false]
  const up = upcoming.up(
    () => (there ? live : undefined),
    () => attached,
    never,
  )
  there = true
  upcoming.tell()
  await Promise.resolve()
  become('running')
  attached = true
  upcoming.tell()
  expect(await up).toBe(live)
})

test('a run that is up before its sandbox says so is up', async () => {
  const { live } = sandbox('creating')
  expect(
    await new Upcoming('commands').up(
      () => live,
      () => true,
      never,
    ),
  ).toBe(live)
})

test('one that fails to start, is stopped or paused is refused with its state', async () => {
  const upcoming = new Upcoming('commands')
  const { live, become } = sandbox('creating')
  const up = upcoming.up(
    () => live,
    () => false,
    never,
  )
  become('failed')
  upcoming.tell()
  await expect(up).rejects.toMatchObject({ code: 'wrong_state', data: { state: 'failed' } })
  for (const state of ['stopped', 'paused'] as const) {
    const now = sandbox(state).live
    const attached = () => state === 'paused'
    await expect(upcoming.up(() => now, attached, never)).rejects.toMatchObject({
      code: 'wrong_state',
      data: { state },
    })
  }
})

test('a caller that goes is not kept waiting', async () => {
  const upcoming = new Upcoming('commands')
  const caller = new AbortController()
  const up = upcoming.up(
    () => undefined,
    () => false,
    caller.signal,
  )
  caller.abort()
  await expect(up).rejects.toMatchObject({ code: 'sandbox_not_found' })
})
