import { Failure } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { routeTo } from './registry.plan.js'

const nothing = { BERTH_REGISTRY_MIRRORS: {}, BERTH_INSECURE_REGISTRIES: [], BERTH_PRIVATE_REGISTRIES: [] }

describe('by default', () => {
  test.each([
    ['docker.io', 'https://registry-1.docker.io'],
    ['ghcr.io', 'https://ghcr.io'],
    ['registry.example.com:5000', 'https://registry.example.com:5000'],
  ])('%s is spoken to at %s, at public addresses only', (registry, endpoint) =>
    expect(routeTo(registry, nothing, 'pull')).toEqual({ endpoints: [endpoint], privateAddresses: false }),
  )

  test.each([
    ...[
      'localhost',
      'localhost:5000',
      'registry',
      'registry:5000',
      '127.0.0.1',
      '127.0.0.1:5000',
      '10.1.2.3',
      '169.254.169.254',
    ],
    ...[
      '0x7f.1',
      '2130706433',
      '0177.0.0.1:80',
      'a.localhost',
      'db.internal',
      'printer.local',
      '8.8.8.8',
      'x.example:99999',
    ],
  ])('%s is refused', (registry) => {
    const refused = () => routeTo(registry, nothing, 'pull')
    expect(refused).toThrow(Failure)
    expect(refused).toThrow('is not public')
  })
})

describe('listed by the operator', () => {
  test('an insecure one is spoken to by http', () => {
    const listed = { ...nothing, BERTH_INSECURE_REGISTRIES: ['127.0.0.1:5000'] }
    expect(routeTo('127.0.0.1:5000', listed, 'pull')).toEqual({
      ...{ endpoints: ['http://127.0.0.1:5000'], privateAddresses: true },
    })
    expect(() => routeTo('127.0.0.1:5001', listed, 'pull')).toThrow('is not public')
  })

  test('a private one by https, wherever it is', () => {
    const listed = { ...nothing, BERTH_PRIVATE_REGISTRIES: ['registry'] }
    expect(routeTo('registry', listed, 'push')).toEqual({ endpoints: ['https://registry'], privateAddresses: true })
  })

  test('mirrors come first when pulling, and are not pushed to', () => {
    const listed = { ...nothing, BERTH_REGISTRY_MIRRORS: { 'docker.io': ['http://10.0.0.5:5000', 'https://m'] } }
    const own = 'https://registry-1.docker.io'
    expect(routeTo('docker.io', listed, 'pull').endpoints).toEqual(['http://10.0.0.5:5000', 'https://m', own])
    expect(routeTo('docker.io', listed, 'push').endpoints).toEqual([own])
    expect(routeTo('ghcr.io', listed, 'pull').privateAddresses).toBe(false)
  })
})
