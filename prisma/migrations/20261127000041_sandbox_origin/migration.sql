-- SandboxOrigin: the sandbox whose files this one began with, and the copy of them that its node kept until then.
ALTER TABLE "sandboxes" ADD COLUMN "origin" jsonb;
