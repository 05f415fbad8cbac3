-- What the API knows of a node's images before the node's next heartbeat tells it: a heartbeat that was on its way when an
-- image came does not tell of it.
ALTER TABLE "nodes" ADD COLUMN "images_noted" text[] NOT NULL DEFAULT '{}';
ALTER TABLE "nodes" ADD COLUMN "images_noted_at" timestamptz(3);
