// dpkg itself decides what its versions' order is.
import { execFileSync } from 'node:child_process'
import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { compareVersions } from './versions.js'

const part = (alphabet: string, maxLength: number) =>
  fc.string({ unit: fc.constantFrom(...alphabet), minLength: 0, maxLength })
const version = fc
  .tuple(fc.constantFrom('', '0:', '1:', '12:'), fc.nat(30), part('0129abZ.+~-', 8), fc.option(part('019aZ.+~', 5)))
  .map(([epoch, first, upstream, revision]) => `${epoch}${first}${upstream}${revision ? `-${revision}` : ''}`)
  .filter((text) => !text.endsWith('-'))

test('any two versions are in the order that dpkg --compare-versions gives them', () => {
  const pairs = fc.sample(fc.tuple(version, version), { numRuns: 150, seed: 7 })
  // Close ones are where the rules matter.
  const close = pairs.map(([a]) => [a, a.replace(/[~+.a]/, (found) => (found === '~' ? '' : `~${found}`))] as const)
  const all = [...pairs, ...close].flatMap(([a, b]) => (a === b || b.endsWith('-') ? [] : [[a, b] as const]))
  const script =
    'while read -r a b; do if dpkg --compare-versions "$a" lt "$b"; then echo lt; elif dpkg --compare-versions "$a" gt "$b"; then echo gt; else echo eq; fi; done'
  const input = all.map(([a, b]) => `${a} ${b}\n`).join('')
  const said = execFileSync('sh', ['-c', script], { input, encoding: 'utf8' }).trim().split('\n')
  const ours = all.map(([a, b]) => ['lt', 'eq', 'gt'][Math.sign(compareVersions('deb', a, b) ?? Number.NaN) + 1])
  expect(all.map((pair, i) => [...pair, ours[i]])).toEqual(all.map((pair, i) => [...pair, said[i]]))
})
