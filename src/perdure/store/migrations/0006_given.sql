-- Task files that came with a version of the instructions: names and digests as JSON, empty where none came. Their bytes lie below
-- the state directory.

ALTER TABLE contexts ADD COLUMN given TEXT NOT NULL DEFAULT '';
