-- Images: which tenant has what under which name. The content is on nodes, by digest; a row here is what makes it
-- somebody's. `owner` is a tenant's id, or `public`: of the operator, for all.
--
-- Lock order everywhere: tenant_usage, nodes, sandboxes and jobs, attempts, images.

ALTER TABLE "tenants" ADD COLUMN "quota_image_bytes" bigint NOT NULL DEFAULT 34359738368;
ALTER TABLE "tenants" ALTER COLUMN "quota_image_bytes" DROP DEFAULT;

-- Bytes of the distinct layers of the tenant's own images; changed under the row's lock.
ALTER TABLE "tenant_usage" ADD COLUMN "image_bytes" bigint NOT NULL DEFAULT 0 CHECK ("image_bytes" >= 0);
-- Grows, under the row's lock, when an image that the tenant may use goes away: what was resolved before is resolved
-- again before it is stored.
ALTER TABLE "tenant_usage" ADD COLUMN "image_epoch" integer NOT NULL DEFAULT 0;

-- What the image of the spec was resolved to; null: a base image by its name, as the node has it.
ALTER TABLE "jobs" ADD COLUMN "image_digest" text;
ALTER TABLE "sandboxes" ADD COLUMN "image_digest" text;

CREATE TABLE "images" (
  "owner" text NOT NULL,
  -- Of the configuration: the image id.
  "digest" text NOT NULL CHECK ("digest" ~ '^sha256:[0-9a-f]{64}$'),
  "manifest_digest" text NOT NULL,
  "platform" text NOT NULL,
  -- As its builder says.
  "built_at" text,
  -- HeldImage, whole, as the node told it.
  "held" json NOT NULL,
  "labels" jsonb NOT NULL,
  "added_at" timestamptz(3) NOT NULL,
  "added_by" text NOT NULL,
  PRIMARY KEY ("owner", "digest")
);
CREATE INDEX "images_digest_idx" ON "images" ("digest");
CREATE INDEX "images_manifest_digest_idx" ON "images" ("owner", "manifest_digest");

CREATE TABLE "image_layers" (
  "owner" text NOT NULL,
  "digest" text NOT NULL,
  "diff_id" text NOT NULL,
  -- Of its files, unpacked.
  "bytes" bigint NOT NULL CHECK ("bytes" >= 0),
  PRIMARY KEY ("owner", "digest", "diff_id"),
  FOREIGN KEY ("owner", "digest") REFERENCES "images" ("owner", "digest") ON DELETE CASCADE
);
CREATE INDEX "image_layers_diff_id_idx" ON "image_layers" ("owner", "diff_id");

CREATE TABLE "image_names" (
  "owner" text NOT NULL,
  -- In full: docker.io/library/python:latest
  "reference" text NOT NULL,
  "digest" text NOT NULL,
  "named_at" timestamptz(3) NOT NULL,
  PRIMARY KEY ("owner", "reference"),
  FOREIGN KEY ("owner", "digest") REFERENCES "images" ("owner", "digest") ON DELETE CASCADE
);
CREATE INDEX "image_names_digest_idx" ON "image_names" ("owner", "digest");

CREATE TABLE "registry_logins" (
  "owner" text NOT NULL,
  -- Host with its port, as references write it.
  "registry" text NOT NULL,
  "username" text NOT NULL,
  -- Sealed with a key that Postgres does not have.
  "sealed_password" text NOT NULL,
  "updated_at" timestamptz(3) NOT NULL,
  "updated_by" text NOT NULL,
  PRIMARY KEY ("owner", "registry")
);
