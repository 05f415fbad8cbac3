-- Sandboxes: what a tenant may have, what it has; how every run ended; and the log of what happened to jobs and
-- sandboxes.
--
-- Lock order everywhere: tenant_usage, nodes, sandboxes and jobs, attempts.

ALTER TABLE "tenants" ADD COLUMN "quota_sandboxes" integer NOT NULL DEFAULT 64;
ALTER TABLE "tenants" ADD COLUMN "quota_terminals" integer NOT NULL DEFAULT 64;
ALTER TABLE "tenants" ALTER COLUMN "quota_sandboxes" DROP DEFAULT, ALTER COLUMN "quota_terminals" DROP DEFAULT;

-- Sandboxes that exist; running_* of tenant_usage and used_* of nodes count jobs and sandboxes alike.
ALTER TABLE "tenant_usage" ADD COLUMN "sandboxes" integer NOT NULL DEFAULT 0 CHECK ("sandboxes" >= 0);
-- Number of the tenant's last event. Grown under the row's lock, in the transaction that appends: so numbers are in
-- the order of commits, without gaps, and a reader that has seen one has seen all before it.
ALTER TABLE "tenant_usage" ADD COLUMN "event_number" bigint NOT NULL DEFAULT 0;

CREATE TABLE "sandboxes" (
  "id" text PRIMARY KEY,
  "tenant_id" text NOT NULL REFERENCES "tenants" ("id") ON DELETE CASCADE,
  "name" text,
  "labels" jsonb NOT NULL,
  -- Without name and labels. `json`, not `jsonb`: read whole only, and as it was written.
  "spec" json NOT NULL,
  "state" text NOT NULL
    CHECK ("state" IN ('creating', 'running', 'paused', 'stopped', 'failed', 'lost', 'deleted')),
  -- What it was before its node fell silent, and is again when the node is back.
  "lost_from" text,
  "desired" text NOT NULL CHECK ("desired" IN ('running', 'paused', 'stopped', 'deleted')),
  "phase" text NOT NULL,
  "phase_since" timestamptz(3) NOT NULL,
  -- Whether the node has made true what is wanted, by its last report.
  "settled" boolean NOT NULL,
  "reason" jsonb,
  -- Grows with every change that callers see, but for activity; the ETag.
  "version" integer NOT NULL DEFAULT 1,
  -- Grows with every decision on the row: a change is applied only to the row that it was decided on.
  "revision" integer NOT NULL DEFAULT 1,
  "generation" integer NOT NULL DEFAULT 1,
  -- Highest generation the node has told of; a command is pending while this is below `generation`.
  "acknowledged_generation" integer NOT NULL DEFAULT 0,
  -- When the pending command was last handed to the queue.
  "commanded_at" timestamptz(3) NOT NULL,
  -- Since when the node's heartbeats leave out a sandbox that it had acknowledged.
  "missing_since" timestamptz(3),
  "cpu_millis" integer NOT NULL,
  "memory_bytes" bigint NOT NULL,
  "disk_bytes" bigint NOT NULL,
  -- Whether cpu and memory are counted now: of the tenant until it is deleted, of the node until it is removed there.
  -- Disk is counted as long as the sandbox is there.
  "holds" boolean NOT NULL,
  -- No foreign key: the record outlives the node. Null once the node was removed.
  "node_id" text,
  "placed_because" text NOT NULL,
  "run" integer NOT NULL DEFAULT 0,
  "restarts" integer NOT NULL DEFAULT 0,
  "report_sequence" bigint NOT NULL DEFAULT 0,
  "note_number" bigint NOT NULL DEFAULT 0,
  "phases" jsonb NOT NULL,
  "last_end" jsonb,
  -- How, and why, a run is to be ended: as in the command.
  "stop" jsonb NOT NULL,
  "requested_at" timestamptz(3) NOT NULL,
  "clocks_from" timestamptz(3) NOT NULL,
  "last_activity_at" timestamptz(3),
  "ends_at" jsonb,
  -- When the clock `deleteAfterMs` runs out.
  "delete_at" timestamptz(3),
  "delete_warned" boolean NOT NULL DEFAULT false,
  "created_at" timestamptz(3) NOT NULL,
  "started_at" timestamptz(3),
  "ended_at" timestamptz(3),
  "deleted_at" timestamptz(3),
  -- When the record of a deleted one goes.
  "expires_at" timestamptz(3),
  CHECK (("deleted_at" IS NOT NULL) = ("state" = 'deleted')),
  CHECK (("expires_at" IS NOT NULL) = ("state" = 'deleted')),
  CHECK (("desired" = 'deleted') = ("state" = 'deleted')),
  CHECK (("lost_from" IS NULL) OR ("state" = 'lost'))
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX "sandboxes_name_key" ON "sandboxes" ("tenant_id", "name") WHERE "deleted_at" IS NULL;
CREATE INDEX "sandboxes_existing_idx" ON "sandboxes" ("tenant_id", "id") WHERE "deleted_at" IS NULL;
CREATE INDEX "sandboxes_deleted_idx" ON "sandboxes" ("tenant_id", "id") WHERE "deleted_at" IS NOT NULL;
CREATE INDEX "sandboxes_labels_idx" ON "sandboxes" USING gin ("labels") WITH (fastupdate = off);
-- What a node has, or is to have: for heartbeats, placement, and what is overdue.
CREATE INDEX "sandboxes_node_idx" ON "sandboxes" ("node_id", "tenant_id") WHERE "phase" <> 'removed';
CREATE INDEX "sandboxes_pending_idx" ON "sandboxes" ("commanded_at") WHERE "acknowledged_generation" < "generation";
CREATE INDEX "sandboxes_unsettled_idx" ON "sandboxes" ("commanded_at") WHERE NOT "settled";
CREATE INDEX "sandboxes_missing_idx" ON "sandboxes" ("missing_since") WHERE "missing_since" IS NOT NULL;
CREATE INDEX "sandboxes_delete_at_idx" ON "sandboxes" ("delete_at") WHERE "delete_at" IS NOT NULL;
CREATE INDEX "sandboxes_expires_at_idx" ON "sandboxes" ("expires_at") WHERE "expires_at" IS NOT NULL;

-- How every run ended. Permanent: no foreign key, so that it outlives the sandbox's own record.
CREATE TABLE "sandbox_ends" (
  "sandbox_id" text NOT NULL,
  "run" integer NOT NULL,
  "restart" integer NOT NULL,
  "tenant_id" text NOT NULL,
  "ended_at" timestamptz(3) NOT NULL,
  "record" jsonb NOT NULL,
  PRIMARY KEY ("sandbox_id", "run", "restart")
);

-- Append-only. Without foreign keys: what it tells of may be gone.
CREATE TABLE "events" (
  "tenant_id" text NOT NULL,
  "number" bigint NOT NULL,
  "type" text NOT NULL,
  "at" timestamptz(3) NOT NULL,
  "subject" text NOT NULL,
  "by" text NOT NULL,
  "data" jsonb NOT NULL,
  PRIMARY KEY ("tenant_id", "number")
);
CREATE INDEX "events_subject_idx" ON "events" ("tenant_id", "subject", "number");
