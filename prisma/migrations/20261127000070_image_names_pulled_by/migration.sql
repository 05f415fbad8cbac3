-- An image that was pulled by a digest is found by it, whatever it is the digest of: of an index perhaps, which no column
-- of the image has.
CREATE INDEX "image_names_pulled_by_idx" ON "image_names" (split_part("reference", '@', 2), "owner");
