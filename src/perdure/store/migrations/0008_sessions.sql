-- Sessions that several processes look up: each write of a key has a number, so that an older record is known as one. Statistics read the
-- attempts by their end. `identity` tells one database from another where several share a cache, and signs what is kept in it.

ALTER TABLE sessions ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;

CREATE INDEX attempts_by_end ON attempts (ended);

CREATE TABLE identity (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    id     TEXT    NOT NULL,
    secret TEXT    NOT NULL
);
