-- What a run is about, for lists: the title and the link of its issue or pull request. Older runs have none.

ALTER TABLE runs ADD COLUMN title TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN link TEXT NOT NULL DEFAULT '';

CREATE INDEX runs_roles ON runs (rule, state, removed) WHERE rule <> '';
