-- Builds: who had which image made of which options, what it holds while it goes on, and what it told.
--
-- While it is running a build is counted like a running job: in unfinished_jobs, running_jobs and running_* of
-- tenant_usage, and in used_* of its node.
--
-- Lock order everywhere: tenant_usage, nodes, sandboxes, jobs and builds, attempts, images.

CREATE TABLE "builds" (
  "id" text PRIMARY KEY,
  "tenant_id" text NOT NULL REFERENCES "tenants" ("id") ON DELETE CASCADE,
  -- No foreign key: the record outlives the node.
  "node_id" text NOT NULL,
  "state" text NOT NULL CHECK ("state" IN ('running', 'succeeded', 'failed', 'canceled')),
  -- Names in full that the image is to have.
  "names" text[] NOT NULL,
  -- BuildOptions and BuildLimits, as they are shown. No secrets.
  "options" json NOT NULL,
  "limits" json NOT NULL,
  "parallel" integer NOT NULL CHECK ("parallel" >= 1),
  -- What it holds: all commands that run at the same time, and disk for the context.
  "cpu_millis" integer NOT NULL,
  "memory_bytes" bigint NOT NULL,
  "disk_bytes" bigint NOT NULL,
  -- Of the process that carries it out. When it is over, the process is gone, and somebody else ends the build.
  "lease_until" timestamptz(3) NOT NULL,
  "image_digest" text,
  "reason" jsonb,
  "steps" json NOT NULL DEFAULT '[]',
  "created_by" text NOT NULL,
  "created_at" timestamptz(3) NOT NULL,
  "started_at" timestamptz(3),
  "ended_at" timestamptz(3),
  CHECK (("ended_at" IS NOT NULL) = ("state" <> 'running')),
  CHECK (("image_digest" IS NOT NULL) = ("state" = 'succeeded')),
  CHECK (("reason" IS NOT NULL) = ("state" IN ('failed', 'canceled')))
) WITH (fillfactor = 70);
CREATE INDEX "builds_tenant_id_id_idx" ON "builds" ("tenant_id", "id");
CREATE INDEX "builds_running_idx" ON "builds" ("lease_until") WHERE "state" = 'running';
CREATE INDEX "builds_ended_at_idx" ON "builds" ("ended_at") WHERE "ended_at" IS NOT NULL;

-- What a build told, as text, in pieces that only ever come behind the last one; the oldest go.
CREATE TABLE "build_logs" (
  "build_id" text NOT NULL REFERENCES "builds" ("id") ON DELETE CASCADE,
  "number" integer NOT NULL,
  "data" bytea NOT NULL,
  PRIMARY KEY ("build_id", "number")
);
