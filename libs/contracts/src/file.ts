import { z } from 'zod'
import { AbsolutePath, Group, User } from './process.js'
import { Flag, route, Time } from './route.js'
import { sandboxParams } from './sandbox.js'

/** A permission mode, octal text as chmod(1) takes it. */
const FileMode = z
  .string()
  .regex(/^[0-7]{3,4}$/, 'must be an octal mode such as "644"')
  .transform((text) => Number.parseInt(text, 8))

export const FileKind = z.enum(['file', 'directory', 'symlink', 'fifo', 'socket', 'block', 'char'])

/** What lstat(2) tells of a path, ids as the sandbox sees them. */
export const FileStat = z.object({
  path: z.string(),
  name: z.string(),
  kind: FileKind,
  sizeBytes: z.number().int(),
  mode: z.string().describe('Octal, e.g. `0644`'),
  uid: z.number().int(),
  gid: z.number().int(),
  links: z.number().int(),
  modifiedAt: Time,
  target: z.string().nullable().describe('Of a symbolic link'),
  nameBase64: z
    .string()
    .nullable()
    .describe(
      'The exact bytes of `name`, where they are no UTF-8. `path`, `name` and `target` hold U+FFFD for what is none: such ' +
        'an entry is reached by a command, in an archive, or with the directory above it',
    ),
})
export type FileStat = z.infer<typeof FileStat>

/** Something that happened below a watched directory. */
export const FileEvent = z.object({
  type: z
    .enum(['ready', 'created', 'modified', 'attributes', 'removed', 'renamed', 'overflow', 'gone'])
    .describe(
      '`ready`: from now on. `overflow`: events were lost below the path, read it again. `gone`: the watched directory ' +
        'itself was removed or renamed, and the stream ends',
    ),
  path: z.string(),
  from: z.string().nullable().describe('Of `renamed`: the path before, where it is known'),
  directory: z.boolean(),
})
export type FileEvent = z.infer<typeof FileEvent>

/** Whose rights count. */
const as = { user: User.optional().describe("With whose rights. Default: the sandbox's user") }
const path = AbsolutePath

const reading = { method: 'GET', rate: 'read', scope: 'sandboxes:read', tag: 'files', params: sandboxParams } as const
const writing = {
  rate: 'write',
  scope: 'sandboxes:write',
  tag: 'files',
  params: sandboxParams,
  idempotency: 'none',
} as const
const missing = ['sandbox_not_found', 'wrong_state', 'node_unreachable', 'path_not_found', 'path_denied'] as const
const reaching = [...missing, 'path_not_directory', 'path_loop'] as const

export const readFile = route({
  ...reading,
  id: 'readFile',
  path: '/v1/sandboxes/:sandbox/files',
  summary: 'Read a file, or a range of it',
  description:
    'Works on a stopped sandbox too, as do all file calls. Links are followed as in the sandbox; nothing leads out of it. ' +
    'With `Range: bytes=…` the answer is 206.',
  headers: { Range: 'One range of bytes' },
  query: z.strictObject({ path, ...as }),
  reply: { 200: 'bytes', 206: 'bytes' },
  errors: [...reaching, 'path_is_directory', 'path_not_file', 'range_not_satisfiable'],
})
export const writeFile = route({
  ...writing,
  id: 'writeFile',
  method: 'PUT',
  path: '/v1/sandboxes/:sandbox/files',
  summary: 'Write a file whole',
  description: 'Atomic: readers see the old file or the new one; of an upload that breaks off nothing is left.',
  query: z.strictObject({
    path,
    ...as,
    mode: FileMode.optional().describe('Default: that of the file there, else 644'),
    owner: User.optional().describe('Default: that of the file there, else the user'),
    parents: Flag.default(false).describe('Make missing directories above it'),
    ifExists: z.enum(['replace', 'fail']).default('replace'),
  }),
  body: 'bytes',
  reply: { 200: FileStat },
  errors: [...reaching, 'path_exists', 'path_is_directory', 'path_not_file', 'disk_full'],
})
export const removeFile = route({
  ...writing,
  id: 'removeFile',
  method: 'DELETE',
  path: '/v1/sandboxes/:sandbox/files',
  summary: 'Remove a file or a directory',
  query: z.strictObject({ path, ...as, recursive: Flag.default(false) }),
  reply: { 204: 'empty' },
  errors: [...reaching, 'directory_not_empty'],
})
export const statFile = route({
  ...reading,
  id: 'statFile',
  path: '/v1/sandboxes/:sandbox/files/stat',
  summary: 'Get the attributes of a path',
  query: z.strictObject({ path, ...as, follow: Flag.default(false).describe('Of what a link leads to') }),
  reply: { 200: FileStat },
  errors: reaching,
})
export const listFiles = route({
  ...reading,
  id: 'listFiles',
  path: '/v1/sandboxes/:sandbox/files/list',
  summary: 'List a directory, in no order',
  description: 'One line of JSON an entry, so directories of any size can be listed.',
  query: z.strictObject({ path, ...as }),
  reply: { 200: { kind: 'ndjson', item: FileStat } },
  errors: reaching,
})
export const makeDirectory = route({
  ...writing,
  id: 'makeDirectory',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/files/directory',
  summary: 'Make a directory',
  body: z.strictObject({
    path,
    ...as,
    mode: FileMode.optional(),
    parents: z.boolean().default(false).describe('Make missing ones above it; one that exists is fine'),
  }),
  reply: { 201: FileStat },
  errors: [...reaching, 'path_exists', 'disk_full'],
})
export const renameFile = route({
  ...writing,
  id: 'renameFile',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/files/rename',
  summary: 'Rename or move a path',
  body: z.strictObject({ from: path, to: path, ...as, replace: z.boolean().default(true) }),
  reply: { 200: FileStat },
  errors: [...reaching, 'path_exists', 'path_is_directory', 'directory_not_empty', 'disk_full'],
})
export const watchFiles = route({
  ...reading,
  id: 'watchFiles',
  path: '/v1/sandboxes/:sandbox/files/watch',
  summary: 'Watch a directory',
  description: 'The first event is `ready`: what happens after it is told.',
  query: z.strictObject({ path, ...as, recursive: Flag.default(false) }),
  reply: { 200: { kind: 'ndjson', item: FileEvent } },
  errors: [...reaching, 'watch_limit'],
})
export const downloadTree = route({
  ...reading,
  id: 'downloadTree',
  path: '/v1/sandboxes/:sandbox/files/archive',
  summary: 'Download a directory or file as a tar',
  query: z.strictObject({ path, ...as }),
  reply: { 200: 'bytes' },
  errors: reaching,
})
export const uploadTree = route({
  ...writing,
  id: 'uploadTree',
  method: 'PUT',
  path: '/v1/sandboxes/:sandbox/files/archive',
  summary: 'Unpack a tar into a directory',
  description:
    'Plain, or compressed by gzip. Names that lead out of the directory and device nodes are refused. It is unpacked beside ' +
    'and moved into place entry by entry; where it breaks off, whole entries may be there, half ones never.',
  query: z.strictObject({
    path,
    ...as,
    owner: z.enum(['user', 'archive']).default('user').describe('Whose the files are'),
    group: Group.optional(),
  }),
  body: 'bytes',
  reply: { 200: z.object({ entries: z.number().int(), bytes: z.number().int() }) },
  errors: [...reaching, 'path_exists', 'path_is_directory', 'archive_invalid', 'disk_full'],
})
