-- Tenants, what they use, keys, nodes, jobs and attempts.
--
-- Counters (tenant_usage, nodes.used_*) are sums over unfinished jobs and current attempts, changed only in the
-- statement that changes those rows. Rows are locked in one order everywhere: tenant_usage, nodes, jobs, attempts.
-- The checks on counters turn an accounting bug into an error instead of a drift.

CREATE TABLE "tenants" (
  "id" text PRIMARY KEY,
  "name" text NOT NULL,
  "state" text NOT NULL DEFAULT 'active' CHECK ("state" IN ('active', 'suspended')),
  -- Host ids of the tenant are 1,000,000 + slot * 65,536 …; above 65,500 they would not fit into 32 bits.
  "uid_slot" integer NOT NULL CHECK ("uid_slot" BETWEEN 0 AND 65500),
  "weight" integer NOT NULL DEFAULT 1 CHECK ("weight" >= 1),
  "quota_unfinished_jobs" integer NOT NULL,
  "quota_concurrent_jobs" integer NOT NULL,
  "quota_cpu_millis" integer NOT NULL,
  "quota_memory_bytes" bigint NOT NULL,
  "quota_disk_bytes" bigint NOT NULL,
  "quota_pids" integer NOT NULL,
  "quota_requests_per_minute" integer NOT NULL,
  "created_at" timestamptz(3) NOT NULL
);
CREATE UNIQUE INDEX "tenants_name_key" ON "tenants" ("name");
CREATE UNIQUE INDEX "tenants_uid_slot_key" ON "tenants" ("uid_slot");

CREATE TABLE "tenant_usage" (
  "tenant_id" text PRIMARY KEY REFERENCES "tenants" ("id") ON DELETE CASCADE,
  "unfinished_jobs" integer NOT NULL DEFAULT 0,
  "running_jobs" integer NOT NULL DEFAULT 0 CHECK ("running_jobs" >= 0),
  "running_cpu_millis" bigint NOT NULL DEFAULT 0 CHECK ("running_cpu_millis" >= 0),
  "running_memory_bytes" bigint NOT NULL DEFAULT 0 CHECK ("running_memory_bytes" >= 0),
  "running_disk_bytes" bigint NOT NULL DEFAULT 0 CHECK ("running_disk_bytes" >= 0),
  -- Breaks ties between tenants of equal share: who was served longest ago goes first.
  "last_placed_at" timestamptz(3),
  CHECK ("unfinished_jobs" >= "running_jobs")
) WITH (fillfactor = 50);

-- What ended attempts have used, by UTC hour of their end: stays when the jobs themselves are deleted.
CREATE TABLE "usage_hours" (
  "tenant_id" text NOT NULL,
  "hour" timestamptz(3) NOT NULL,
  "jobs" integer NOT NULL DEFAULT 0,
  "attempts" integer NOT NULL DEFAULT 0,
  "cpu_ms" double precision NOT NULL DEFAULT 0,
  "wall_ms" double precision NOT NULL DEFAULT 0,
  "memory_byte_ms" double precision NOT NULL DEFAULT 0,
  "output_bytes" double precision NOT NULL DEFAULT 0,
  PRIMARY KEY ("tenant_id", "hour")
) WITH (fillfactor = 50);

CREATE TABLE "api_keys" (
  "id" text PRIMARY KEY,
  "tenant_id" text REFERENCES "tenants" ("id") ON DELETE CASCADE,
  "name" text NOT NULL,
  "hash" bytea NOT NULL CHECK (octet_length("hash") = 32),
  "hint" text NOT NULL,
  "scopes" text[] NOT NULL,
  "created_at" timestamptz(3) NOT NULL,
  "expires_at" timestamptz(3),
  "revoked_at" timestamptz(3),
  "last_used_at" timestamptz(3)
);
CREATE UNIQUE INDEX "api_keys_hash_key" ON "api_keys" ("hash");
CREATE INDEX "api_keys_tenant_id_id_idx" ON "api_keys" ("tenant_id", "id");

CREATE TABLE "nodes" (
  "id" text PRIMARY KEY,
  "name" text NOT NULL,
  "token_hash" bytea NOT NULL CHECK (octet_length("token_hash") = 32),
  "state" text NOT NULL DEFAULT 'pending' CHECK ("state" IN ('pending', 'ready', 'draining', 'lost')),
  -- What operators want; `state` also tells silence, and a node that comes back must still be draining.
  "drain" boolean NOT NULL DEFAULT false,
  "capacity_cpu_millis" integer NOT NULL DEFAULT 0,
  "capacity_memory_bytes" bigint NOT NULL DEFAULT 0,
  "capacity_disk_bytes" bigint NOT NULL DEFAULT 0,
  "capacity_sandboxes" integer NOT NULL DEFAULT 0,
  "used_cpu_millis" bigint NOT NULL DEFAULT 0 CHECK ("used_cpu_millis" >= 0),
  "used_memory_bytes" bigint NOT NULL DEFAULT 0 CHECK ("used_memory_bytes" >= 0),
  "used_disk_bytes" bigint NOT NULL DEFAULT 0 CHECK ("used_disk_bytes" >= 0),
  "used_sandboxes" integer NOT NULL DEFAULT 0 CHECK ("used_sandboxes" >= 0),
  "runtime" text,
  "images" jsonb NOT NULL DEFAULT '[]',
  -- Every name that `images` answer to, without the JSON around it: placement asks for it on each admission.
  "image_names" text[] NOT NULL DEFAULT '{}',
  "streams_url" text,
  "certificate" text,
  "created_at" timestamptz(3) NOT NULL,
  "last_seen_at" timestamptz(3)
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX "nodes_name_key" ON "nodes" ("name");
CREATE UNIQUE INDEX "nodes_token_hash_key" ON "nodes" ("token_hash");

CREATE TABLE "batches" (
  "id" text PRIMARY KEY,
  "tenant_id" text NOT NULL REFERENCES "tenants" ("id") ON DELETE CASCADE,
  "name" text,
  "total" integer NOT NULL,
  "created_at" timestamptz(3) NOT NULL
);
CREATE INDEX "batches_tenant_id_id_idx" ON "batches" ("tenant_id", "id");

CREATE TABLE "jobs" (
  "id" text PRIMARY KEY,
  "tenant_id" text NOT NULL REFERENCES "tenants" ("id") ON DELETE CASCADE,
  "batch_id" text REFERENCES "batches" ("id") ON DELETE SET NULL,
  "state" text NOT NULL
    CHECK ("state" IN ('queued', 'placed', 'running', 'succeeded', 'failed', 'timed_out', 'canceled')),
  "image" text NOT NULL,
  -- Without standard input. `json`, not `jsonb`: read whole only, and as it was written.
  "spec" json NOT NULL,
  -- Apart from `spec`, so that lists do not read megabytes of input to show names and states.
  "stdin" bytea,
  "stdin_bytes" integer NOT NULL DEFAULT 0,
  "labels" jsonb NOT NULL,
  "priority" integer NOT NULL,
  "cpu_millis" integer NOT NULL,
  "memory_bytes" bigint NOT NULL,
  "disk_bytes" bigint NOT NULL,
  "attempt_count" integer NOT NULL DEFAULT 0,
  "retention_ms" bigint NOT NULL,
  -- Creation, or the end of the last back-off.
  "waiting_since" timestamptz(3) NOT NULL,
  -- Set while a back-off lasts. Taking it away when due, instead of comparing with the time, keeps jobs that may not
  -- run out of the queue's index: 10,000 of them cost the others nothing.
  "not_before" timestamptz(3),
  "deadline" timestamptz(3),
  "created_at" timestamptz(3) NOT NULL,
  "started_at" timestamptz(3),
  "finished_at" timestamptz(3),
  "expires_at" timestamptz(3),
  "cancel_cause" text CHECK ("cancel_cause" IN ('canceled', 'deadline_exceeded')),
  "cancel_by" text,
  "cancel_requested_at" timestamptz(3),
  "exit_code" integer,
  "signal" text,
  "oom_killed" boolean NOT NULL DEFAULT false,
  "reason" jsonb,
  "usage" jsonb,
  CHECK (("finished_at" IS NOT NULL) = ("state" IN ('succeeded', 'failed', 'timed_out', 'canceled'))),
  CHECK ("not_before" IS NULL OR "state" IN ('queued', 'timed_out', 'canceled')),
  CHECK (("cancel_cause" IS NULL) = ("cancel_requested_at" IS NULL))
);
CREATE INDEX "jobs_tenant_id_id_idx" ON "jobs" ("tenant_id", "id");
CREATE INDEX "jobs_batch_id_state_idx" ON "jobs" ("batch_id", "state") WHERE "batch_id" IS NOT NULL;
CREATE INDEX "jobs_queue_idx" ON "jobs" ("tenant_id", "priority" DESC, "id")
  WHERE "state" = 'queued' AND "not_before" IS NULL;
CREATE INDEX "jobs_back_off_idx" ON "jobs" ("not_before") WHERE "state" = 'queued' AND "not_before" IS NOT NULL;
CREATE INDEX "jobs_deadline_idx" ON "jobs" ("deadline")
  WHERE "deadline" IS NOT NULL AND "finished_at" IS NULL AND "cancel_cause" IS NULL;
CREATE INDEX "jobs_expires_at_idx" ON "jobs" ("expires_at") WHERE "expires_at" IS NOT NULL;
CREATE INDEX "jobs_labels_idx" ON "jobs" USING gin ("labels") WITH (fastupdate = off);

-- No foreign key to nodes: the record of an attempt outlives the node that ran it.
CREATE TABLE "attempts" (
  "id" text PRIMARY KEY,
  "job_id" text NOT NULL REFERENCES "jobs" ("id") ON DELETE CASCADE,
  "tenant_id" text NOT NULL,
  "node_id" text NOT NULL,
  "number" integer NOT NULL CHECK ("number" >= 1),
  "state" text NOT NULL
    CHECK ("state" IN ('placed', 'running', 'succeeded', 'failed', 'timed_out', 'canceled', 'lost')),
  "generation" integer NOT NULL DEFAULT 1,
  -- Highest generation the node has told of; a command is pending while this is below `generation`.
  "acknowledged_generation" integer NOT NULL DEFAULT 0,
  "placed_at" timestamptz(3) NOT NULL,
  -- When the pending command was last handed to the queue.
  "commanded_at" timestamptz(3) NOT NULL,
  -- Since when the node's heartbeats leave out an attempt that it had acknowledged.
  "missing_since" timestamptz(3),
  "started_at" timestamptz(3),
  "finished_at" timestamptz(3),
  -- Whether the end was told by the node, in contrast to being concluded from its silence.
  "reported" boolean NOT NULL DEFAULT false,
  "exit_code" integer,
  "signal" text,
  "oom_killed" boolean NOT NULL DEFAULT false,
  "reason" jsonb,
  "usage" jsonb,
  "phases" jsonb NOT NULL,
  "stdout" bytea,
  "stderr" bytea,
  CHECK (("finished_at" IS NULL) = ("state" IN ('placed', 'running')))
);
CREATE UNIQUE INDEX "attempts_job_id_number_key" ON "attempts" ("job_id", "number");
CREATE UNIQUE INDEX "attempts_one_current_key" ON "attempts" ("job_id") WHERE "finished_at" IS NULL;
CREATE INDEX "attempts_current_idx" ON "attempts" ("node_id", "tenant_id") WHERE "finished_at" IS NULL;

CREATE TABLE "idempotency_keys" (
  "principal" text NOT NULL,
  "key" text NOT NULL,
  "request_hash" bytea NOT NULL,
  "status" integer,
  "body" text,
  -- While this is in the future and `status` is null, the first request is taken to be still running.
  "lease_until" timestamptz(3) NOT NULL,
  "created_at" timestamptz(3) NOT NULL,
  "expires_at" timestamptz(3) NOT NULL,
  PRIMARY KEY ("principal", "key")
);
CREATE INDEX "idempotency_keys_expires_at_idx" ON "idempotency_keys" ("expires_at");
