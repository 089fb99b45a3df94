-- Browsers that get push messages: where and how they are reached, for whom, and for which runs. `person` is the actor of the
-- audit trail. `sign_in` is the digest of the sign-in by which the browser was added or last seen; signing out removes the browser.

CREATE TABLE push_devices (
    ordinal      INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT    NOT NULL UNIQUE,
    person       TEXT    NOT NULL,
    sign_in      TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    endpoint     TEXT    NOT NULL UNIQUE,
    public_key   TEXT    NOT NULL,
    auth         TEXT    NOT NULL,
    server_key   TEXT    NOT NULL,
    wishes       TEXT    NOT NULL,
    repositories TEXT    NOT NULL,
    labels       TEXT    NOT NULL,
    added        INTEGER NOT NULL,
    expires      INTEGER NOT NULL
);
