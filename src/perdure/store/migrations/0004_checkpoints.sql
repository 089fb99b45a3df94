-- Checkpoints: a workdir and a conversation, saved together. A row is written when both halves are durable, and never before.
-- They are counted by workspace, because their refs are: several runs may work in one, one after the other.

CREATE TABLE checkpoints (
    workspace_id TEXT    NOT NULL,
    number       INTEGER NOT NULL CHECK (number >= 1),
    run          TEXT    NOT NULL REFERENCES runs (id),
    attempt      INTEGER NOT NULL,
    at           INTEGER NOT NULL,
    body         TEXT    NOT NULL,
    PRIMARY KEY (workspace_id, number)
);

CREATE INDEX checkpoints_by_run ON checkpoints (run, number);

-- What was published stays as it is, or goes.
CREATE TRIGGER checkpoints_stay BEFORE UPDATE ON checkpoints
BEGIN
    SELECT RAISE(ABORT, 'a checkpoint is not changed');
END;
