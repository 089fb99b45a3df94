-- Who may ask the service: tokens by the digest of their secret, and the browsers that signed in with one. No secret is kept.

CREATE TABLE tokens (
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    name    TEXT    NOT NULL UNIQUE,
    sha256  TEXT    NOT NULL UNIQUE,
    scope   TEXT    NOT NULL CHECK (scope IN ('read', 'dispatch', 'admin')),
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL DEFAULT 0,
    used    INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE sign_ins (
    sha256  TEXT    PRIMARY KEY,
    token   TEXT    NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL
);
