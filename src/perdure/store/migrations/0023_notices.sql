-- What people are told of: the last line of the audit trail that was considered, and one row for each message to a channel.

CREATE TABLE notices_seen (
    id   INTEGER NOT NULL PRIMARY KEY,
    line INTEGER NOT NULL
);

CREATE TABLE notices (
    ordinal    INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    channel    TEXT    NOT NULL,
    line       INTEGER NOT NULL,
    event      TEXT    NOT NULL,
    run        TEXT    NOT NULL,
    at         INTEGER NOT NULL,
    body       TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('waiting', 'sent', 'given_up')),
    due        INTEGER NOT NULL,
    tries      INTEGER NOT NULL DEFAULT 0,
    reason     TEXT    NOT NULL DEFAULT '',
    holder     TEXT    NOT NULL DEFAULT '',
    held_until INTEGER NOT NULL DEFAULT 0,
    updated    INTEGER NOT NULL
);

CREATE INDEX notices_waiting ON notices (due) WHERE state = 'waiting';
