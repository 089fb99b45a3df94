-- What forges were told of the runs that their deliveries began: one row a run, and who is at it. The body is the posting's own.

CREATE TABLE postings (
    run        TEXT    PRIMARY KEY REFERENCES runs (id),
    seen       INTEGER NOT NULL DEFAULT 0,
    due        INTEGER NOT NULL DEFAULT 0,
    tries      INTEGER NOT NULL DEFAULT 0,
    holder     TEXT    NOT NULL DEFAULT '',
    held_until INTEGER NOT NULL DEFAULT 0,
    updated    INTEGER NOT NULL,
    body       TEXT    NOT NULL DEFAULT ''
);
