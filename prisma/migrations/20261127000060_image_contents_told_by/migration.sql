-- Which node told what is installed in an image: what it told goes with it. What was kept before is read again.
DELETE FROM "image_contents";
ALTER TABLE "image_contents" ADD COLUMN "node_id" text NOT NULL REFERENCES "nodes" ("id") ON DELETE CASCADE;
CREATE INDEX "image_contents_node_id_idx" ON "image_contents" ("node_id");
