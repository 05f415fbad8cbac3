-- Sandboxes: what a tenant may have, what it has.

ALTER TABLE "tenants" ADD COLUMN "quota_sandboxes" integer NOT NULL DEFAULT 64;
ALTER TABLE "tenants" ADD COLUMN "quota_terminals" integer NOT NULL DEFAULT 64;
ALTER TABLE "tenants" ALTER COLUMN "quota_sandboxes" DROP DEFAULT, ALTER COLUMN "quota_terminals" DROP DEFAULT;

-- Sandboxes that exist; running_* of tenant_usage and used_* of nodes count jobs and sandboxes alike.
ALTER TABLE "tenant_usage" ADD COLUMN "sandboxes" integer NOT NULL DEFAULT 0 CHECK ("sandboxes" >= 0);
