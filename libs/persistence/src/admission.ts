// admission.ts: how jobs come in, and how queued ones get a node.
//
// One job is admitted in two round trips. The first reads tenant, nodes and who waits, without locks; on it is decided
// whether the job may run at once, and where. The second reserves quota, takes the node's room, stores the job and its
// attempt, in one statement that checks all limits again on locked rows: what was read may be old, a limit is never
// overshot. A lost race for the node leaves the job queued.
//
// Nobody overtakes: a job is placed at once only when none of its tenant is queued ahead, and no other tenant has one
// that its quota would let run (it then waits for a node, and would wait for ever beside a busy tenant).
import {
  AttemptId,
  BatchId,
  Failure,
  Fault,
  type Job,
  JobId,
  type JobSpec,
  type NodeId,
  QuotaExceeded,
  type Tenant,
  type TenantId,
} from '@berth/contracts'
import {
  choose,
  costOf,
  fits,
  fitsQueue,
  type ImageWanted,
  NODE_SILENT_MS,
  neverFits,
  type ResolvedImage,
  type Shortage,
} from '@berth/domain'
import { readBatch } from './batches.js'
import { imageDigest, resolvedOr404, wantedBy } from './image-resolving.js'
import {
  imagePlatform,
  isLocal,
  type NodeJson,
  nodeOf,
  nodesJson,
  obtainable,
  placeQueued,
  type UseRow,
  useColumns,
  useOf,
  waitingHeads,
} from './placing.js'
import type { Admission, PlacedAttempt } from './repositories.js'
import { type Statement, type Store, storing } from './store.js'
import { idRange, type QuotaRow, quotaColumns, quotaOf, runCommand, splitSpec, tenantLimits } from './views.js'

interface SituationRow extends UseRow, QuotaRow {
  readonly image_digest: string | null
  readonly image_epoch: number
  /** Whether nodes that lack the image can come to have it. */
  readonly obtainable: boolean
  readonly image_platform: string | null
  readonly state: Tenant['state']
  readonly uid_slot: number
  readonly queued_ahead: boolean
  readonly others_wait: boolean
  readonly nodes: readonly NodeJson[]
}

const readSituation: Statement = {
  name: 'admission_situation',
  text: `WITH image AS MATERIALIZED (
      SELECT ${imageDigest('$1', '$5::text', '$6::text')} AS digest
    ), ${waitingHeads('$3', '$4', '1', 'AND u.tenant_id <> $1')}
    SELECT t.state, t.uid_slot, u.image_epoch, (SELECT i.digest FROM image i) AS image_digest, ${quotaColumns}, ${useColumns},
      u.unfinished_jobs > u.running_jobs AND EXISTS (
        SELECT 1 FROM jobs j WHERE j.tenant_id = $1 AND j.state = 'queued' AND j.not_before IS NULL) AS queued_ahead,
      EXISTS (
        SELECT 1 FROM waiting w
        WHERE w.running_cpu_millis + w.cpu_millis <= w.quota_cpu_millis
          AND w.running_memory_bytes + w.memory_bytes <= w.quota_memory_bytes
          AND w.running_disk_bytes + w.disk_bytes <= w.quota_disk_bytes) AS others_wait,
      ${obtainable('coalesce((SELECT i.digest FROM image i), $2::text)', '$1', '$4')} AS obtainable,
      ${imagePlatform('(SELECT i.digest FROM image i)', '$1')} AS image_platform,
      ${nodesJson('ARRAY[coalesce((SELECT i.digest FROM image i), $2::text)]', 'ARRAY[$1::text]')} AS nodes
    FROM tenants t JOIN tenant_usage u ON u.tenant_id = t.id WHERE t.id = $1`,
}

const insertJob: Statement = {
  name: 'admit_job',
  text: `WITH locked AS MATERIALIZED (
      SELECT t.state AS tenant_state, u.image_epoch, ${quotaColumns}, ${useColumns}
      FROM tenant_usage u JOIN tenants t ON t.id = u.tenant_id WHERE u.tenant_id = $1 FOR UPDATE OF u
    ), admitted AS MATERIALIZED (
      SELECT running_jobs + 1 <= quota_concurrent_jobs
        AND running_cpu_millis + $9::bigint <= quota_cpu_millis
        AND running_memory_bytes + $10::bigint <= quota_memory_bytes
        AND running_disk_bytes + $11::bigint <= quota_disk_bytes AS may_run
      FROM locked WHERE tenant_state = 'active' AND unfinished_jobs + 1 <= quota_unfinished_jobs
        AND ($19::integer IS NULL OR image_epoch = $19)
    ), node AS (
      UPDATE nodes n SET
        used_cpu_millis = n.used_cpu_millis + $9::bigint, used_memory_bytes = n.used_memory_bytes + $10::bigint,
        used_disk_bytes = n.used_disk_bytes + $11::bigint, used_sandboxes = n.used_sandboxes + 1
      FROM admitted a
      WHERE n.id = $15 AND a.may_run AND n.state = 'ready' AND n.used_sandboxes + 1 <= n.capacity_sandboxes
        AND n.used_cpu_millis + $9::bigint <= n.capacity_cpu_millis
        AND n.used_memory_bytes + $10::bigint <= n.capacity_memory_bytes
        AND n.used_disk_bytes + $11::bigint <= n.capacity_disk_bytes
      RETURNING n.id
    ), decided AS MATERIALIZED (
      SELECT n.id AS node_id, (n.id IS NOT NULL)::integer AS runs FROM admitted a LEFT JOIN node n ON true
    ), job AS (
      INSERT INTO jobs (id, tenant_id, state, image, spec, stdin, stdin_bytes, labels, priority, cpu_millis,
        memory_bytes, disk_bytes, attempt_count, deadline, retention_ms, waiting_since, created_at, image_digest)
      SELECT $2, $1, CASE d.runs WHEN 1 THEN 'placed' ELSE 'queued' END, $3, $4, $5,
        coalesce(octet_length($5::bytea), 0), $6, $7, $9, $10, $11, d.runs, $8, $12, $13, $13, $18 FROM decided d
    ), attempt AS (
      INSERT INTO attempts (id, job_id, tenant_id, node_id, number, state, placed_at, commanded_at, phases)
      SELECT $14, $2, $1, d.node_id, 1, 'placed', $13, $13, $16 FROM decided d WHERE d.runs = 1
    ), reserve AS (
      UPDATE tenant_usage u SET
        unfinished_jobs = u.unfinished_jobs + 1, running_jobs = u.running_jobs + d.runs,
        running_cpu_millis = u.running_cpu_millis + d.runs * $9::bigint,
        running_memory_bytes = u.running_memory_bytes + d.runs * $10::bigint,
        running_disk_bytes = u.running_disk_bytes + d.runs * $11::bigint,
        last_placed_at = CASE d.runs WHEN 1 THEN $13 ELSE u.last_placed_at END, event_number = u.event_number + 1
      FROM decided d WHERE u.tenant_id = $1 RETURNING u.event_number
    ), told AS (
      INSERT INTO events (tenant_id, number, type, at, subject, by, data)
      SELECT $1, r.event_number, CASE d.runs WHEN 1 THEN 'job.placed' ELSE 'job.queued' END, $13, $2, $17,
        jsonb_build_object('attempt', d.runs, 'nodeId', d.node_id) FROM decided d, reserve r
    )
    SELECT l.*, d.runs IS NOT NULL AS admitted, d.node_id FROM locked l LEFT JOIN decided d ON true`,
}

const insertBatch: Statement = {
  name: 'admit_batch',
  text: `WITH locked AS MATERIALIZED (
      SELECT t.state AS tenant_state, u.image_epoch, ${quotaColumns}, ${useColumns}
      FROM tenant_usage u JOIN tenants t ON t.id = u.tenant_id WHERE u.tenant_id = $1 FOR UPDATE OF u
    ), admitted AS MATERIALIZED (
      SELECT $4::integer AS jobs FROM locked
      WHERE tenant_state = 'active' AND unfinished_jobs + $4::integer <= quota_unfinished_jobs
        AND ($19::integer IS NULL OR image_epoch = $19)
    ), batch AS (
      INSERT INTO batches (id, tenant_id, name, total, created_at) SELECT $2, $1, $3, a.jobs, $5 FROM admitted a
    ), job AS (
      INSERT INTO jobs (id, tenant_id, batch_id, state, image, spec, stdin, stdin_bytes, labels, priority, cpu_millis,
        memory_bytes, disk_bytes, deadline, retention_ms, waiting_since, created_at, image_digest)
      SELECT r.id, $1, $2, 'queued', r.image, r.spec::json, r.stdin, coalesce(octet_length(r.stdin), 0),
        r.labels::jsonb, r.priority, r.cpu, r.memory, r.disk, r.deadline, r.retention, $5, $5, r.image_digest
      FROM admitted, unnest($6::text[], $7::text[], $8::text[], $9::bytea[], $10::text[], $11::integer[],
        $12::timestamptz[], $13::integer[], $14::bigint[], $15::bigint[], $16::bigint[], $18::text[])
        AS r(id, image, spec, stdin, labels, priority, deadline, cpu, memory, disk, retention, image_digest)
    ), reserve AS (
      UPDATE tenant_usage u SET unfinished_jobs = u.unfinished_jobs + a.jobs, event_number = u.event_number + a.jobs
      FROM admitted a WHERE u.tenant_id = $1 RETURNING u.event_number - a.jobs AS before
    ), told AS (
      INSERT INTO events (tenant_id, number, type, at, subject, by, data)
      SELECT $1, r.before + j.nth, 'job.queued', $5, j.id, $17, jsonb_build_object('attempt', 0, 'batchId', $2::text)
      FROM reserve r, unnest($6::text[]) WITH ORDINALITY AS j(id, nth)
    )
    SELECT l.*, a.jobs IS NOT NULL AS admitted FROM locked l LEFT JOIN admitted a ON true`,
}

interface AdmittedRow extends UseRow, QuotaRow {
  readonly tenant_state: Tenant['state']
  readonly image_epoch: number
  readonly admitted: boolean
}

const exceeded = ({ quota, limit, used, asked }: Shortage) => new QuotaExceeded(quota, limit, used, asked)

const noTenant = (id: TenantId) => new Failure('tenant_not_found', `there is no tenant ${id}`)

function refuseUnlessAdmitted(id: TenantId, row: AdmittedRow | undefined, count: number): void {
  if (!row) throw noTenant(id)
  if (row.admitted) return
  const shortage = fitsQueue(quotaOf(row), useOf(row), count)
  if (row.tenant_state === 'active' && shortage) throw exceeded(shortage)
  throw new Failure('tenant_suspended', `tenant ${id} is suspended`)
}

const fresh = (id: JobId, spec: JobSpec, at: Date): Job => {
  const { stored, stdin } = splitSpec(spec)
  return {
    id,
    batchId: null,
    state: 'queued',
    spec: { ...stored, stdinBytes: stdin?.length ?? 0 },
    exitCode: null,
    signal: null,
    oomKilled: false,
    reason: null,
    usage: null,
    attempts: [],
    createdAt: at.toISOString(),
    notBefore: null,
    startedAt: null,
    finishedAt: null,
    expiresAt: null,
  }
}

const noPhases = {
  queueMs: 0,
  placeMs: null,
  imageMs: null,
  rootfsMs: null,
  startMs: null,
  runMs: null,
  finishMs: null,
}

/** The job as it reads right after it was placed. */
const freshPlaced = (job: Job, attemptId: AttemptId, nodeId: NodeId): Job => ({
  ...job,
  state: 'placed',
  attempts: [
    {
      id: attemptId,
      number: 1,
      state: 'placed',
      nodeId,
      exitCode: null,
      signal: null,
      oomKilled: false,
      reason: null,
      usage: null,
      phases: noPhases,
      placedAt: job.createdAt,
      startedAt: null,
      finishedAt: null,
    },
  ],
})

/** The node to try, decided on what may be old by now. */
function nodeFor(row: SituationRow, tenantId: TenantId, spec: JobSpec, image: ResolvedImage, now: Date): NodeId | null {
  const cost = costOf(spec)
  if (row.queued_ahead || row.others_wait || fits(quotaOf(row), useOf(row), cost)) return null
  const nodes = row.nodes.map(nodeOf)
  const pinned = image.digest === null ? isLocal(image.digest, image.key, nodes) : !row.obtainable
  const job = { tenantId, image: image.key, pinned, platform: row.image_platform, cost }
  return choose(nodes, job, now)?.id ?? null
}

/** How often a name is resolved again because images went in between: each time somebody has removed some. */
const RESOLVED_AGAIN = 20

/** Runs an admission anew while images went between its resolving of names and its end. */
async function onSameImages<T>(admit: () => Promise<T | undefined>): Promise<T> {
  for (let tries = 0; tries < RESOLVED_AGAIN; tries++) {
    const admitted = await admit()
    if (admitted) return admitted
  }
  throw new Fault('resolve the image', { cause: 'images of the tenant keep going away' })
}

const imagesWent = (row: AdmittedRow | undefined, epoch: number): boolean =>
  row !== undefined && !row.admitted && row.image_epoch !== epoch

type AdmittedJob = Awaited<ReturnType<Admission['admitJob']>>

async function admitJob(
  store: Store,
  tenantId: TenantId,
  spec: JobSpec,
  by: string,
  wanted: ImageWanted,
): Promise<AdmittedJob | undefined> {
  const now = store.clock.now()
  const silent = new Date(now.getTime() - NODE_SILENT_MS)
  const situation = [tenantId, wanted.base?.digest ?? wanted.base?.key, now, silent, wanted.reference, wanted.digest]
  const [row] = await store.rows<SituationRow>(readSituation, situation)
  if (!row) throw noTenant(tenantId)
  const quota = quotaOf(row)
  const cost = costOf(spec)
  const never = neverFits(quota, cost)
  if (never && row.state === 'active') throw exceeded(never)
  const image = resolvedOr404(wanted, row.image_digest)

  const jobId = JobId.parse(store.ids.mint('job'))
  const attemptId = AttemptId.parse(store.ids.mint('attempt'))
  const { stored, stdin } = splitSpec(spec)
  const [admitted] = await storing(
    store.rows<AdmittedRow & { node_id: NodeId | null }>(insertJob, [
      tenantId,
      jobId,
      image.key,
      JSON.stringify(stored),
      stdin,
      JSON.stringify(spec.labels),
      spec.priority,
      spec.deadline ?? null,
      cost.cpuMillis,
      cost.memoryBytes,
      cost.diskBytes,
      spec.retentionMs,
      now,
      attemptId,
      nodeFor(row, tenantId, spec, image, now),
      JSON.stringify(noPhases),
      by,
      image.digest,
      image.digest === null ? null : row.image_epoch,
    ]),
  )
  if (imagesWent(admitted, row.image_epoch)) return undefined
  refuseUnlessAdmitted(tenantId, admitted, 1)
  const job = fresh(jobId, spec, now)
  const nodeId = admitted?.node_id
  if (!nodeId) return { job }
  const command = runCommand({
    nodeId,
    attemptId,
    generation: 1,
    jobId,
    tenantId,
    ids: idRange(row.uid_slot),
    tenantLimits: tenantLimits(quota),
    ...(image.digest !== null && { image: image.digest }),
    spec,
    placedAt: job.createdAt,
  })
  return { job: freshPlaced(job, attemptId, nodeId), placed: { nodeId, command } }
}

const readQuota: Statement = {
  name: 'tenant_quota',
  text: `SELECT t.state, u.image_epoch, ${quotaColumns}, ARRAY(
           SELECT ${imageDigest('$1', 'w.reference', 'w.digest')}
           FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS w(reference, digest, number) ORDER BY w.number) AS digests
         FROM tenants t JOIN tenant_usage u ON u.tenant_id = t.id WHERE t.id = $1`,
}

interface BatchQuotaRow extends QuotaRow {
  readonly state: Tenant['state']
  readonly image_epoch: number
  readonly digests: readonly (string | null)[]
}

/** Refuses what could never run. @returns what the image of each spec is, and as of which epoch */
async function checkSpecs(
  store: Store,
  tenantId: TenantId,
  specs: readonly JobSpec[],
  images: readonly ImageWanted[],
): Promise<{ readonly epoch: number; readonly resolved: readonly ResolvedImage[] }> {
  const distinct = [...new Map(images.map((image) => [image.text, image])).values()]
  const references = distinct.map(({ reference }) => reference)
  const values = [tenantId, references, distinct.map(({ digest }) => digest)]
  const [row] = await store.rows<BatchQuotaRow>(readQuota, values)
  if (!row) throw noTenant(tenantId)
  const quota = quotaOf(row)
  for (const spec of specs) {
    const never = neverFits(quota, costOf(spec))
    if (never && row.state === 'active') throw exceeded(never)
  }
  const byText = new Map(distinct.map((image, i) => [image.text, resolvedOr404(image, row.digests[i] ?? null)]))
  return {
    epoch: row.image_epoch,
    resolved: images.map((image) => byText.get(image.text) ?? resolvedOr404(image, null)),
  }
}

type AdmittedBatch = Awaited<ReturnType<Admission['admitBatch']>>

async function admitBatch(
  store: Store,
  tenantId: TenantId,
  name: string | undefined,
  specs: readonly JobSpec[],
  by: string,
  images: readonly ImageWanted[],
): Promise<AdmittedBatch | undefined> {
  const { epoch, resolved } = await checkSpecs(store, tenantId, specs, images)
  const now = store.clock.now()
  const batchId = BatchId.parse(store.ids.mint('batch'))
  const jobIds = specs.map(() => JobId.parse(store.ids.mint('job')))
  // The queue goes by id: within a batch, jobs must go in the order in which they were given.
  jobIds.sort()
  const split = specs.map(splitSpec)
  const costs = specs.map(costOf)
  const [row] = await storing(
    store.rows<AdmittedRow>(insertBatch, [
      tenantId,
      batchId,
      name ?? null,
      specs.length,
      now,
      jobIds,
      resolved.map((image) => image.key),
      split.map(({ stored }) => JSON.stringify(stored)),
      split.map(({ stdin }) => stdin),
      specs.map((spec) => JSON.stringify(spec.labels)),
      specs.map((spec) => spec.priority),
      specs.map((spec) => spec.deadline ?? null),
      costs.map((cost) => cost.cpuMillis),
      costs.map((cost) => cost.memoryBytes),
      costs.map((cost) => cost.diskBytes),
      specs.map((spec) => spec.retentionMs),
      by,
      resolved.map((image) => image.digest),
      resolved.some((image) => image.digest !== null) ? epoch : null,
    ]),
  )
  if (imagesWent(row, epoch)) return undefined
  refuseUnlessAdmitted(tenantId, row, specs.length)
  const placed = await placeStored(store, specs.length)
  return { batch: await readBatch(store, { tenantId }, batchId), jobIds, placed }
}

/** The batch is stored: failing now would make its caller store it twice. Whatever is not placed here is soon. */
async function placeStored(store: Store, count: number): Promise<readonly PlacedAttempt[]> {
  try {
    return await placeQueued(store, Math.min(count, 256))
  } catch (error) {
    if (error instanceof Fault) return []
    throw error
  }
}

const readImage: Statement = {
  name: 'image_to_admit',
  text: `SELECT ${imageDigest('$1::text', '$2::text', '$3::text')} AS digest`,
}

async function imageOf(store: Store, tenantId: TenantId, { reference, digest }: ImageWanted): Promise<string | null> {
  const [row] = await store.rows<{ digest: string | null }>(readImage, [tenantId, reference, digest])
  return row?.digest ?? null
}

export const openAdmission = (store: Store): Admission => ({
  admitJob: (tenantId, spec, by = 'api', image = wantedBy(spec)) =>
    onSameImages(() => admitJob(store, tenantId, spec, by, image)),
  admitBatch: (tenantId, name, specs, by = 'api', images = specs.map(wantedBy)) =>
    onSameImages(() => admitBatch(store, tenantId, name, specs, by, images)),
  placeQueued: (limit) => placeQueued(store, limit),
  imageOf: (tenantId, wanted) => imageOf(store, tenantId, wanted),
})
