-- Under which rule of the configuration a run works: so many of them may be at work at once.

ALTER TABLE runs ADD COLUMN rule TEXT NOT NULL DEFAULT '';

CREATE INDEX running_rules ON runs (rule) WHERE state = 'running';
