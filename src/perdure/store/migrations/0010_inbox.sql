-- What forges delivered, each once, by the forge's id and by what it says. The body is the forge's text as it came, until it is thinned out.

CREATE TABLE inbox (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    source   TEXT    NOT NULL,
    delivery TEXT    NOT NULL,
    forge    TEXT    NOT NULL,
    event    TEXT    NOT NULL,
    sha256   TEXT    NOT NULL,
    state    TEXT    NOT NULL CHECK (state IN ('received', 'handled', 'ignored', 'failed')),
    reason   TEXT    NOT NULL DEFAULT '',
    received INTEGER NOT NULL,
    updated  INTEGER NOT NULL,
    times    INTEGER NOT NULL DEFAULT 1,
    size     INTEGER NOT NULL,
    kept     INTEGER NOT NULL DEFAULT 1,
    intent   TEXT    NOT NULL DEFAULT '',
    body     TEXT    NOT NULL,
    UNIQUE (source, delivery),
    UNIQUE (source, sha256)
);

CREATE INDEX inbox_by_state ON inbox (state, number);
