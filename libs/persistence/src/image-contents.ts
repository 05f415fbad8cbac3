// image-contents.ts: what is installed in images, kept so that each is read once. It is a cache: a row that is missing is
// read again from a node. The node that told a row is believed for as long as it is one: its rows go with it.
import type { KnownContents, ToldContents } from './repositories.js'
import type { Statement, Store } from './store.js'

/** Most bytes of one image's contents that are kept; what has more is read again each time. */
const MAX_BYTES = 512 * 1024
/** So many images are kept, those that were read last: 2 GiB at most. */
const MAX_ROWS = 4096

const read: Statement = {
  name: 'image_contents',
  text: 'SELECT packed, node_id AS "nodeId" FROM image_contents WHERE digest = $1 AND format = $2',
}
// A node may be removed while it tells: then nothing is kept.
const write: Statement = {
  name: 'put_image_contents',
  text: `INSERT INTO image_contents (digest, format, packed, read_at, node_id)
         SELECT $1, $2, $3, $4, n.id FROM nodes n WHERE n.id = $5 FOR KEY SHARE
         ON CONFLICT (digest) DO UPDATE SET format = excluded.format, packed = excluded.packed,
           read_at = excluded.read_at, node_id = excluded.node_id`,
}
const trim: Statement = {
  name: 'trim_image_contents',
  text: `DELETE FROM image_contents WHERE digest IN (
           SELECT digest FROM image_contents ORDER BY read_at DESC, digest OFFSET $1)`,
}

export const openImageContents = (store: Store, maxRows = MAX_ROWS): KnownContents => ({
  get: async (digest, format) => (await store.rows<ToldContents>(read, [digest, format]))[0],
  put: async (digest, format, { packed, nodeId }) => {
    if (packed.length > MAX_BYTES) return
    await store.rows(write, [digest, format, packed, store.clock.now(), nodeId])
    await store.rows(trim, [maxRows])
  },
})
