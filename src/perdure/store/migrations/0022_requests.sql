-- What agents asked people, and the answers. A request is answered once: the state decides who was first.

CREATE TABLE requests (
    run     TEXT    NOT NULL,
    number  INTEGER NOT NULL,
    state   TEXT    NOT NULL CHECK (state IN ('open', 'answered', 'expired', 'superseded')),
    expires INTEGER NOT NULL,
    body    TEXT    NOT NULL,
    PRIMARY KEY (run, number)
);

CREATE INDEX open_requests ON requests (expires) WHERE state = 'open';
