import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { layerAction } from './layer.js'

test.each([
  [
    { name: './', type: 'directory' },
    { kind: 'root', path: '' },
  ],
  [
    { name: './usr/bin/', type: 'directory' },
    { kind: 'directory', path: 'usr/bin' },
  ],
  [
    { name: '/etc/passwd', type: 'file' },
    { kind: 'file', path: 'etc/passwd' },
  ],
  [
    { name: 'bin', type: 'symlink', linkname: 'usr/bin' },
    { kind: 'symlink', path: 'bin', target: 'usr/bin' },
  ],
  [
    { name: 'a', type: 'symlink', linkname: '../../x' },
    { kind: 'symlink', path: 'a', target: '../../x' },
  ],
  [
    { name: 'b', type: 'link', linkname: './a' },
    { kind: 'hardlink', path: 'b', target: 'a' },
  ],
  [
    { name: 'etc/.wh.motd', type: 'file' },
    { kind: 'whiteout', path: 'etc/motd' },
  ],
  [
    { name: '.wh.x', type: 'file' },
    { kind: 'whiteout', path: 'x' },
  ],
  [
    { name: 'etc/.wh..wh..opq', type: 'file' },
    { kind: 'opaque', path: 'etc' },
  ],
])('%j', (entry, action) => expect(layerAction(entry)).toEqual(action))

test.each([
  [{ name: '../x', type: 'file' }, '..'],
  [{ name: 'a/../../x', type: 'file' }, '..'],
  [{ name: 'a\0b', type: 'file' }, 'NUL'],
  [{ name: 'b', type: 'link', linkname: '../../etc/shadow' }, '..'],
  [{ name: 'sda', type: 'block-device' }, 'device'],
  [{ name: 'null', type: 'character-device' }, 'device'],
  [{ name: '.wh...', type: 'file' }, 'hides nothing'],
  [{ name: '.wh.', type: 'file' }, 'hides nothing'],
  [{ name: 'x', type: 'weird' }, 'kind'],
])('%j is refused', (entry, why) => expect(() => layerAction(entry)).toThrow(why))

test('no name leads out of the root', () => {
  fc.assert(
    fc.property(fc.string(), fc.constantFrom('file', 'directory', 'symlink'), (name, type) => {
      try {
        const { path } = layerAction({ name, type, linkname: 'x' })
        expect(path.split('/')).not.toContain('..')
        expect(path.startsWith('/')).toBe(false)
      } catch (error) {
        expect(String(error)).toContain('LayerRefused')
      }
    }),
  )
})
