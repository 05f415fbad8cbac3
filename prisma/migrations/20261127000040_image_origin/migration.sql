-- Where an image was pulled from: registry/repository@digest of the manifest. Null: loaded, imported, or made here. A node
-- that lacks it can ask there when no other node has it.
ALTER TABLE "images" ADD COLUMN "origin" text;
