-- How full a run's conversation is, for lists: what its newest request carried, and what its model takes, in tokens; 0: not known.

ALTER TABLE runs ADD COLUMN fill_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN fill_window INTEGER NOT NULL DEFAULT 0;
