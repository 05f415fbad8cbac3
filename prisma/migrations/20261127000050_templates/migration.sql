-- Templates: an image with defaults under a name. A version is never changed. `owner` is a tenant's id, or `public`: of the
-- operator, for all. Lock order everywhere: tenant_usage, nodes, sandboxes and jobs, attempts, images, templates.
CREATE TABLE "templates" (
  "owner" text NOT NULL,
  "name" text NOT NULL,
  -- The number of its newest version that ever was: none is given twice.
  "versions" integer NOT NULL CHECK ("versions" >= 1),
  PRIMARY KEY ("owner", "name")
);

CREATE TABLE "template_versions" (
  "owner" text NOT NULL,
  "name" text NOT NULL,
  "version" integer NOT NULL CHECK ("version" >= 1),
  "description" text NOT NULL,
  -- TemplateSpec, as it was given.
  "spec" json NOT NULL,
  -- What its image led to when it was made; null: a base image, by its name.
  "image_digest" text,
  "created_at" timestamptz(3) NOT NULL,
  "created_by" text NOT NULL,
  PRIMARY KEY ("owner", "name", "version"),
  FOREIGN KEY ("owner", "name") REFERENCES "templates" ("owner", "name") ON DELETE CASCADE
);
CREATE INDEX "template_versions_image_digest_idx" ON "template_versions" ("image_digest");
