-- A board of ten thousand runs is counted and paged without reading them all; and the few that wait for a person are found at once.

CREATE INDEX runs_by_change ON runs (state, updated, ordinal) WHERE removed IS NULL;
CREATE INDEX runs_for_a_person ON runs (updated, ordinal) WHERE opened = 1 OR conditions <> '[]';
CREATE INDEX failed_attempts ON attempts (ended) WHERE outcome <> 'succeeded';
