-- Passes: what lets somebody without a key connect to one terminal. A ticket is good once, for a moment; a share until it
-- expires or is revoked. Of the token only its SHA-256 is stored.

CREATE TABLE "passes" (
  "token_hash" bytea PRIMARY KEY CHECK (octet_length("token_hash") = 32),
  -- Of a share; a ticket has none.
  "share_id" text,
  "tenant_id" text NOT NULL REFERENCES "tenants" ("id") ON DELETE CASCADE,
  "sandbox_id" text NOT NULL REFERENCES "sandboxes" ("id") ON DELETE CASCADE,
  "terminal_id" text NOT NULL,
  "mode" text NOT NULL CHECK ("mode" IN ('write', 'read')),
  "created_by" text NOT NULL,
  -- Of a ticket: what its maker was authenticated by. The connection ends with it.
  "credential" text,
  "created_at" timestamptz(3) NOT NULL,
  "expires_at" timestamptz(3) NOT NULL,
  CHECK (("share_id" IS NULL) = ("credential" IS NOT NULL))
);
CREATE UNIQUE INDEX "passes_share_id_key" ON "passes" ("share_id") WHERE "share_id" IS NOT NULL;
CREATE INDEX "passes_terminal_idx" ON "passes" ("sandbox_id", "terminal_id") WHERE "share_id" IS NOT NULL;
CREATE INDEX "passes_expires_at_idx" ON "passes" ("expires_at");
