-- For those who count: how many runs are in which state, and what the journal tells of trouble.

CREATE INDEX runs_counted ON runs (state, agent, removed);
CREATE INDEX sessions_counted ON sessions (agent, state);
CREATE INDEX inbox_counted ON inbox (source, state);
CREATE INDEX records_of_trouble ON records (kind, run)
WHERE kind IN ('checkpoint_missed', 'collision_seen', 'compacted', 'copy_missed', 'rolled_over');
