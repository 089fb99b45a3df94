-- In a shared database: the host on which a run's workdir and conversation lie. Empty: any host may begin, or the database is not shared.

ALTER TABLE runs ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN host_name TEXT NOT NULL DEFAULT '';
