-- Runs, their attempts and instructions, the conversations, and the journal.
--
-- Portable on purpose: text ids, whole milliseconds, JSON as text. The indexes and triggers below are the last line of
-- defence: what they refuse cannot happen, whatever the program above them gets wrong.

CREATE TABLE runs (
    ordinal          INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT    NOT NULL UNIQUE,
    name             TEXT    NOT NULL UNIQUE,
    key              TEXT    UNIQUE,
    state            TEXT    NOT NULL
                     CHECK (state IN ('pending', 'queued', 'running', 'succeeded', 'failed', 'cancelled')),
    agent            TEXT    NOT NULL,
    scope            TEXT    NOT NULL,
    workspace_id     TEXT    NOT NULL,
    place            TEXT    NOT NULL,
    context_version  INTEGER NOT NULL DEFAULT 1 CHECK (context_version >= 1),
    attempt          INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    attempts_allowed INTEGER NOT NULL,
    run_after        INTEGER NOT NULL DEFAULT 0,
    worker           TEXT    NOT NULL DEFAULT '',
    lease_until      INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    reason           TEXT    NOT NULL DEFAULT '',
    created          INTEGER NOT NULL,
    updated          INTEGER NOT NULL,
    finished         INTEGER,
    spec             TEXT    NOT NULL,
    workspace        TEXT    NOT NULL,
    conditions       TEXT    NOT NULL DEFAULT '[]',
    CHECK ((state = 'running') = (worker <> '')),
    CHECK ((state = 'running') = (lease_until > 0)),
    CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished IS NOT NULL))
);

CREATE UNIQUE INDEX one_writer_per_session ON runs (agent, scope) WHERE state = 'running';
CREATE UNIQUE INDEX one_writer_per_workspace ON runs (workspace_id) WHERE state = 'running';
CREATE INDEX runs_due ON runs (state, run_after, ordinal);
CREATE INDEX runs_by_state ON runs (state, ordinal);

-- The published machine: see lifecycle.MOVES.
CREATE TRIGGER runs_begin_waiting BEFORE INSERT ON runs
WHEN NEW.state NOT IN ('pending', 'queued')
BEGIN
    SELECT RAISE(ABORT, 'a new run is pending or queued');
END;

CREATE TRIGGER runs_move_as_published BEFORE UPDATE OF state ON runs
WHEN OLD.state <> NEW.state
 AND OLD.state || ' > ' || NEW.state NOT IN (
    'pending > queued',
    'pending > cancelled',
    'queued > running',
    'queued > cancelled',
    'running > succeeded',
    'running > failed',
    'running > cancelled',
    'running > queued',
    'succeeded > queued',
    'failed > queued',
    'cancelled > queued'
 )
BEGIN
    SELECT RAISE(ABORT, 'a run cannot move like that');
END;

-- The attempt number is the fencing token: it grows by one with each claim, and never otherwise.
CREATE TRIGGER attempts_count_claims BEFORE UPDATE ON runs
WHEN NEW.attempt <> OLD.attempt + CASE WHEN OLD.state = 'queued' AND NEW.state = 'running' THEN 1 ELSE 0 END
BEGIN
    SELECT RAISE(ABORT, 'the attempt number grows by one with each claim');
END;

CREATE TABLE contexts (
    run     TEXT    NOT NULL REFERENCES runs (id),
    version INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    text    TEXT    NOT NULL,
    PRIMARY KEY (run, version)
);

CREATE TABLE attempts (
    run     TEXT    NOT NULL REFERENCES runs (id),
    number  INTEGER NOT NULL,
    started INTEGER NOT NULL,
    ended   INTEGER,
    outcome TEXT,
    body    TEXT    NOT NULL,
    PRIMARY KEY (run, number),
    CHECK ((ended IS NULL) = (outcome IS NULL))
);

CREATE UNIQUE INDEX one_open_attempt_per_run ON attempts (run) WHERE ended IS NULL;

CREATE TABLE sessions (
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    agent   TEXT    NOT NULL,
    scope   TEXT    NOT NULL,
    id      TEXT    NOT NULL,
    state   TEXT    NOT NULL CHECK (state IN ('pinned', 'confirmed', 'retired')),
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    body    TEXT    NOT NULL,
    UNIQUE (agent, scope, id)
);

CREATE UNIQUE INDEX one_live_session_per_key ON sessions (agent, scope) WHERE state <> 'retired';

CREATE TABLE records (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    run     TEXT    NOT NULL REFERENCES runs (id),
    attempt INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    kind    TEXT    NOT NULL,
    event   TEXT    NOT NULL
);

CREATE INDEX records_by_run ON records (run, seq);
CREATE UNIQUE INDEX one_end_per_attempt ON records (run, attempt) WHERE kind = 'attempt_ended';

-- The journal is append-only.
CREATE TRIGGER records_stay BEFORE UPDATE ON records
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only');
END;
