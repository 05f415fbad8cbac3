-- Sessions of browsers: a cookie's token, as its SHA-256, and the key that it was made with.

CREATE TABLE "sessions" (
  "token_hash" bytea PRIMARY KEY CHECK (octet_length("token_hash") = 32),
  "key_id" text NOT NULL REFERENCES "api_keys" ("id") ON DELETE CASCADE,
  "created_at" timestamptz(3) NOT NULL,
  "last_used_at" timestamptz(3) NOT NULL,
  "expires_at" timestamptz(3) NOT NULL
);
CREATE INDEX "sessions_key_id_created_at_idx" ON "sessions" ("key_id", "created_at");
-- The sweep looks for the one that ended, by age or by not being used.
CREATE INDEX "sessions_expires_at_idx" ON "sessions" ("expires_at");
CREATE INDEX "sessions_last_used_at_idx" ON "sessions" ("last_used_at");
