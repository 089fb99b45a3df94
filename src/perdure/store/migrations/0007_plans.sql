-- Plans that were begun, and their tasks: which run each became, and where that left its workdir and conversation.

CREATE TABLE plans (
    ordinal     INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT    NOT NULL UNIQUE,
    name        TEXT    NOT NULL UNIQUE,
    created     INTEGER NOT NULL,
    updated     INTEGER NOT NULL,
    worker      TEXT    NOT NULL DEFAULT '',
    lease_until INTEGER NOT NULL DEFAULT 0,
    body        TEXT    NOT NULL
);

CREATE TABLE planned_runs (
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    plan    TEXT    NOT NULL REFERENCES plans (id),
    task    TEXT    NOT NULL,
    body    TEXT    NOT NULL,
    UNIQUE (plan, task)
);
