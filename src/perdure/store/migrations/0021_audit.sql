-- Who did it: an actor on each record, and a chain of hashes over every change of state and every deed of a person or program.

ALTER TABLE records ADD COLUMN actor TEXT NOT NULL DEFAULT '';

CREATE TABLE audit (
    number   INTEGER NOT NULL PRIMARY KEY,
    at       INTEGER NOT NULL,
    actor    TEXT    NOT NULL,
    kind     TEXT    NOT NULL,
    run      TEXT    NOT NULL,
    attempt  INTEGER NOT NULL,
    record   INTEGER NOT NULL,
    about    TEXT    NOT NULL,
    sha256   TEXT    NOT NULL,
    previous TEXT    NOT NULL,
    hash     TEXT    NOT NULL
);

CREATE INDEX audit_by_run ON audit (run, number);
CREATE INDEX audit_by_record ON audit (record) WHERE record > 0;

CREATE TABLE audit_head (
    id     INTEGER NOT NULL PRIMARY KEY,
    number INTEGER NOT NULL,
    hash   TEXT    NOT NULL,
    since  INTEGER NOT NULL
);

INSERT INTO audit_head (id, number, hash, since) SELECT 1, 0, '', COALESCE(MAX(seq), 0) FROM records;

CREATE TRIGGER audit_stays BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit trail is append-only');
END;

CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit trail is append-only');
END;
