-- Whose limits a run draws on, set by whoever claims it; and what nobody is to be launched on until a time: an account whose usage limit
-- was hit (for one model, or for all), or an agent that does not start.

ALTER TABLE runs ADD COLUMN account TEXT NOT NULL DEFAULT '';

CREATE INDEX running_accounts ON runs (account) WHERE state = 'running';

CREATE TABLE parked (
    what     TEXT    NOT NULL,
    model    TEXT    NOT NULL DEFAULT '',
    since    INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    reason   TEXT    NOT NULL,
    PRIMARY KEY (what, model)
);

CREATE INDEX attempts_by_start ON attempts (started);
