-- What images a node runs, as OCI names it: linux/amd64. Null: an agent that does not say, which is taken to run any.
ALTER TABLE "nodes" ADD COLUMN "platform" text;
