// templates.ts: templates and their versions. A version is made under the lock of its owner's images: the digest that it
// keeps is of an image that is there, which then counts as used.
import { Failure, QuotaExceeded, type Template, type TemplateSpec } from '@berth/contracts'
import { type ImageOwner, PUBLIC_OWNER } from '@berth/domain'
import { lockOwner } from './image-owner.js'
import { imageDigest, resolvedOr404 } from './image-resolving.js'
import type { NewTemplateVersion, PageRequest, Templates } from './repositories.js'
import { brokenConstraint, type Session, type Statement, type Store } from './store.js'

/** Templates of one owner, and versions of all of them together. */
const MAX_TEMPLATES = 100
const MAX_VERSIONS = 1000

interface VersionRow {
  readonly owner: ImageOwner
  readonly name: string
  readonly version: number
  readonly latest: boolean
  readonly description: string
  readonly spec: TemplateSpec
  readonly imageDigest: string | null
  readonly createdAt: Date
  readonly createdBy: string
}

const templateOf = ({ owner, createdAt, ...row }: VersionRow): Template => ({
  ...row,
  visibility: owner === PUBLIC_OWNER ? 'public' : 'tenant',
  createdAt: createdAt.toISOString(),
})

const templateNotFound = (name: string, version: number | null) =>
  new Failure('template_not_found', `there is no template ${name}${version === null ? '' : `@${version}`}`)

// $1 owner. Its own template of a name hides a public one.
const visible = `
  WITH visible AS (
    SELECT DISTINCT ON (t.name) t.owner, t.name FROM templates t WHERE t.owner IN ($1, '${PUBLIC_OWNER}')
    ORDER BY t.name, t.owner = '${PUBLIC_OWNER}'
  )`
const columns = `v.owner, v.name, v.version, v.description, v.spec, v.image_digest AS "imageDigest",
  v.created_at AS "createdAt", v.created_by AS "createdBy",
  NOT EXISTS (SELECT 1 FROM template_versions l
    WHERE l.owner = v.owner AND l.name = v.name AND l.version > v.version) AS latest`

const readList: Statement = {
  name: 'list_templates',
  text: `${visible} SELECT v.* FROM visible t CROSS JOIN LATERAL (
           SELECT ${columns} FROM template_versions v WHERE v.owner = t.owner AND v.name = t.name
           ORDER BY v.version DESC LIMIT 1) v
         WHERE $2::text IS NULL OR t.name > $2 ORDER BY t.name LIMIT $3`,
}
const readVersions: Statement = {
  name: 'list_template_versions',
  text: `${visible} SELECT ${columns} FROM visible t
         JOIN template_versions v ON v.owner = t.owner AND v.name = t.name
         WHERE t.name = $2 AND ($3::integer IS NULL OR v.version < $3) ORDER BY v.version DESC LIMIT $4`,
}
const readOne: Statement = {
  name: 'template_version',
  text: `${visible} SELECT ${columns} FROM visible t
         JOIN template_versions v ON v.owner = t.owner AND v.name = t.name
         WHERE t.name = $2 AND ($3::integer IS NULL OR v.version = $3) ORDER BY v.version DESC LIMIT 1`,
}

async function get({ rows }: Session, owner: ImageOwner, name: string, version: number | null): Promise<Template> {
  const [row] = await rows<VersionRow>(readOne, [owner, name, version])
  if (!row) throw templateNotFound(name, version)
  return templateOf(row)
}

function pageOf(rows: readonly VersionRow[], limit: number, positionOf: (last: Template) => string) {
  const items = rows.slice(0, limit).map(templateOf)
  const last = items.at(-1)
  return { items, next: rows.length > limit && last ? positionOf(last) : null }
}

async function list({ rows }: Session, owner: ImageOwner, { after, limit }: PageRequest) {
  return pageOf(await rows<VersionRow>(readList, [owner, after ?? null, limit + 1]), limit, ({ name }) => name)
}

async function versions({ rows }: Session, owner: ImageOwner, name: string, { after, limit }: PageRequest) {
  const before = after === undefined ? null : Number(after)
  const found = await rows<VersionRow>(readVersions, [owner, name, before, limit + 1])
  if (found.length === 0 && before === null) throw templateNotFound(name, null)
  return pageOf(found, limit, ({ version }) => String(version))
}

const insertTemplate: Statement = {
  name: 'insert_template',
  text: 'INSERT INTO templates (owner, name, versions) VALUES ($1, $2, 1) RETURNING versions AS version',
}
const growTemplate: Statement = {
  name: 'grow_template',
  text: 'UPDATE templates SET versions = versions + 1 WHERE owner = $1 AND name = $2 RETURNING versions AS version',
}
const countRows: Statement = {
  name: 'count_templates',
  text: `SELECT (SELECT count(*)::integer FROM templates WHERE owner = $1) AS templates,
           (SELECT count(*)::integer FROM template_versions WHERE owner = $1) AS versions`,
}
const resolveImage: Statement = {
  name: 'resolve_template_image',
  text: `SELECT ${imageDigest('$1', '$2::text', '$3::text')} AS digest`,
}
const insertVersion: Statement = {
  name: 'insert_template_version',
  text: `INSERT INTO template_versions (owner, name, version, description, spec, image_digest, created_at, created_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
}

async function bounded({ rows }: Session, owner: ImageOwner): Promise<void> {
  const [counted] = await rows<{ templates: number; versions: number }>(countRows, [owner])
  const { templates = 0, versions = 0 } = counted ?? {}
  if (templates > MAX_TEMPLATES) throw new QuotaExceeded('templates', MAX_TEMPLATES, templates - 1, 1)
  if (versions > MAX_VERSIONS) throw new QuotaExceeded('templateVersions', MAX_VERSIONS, versions - 1, 1)
}

async function make(session: Session, asked: NewTemplateVersion, number: Statement, now: Date): Promise<Template> {
  const { owner, name, description, spec, image, by } = asked
  await lockOwner(session, owner)
  const [made] = await session.rows<{ version: number }>(number, [owner, name])
  if (!made) throw templateNotFound(name, null)
  const [found] = await session.rows<{ digest: string | null }>(resolveImage, [owner, image.reference, image.digest])
  const { digest } = resolvedOr404(image, found?.digest ?? null)
  const { version } = made
  await session.rows(insertVersion, [owner, name, version, description, JSON.stringify(spec), digest, now, by])
  await bounded(session, owner)
  return get(session, owner, name, version)
}

const deleteVersion: Statement = {
  name: 'delete_template_version',
  text: 'DELETE FROM template_versions WHERE owner = $1 AND name = $2 AND version = $3 RETURNING version',
}
const deleteEmpty: Statement = {
  name: 'delete_empty_template',
  text: `DELETE FROM templates t WHERE t.owner = $1 AND t.name = $2 AND NOT EXISTS (
           SELECT 1 FROM template_versions v WHERE v.owner = t.owner AND v.name = t.name)`,
}
const deleteTemplate: Statement = {
  name: 'delete_template',
  text: 'DELETE FROM templates WHERE owner = $1 AND name = $2 RETURNING versions AS version',
}

async function remove(session: Session, owner: ImageOwner, name: string, version: number | null): Promise<void> {
  await lockOwner(session, owner)
  const values = version === null ? [owner, name] : [owner, name, version]
  const gone = await session.rows<{ version: number }>(version === null ? deleteTemplate : deleteVersion, values)
  if (gone.length === 0) throw templateNotFound(name, version)
  if (version !== null) await session.rows(deleteEmpty, [owner, name])
}

async function create(store: Store, asked: NewTemplateVersion): Promise<Template> {
  try {
    return await store.transaction((session) => make(session, asked, insertTemplate, store.clock.now()))
  } catch (error) {
    if (brokenConstraint(error) !== 'templates_pkey') throw error
    throw new Failure('name_taken', `there is a template ${asked.name}; make a version of it`)
  }
}

export const openTemplates = (store: Store): Templates => ({
  create: (asked) => create(store, asked),
  change: (asked) => store.transaction((session) => make(session, asked, growTemplate, store.clock.now())),
  list: (owner, page) => list(store, owner, page),
  get: (owner, name, version) => get(store, owner, name, version),
  versions: (owner, name, page) => versions(store, owner, name, page),
  remove: (owner, name, version) => store.transaction((session) => remove(session, owner, name, version)),
})
