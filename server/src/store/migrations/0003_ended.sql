-- When a job was first seen to have ended; NULL until then.
ALTER TABLE jobs ADD COLUMN ended_ms BIGINT;
