-- The run of an issue is found by its rule and its scope, whichever agent has taken it over since.

CREATE INDEX runs_under_rules ON runs (rule, scope, ordinal);
