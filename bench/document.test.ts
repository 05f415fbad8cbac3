import { expect, test } from '@jest/globals'
import { withSections } from './document.js'

const order = ['jobs', 'batch']
const section = (name: string, body: string) => ({ name, title: `About ${name}`, circumstances: 'Here, now.', body })

test('sections stand in their order, whichever was measured first', () => {
  const first = withSections('', [section('batch', 'two')], order)
  const both = withSections(first, [section('jobs', 'one')], order)
  expect(both.indexOf('one')).toBeGreaterThan(0)
  expect(both.indexOf('two')).toBeGreaterThan(both.indexOf('one'))
  expect(both).toBe(withSections('', [section('jobs', 'one'), section('batch', 'two')], order))
})

test('a section that is measured again replaces its former self and nothing else', () => {
  const before = withSections('', [section('jobs', 'old'), section('batch', 'kept')], order)
  const after = withSections(before, [section('jobs', 'new')], order)
  expect(after).toBe(before.replace('old', 'new'))
})

test('what is no section any more goes', () => {
  const before = withSections('', [section('gone', 'old')], ['gone'])
  expect(withSections(before, [], order)).not.toContain('old')
})
