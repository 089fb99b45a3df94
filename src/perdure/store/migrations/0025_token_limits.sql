-- The scope `answer`, and limits of a token: patterns of repositories, and of labels as NAME=PATTERN, each a JSON list.
-- The scopes are checked by the program, so that the next one needs no new table.

CREATE TABLE limited_tokens (
    ordinal      INTEGER PRIMARY KEY AUTOINCREMENT,
    name         TEXT    NOT NULL UNIQUE,
    sha256       TEXT    NOT NULL UNIQUE,
    scope        TEXT    NOT NULL,
    created      INTEGER NOT NULL,
    expires      INTEGER NOT NULL DEFAULT 0,
    used         INTEGER NOT NULL DEFAULT 0,
    repositories TEXT    NOT NULL DEFAULT '[]',
    labels       TEXT    NOT NULL DEFAULT '[]'
);

INSERT INTO limited_tokens (name, sha256, scope, created, expires, used)
SELECT name, sha256, scope, created, expires, used FROM tokens ORDER BY ordinal;

DROP TABLE tokens;

ALTER TABLE limited_tokens RENAME TO tokens;
