import { expect, test } from '@jest/globals'
import { describeConfig, InvalidConfig, readConfig, Secret } from './config.js'

const least = { DATABASE_URL: 'postgresql://u:hunter2@h/db', REDIS_URL: 'redis://:hunter2@h:6379' }

test('two addresses are enough, the rest has defaults', () => {
  const config = readConfig(least)
  expect(config).toMatchObject({ BERTH_API_HOST: '127.0.0.1', BERTH_API_PORT: 7433, LOG_LEVEL: 'info' })
  expect(config.DATABASE_URL.reveal()).toBe(least.DATABASE_URL)
  expect(Object.isFrozen(config)).toBe(true)
})

test('every problem is told at once, by variable and without values', () => {
  const env = {
    DATABASE_URL: 'mysql://u:hunter2@h',
    BERTH_API_PORT: '70000',
    LOG_LEVEL: 'loud',
    BERTH_OPERATOR_KEY: 'hunter2',
  }
  const read = () => readConfig(env)
  expect(read).toThrow(InvalidConfig)
  for (const name of ['DATABASE_URL', 'REDIS_URL: is needed', 'BERTH_API_PORT', 'LOG_LEVEL', 'BERTH_OPERATOR_KEY'])
    expect(read).toThrow(name)
  expect(read).not.toThrow('hunter2')
})

test('an empty variable is one that is not given', () => {
  expect(readConfig({ ...least, BERTH_API_PORT: '', BERTH_OPERATOR_KEY: '' })).toMatchObject({ BERTH_API_PORT: 7433 })
})

test.each(['unix:///run/redis.sock', 'redis+unix://:pw@/run/redis.sock', 'rediss://h:1/2'])('%s is a Redis', (url) => {
  expect(readConfig({ ...least, REDIS_URL: url }).REDIS_URL.reveal()).toBe(url)
})

test('a public address is an origin, and proxies are addresses or networks', () => {
  const config = readConfig({
    ...least,
    BERTH_PUBLIC_URL: 'https://Berth.example/console',
    BERTH_TRUSTED_PROXIES: '10.0.0.0/8, ::1',
  })
  expect(config.BERTH_PUBLIC_URL).toBe('https://berth.example')
  expect(config.BERTH_TRUSTED_PROXIES).toEqual(['10.0.0.0/8', '::1'])
  expect(() => readConfig({ ...least, BERTH_PUBLIC_URL: 'berth.example' })).toThrow('BERTH_PUBLIC_URL')
  expect(() => readConfig({ ...least, BERTH_TRUSTED_PROXIES: 'proxy.example' })).toThrow('BERTH_TRUSTED_PROXIES')
})

test('what is printed names each option, its value and its purpose, and no secret', () => {
  const text = describeConfig(readConfig(least))
  expect(text).toContain('BERTH_API_PORT=7433\n    Port to listen on')
  expect(text).toContain('DATABASE_URL=[redacted]')
  expect(text).not.toContain('hunter2')
})

test('a secret does not show in any text', () => {
  const secret = new Secret('hunter2')
  expect(`${secret} ${JSON.stringify({ secret })} ${Object.values(secret)}`).not.toContain('hunter2')
})

test('registries are listed by host and port, mirrors by registry', () => {
  const config = readConfig({
    ...least,
    BERTH_REGISTRY_MIRRORS: 'docker.io=https://mirror.local, http://10.0.0.5:5000; ghcr.io=https://other',
    BERTH_INSECURE_REGISTRIES: '127.0.0.1:5000, registry',
  })
  expect(config.BERTH_REGISTRY_MIRRORS).toEqual({
    'docker.io': ['https://mirror.local', 'http://10.0.0.5:5000'],
    'ghcr.io': ['https://other'],
  })
  expect(config.BERTH_INSECURE_REGISTRIES).toEqual(['127.0.0.1:5000', 'registry'])
  expect(config.BERTH_PRIVATE_REGISTRIES).toEqual([])
  expect(describeConfig(config)).toContain('BERTH_REGISTRY_MIRRORS={"docker.io":["https://mirror.local",')
})

test.each(['docker.io', 'docker.io=mirror', 'docker.io=https://m/path', '=https://m', 'a=https://m=b', 'docker.io='])(
  'mirrors are not %s',
  (text) => expect(() => readConfig({ ...least, BERTH_REGISTRY_MIRRORS: text })).toThrow('BERTH_REGISTRY_MIRRORS'),
)

test.each(['http://registry', 'registry/path', 'a,,b', 'Upper'])('an insecure registry is not %s', (text) =>
  expect(() => readConfig({ ...least, BERTH_INSECURE_REGISTRIES: text })).toThrow('BERTH_INSECURE_REGISTRIES'),
)

test('a policy that refuses images by what is known of them needs to be told what is known', () => {
  expect(() => readConfig({ ...least, BERTH_IMAGE_POLICY: 'refuse' })).toThrow('BERTH_VULNERABILITIES: is needed')
  const config = readConfig({
    ...{ ...least, BERTH_IMAGE_POLICY: 'refuse', BERTH_VULNERABILITIES: '/srv/osv' },
    ...{ BERTH_IMAGE_POLICY_SEVERITY: 'high', BERTH_IMAGE_POLICY_EXEMPT: 'CVE-2025-1, GHSA-x' },
  })
  expect(config).toMatchObject({
    ...{ BERTH_IMAGE_POLICY_SEVERITY: 'high', BERTH_IMAGE_POLICY_FIXABLE_ONLY: false },
    BERTH_IMAGE_POLICY_EXEMPT: ['CVE-2025-1', 'GHSA-x'],
  })
  expect(readConfig(least)).toMatchObject({ BERTH_IMAGE_POLICY: 'off', BERTH_IMAGE_POLICY_SEVERITY: 'critical' })
})
