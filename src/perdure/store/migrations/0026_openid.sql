-- Browsers whose person signed in at a provider of OpenID Connect, with what the person may do.

CREATE TABLE openid_sign_ins (
    sha256       TEXT    PRIMARY KEY,
    person       TEXT    NOT NULL,
    scope        TEXT    NOT NULL,
    repositories TEXT    NOT NULL,
    labels       TEXT    NOT NULL,
    created      INTEGER NOT NULL,
    expires      INTEGER NOT NULL
);
