// image-contents.ts: what is installed in images, kept so that each is read once. It is a cache: a row that is missing is
// read again from a node.
import type { KnownContents } from './repositories.js'
import type { Statement, Store } from './store.js'

/** Most bytes of one image's contents that are kept; what has more is read again each time. */
const MAX_BYTES = 512 * 1024
/** So many images are kept, those that were read last: 2 GiB at most. */
const MAX_ROWS = 4096

const read: Statement = {
  name: 'image_contents',
  text: 'SELECT packed FROM image_contents WHERE digest = $1 AND format = $2',
}
const write: Statement = {
  name: 'put_image_contents',
  text: `INSERT INTO image_contents (digest, format, packed, read_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (digest) DO UPDATE SET format = excluded.format, packed = excluded.packed,
           read_at = excluded.read_at`,
}
const trim: Statement = {
  name: 'trim_image_contents',
  text: `DELETE FROM image_contents WHERE digest IN (
           SELECT digest FROM image_contents ORDER BY read_at DESC, digest OFFSET $1)`,
}

export const openImageContents = (store: Store, maxRows = MAX_ROWS): KnownContents => ({
  get: async (digest, format) => (await store.rows<{ packed: Buffer }>(read, [digest, format]))[0]?.packed,
  put: async (digest, format, packed) => {
    if (packed.length > MAX_BYTES) return
    await store.rows(write, [digest, format, packed, store.clock.now()])
    await store.rows(trim, [maxRows])
  },
})
