-- What is installed in images, as nodes read it. An image is its digest, so a row never changes and is nobody's; who may
-- see it is decided by `images`. The oldest rows go when there are many: they are read again from a node.
CREATE TABLE "image_contents" (
  "digest" text PRIMARY KEY CHECK ("digest" ~ '^sha256:[0-9a-f]{64}$'),
  -- Of what is packed, and how it was read; rows of another one count as none.
  "format" integer NOT NULL,
  -- ImageContents as gzipped JSON.
  "packed" bytea NOT NULL CHECK (octet_length("packed") <= 1048576),
  "read_at" timestamptz(3) NOT NULL
);
CREATE INDEX "image_contents_read_at_idx" ON "image_contents" ("read_at");

-- ImagePolicy; null: that of the installation.
ALTER TABLE "tenants" ADD COLUMN "image_policy" jsonb;
