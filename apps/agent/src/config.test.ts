import { describe, expect, test } from '@jest/globals'
import { describeConfig, InvalidConfig, readConfig } from './config.js'

const needed = { BERTH_API_URL: 'http://127.0.0.1:7433', BERTH_NODE_TOKEN: 'brn_0123456789abcdef' }

describe('readConfig', () => {
  test('two variables are enough', () => {
    const config = readConfig(needed)
    expect(config.BERTH_CGROUP_PARENT).toBe('berth')
    expect(config.BERTH_RUNTIME).toBe('auto')
    expect(config.BERTH_INIT_DIR).toMatch(/libs\/init\/build$/)
    expect(config.BERTH_CAPACITY_MEMORY).toBeUndefined()
  })

  test('sizes have units, and an empty variable is none', () => {
    const config = readConfig({ ...needed, BERTH_CAPACITY_MEMORY: '2g', BERTH_CAPACITY_CPUS: '' })
    expect(config.BERTH_CAPACITY_MEMORY).toBe(2 * 1024 ** 3)
    expect(config.BERTH_CAPACITY_CPUS).toBeUndefined()
  })

  test('every problem is told at once, and no value', () => {
    const bad = {
      BERTH_NODE_TOKEN: 'short-secret',
      BERTH_AGENT_DATA: 'relative',
      BERTH_CGROUP_PARENT: '../escape',
      BERTH_CAPACITY_DISK: 'much',
    }
    const problems = problemsOf(bad)
    expect(problems.map((line) => line.split(':')[0]).sort()).toEqual(['BERTH_API_URL', ...Object.keys(bad)].sort())
    expect(problems.join()).not.toContain('short-secret')
  })

  test('the token is never printed', () => {
    const config = readConfig(needed)
    expect(describeConfig(config)).toContain('BERTH_NODE_TOKEN=[redacted]')
    expect(JSON.stringify(config)).not.toContain(needed.BERTH_NODE_TOKEN)
  })
})

function problemsOf(env: Record<string, string>): readonly string[] {
  try {
    readConfig(env)
  } catch (error) {
    if (error instanceof InvalidConfig) return error.problems
    throw error
  }
  throw new Error('accepted')
}
