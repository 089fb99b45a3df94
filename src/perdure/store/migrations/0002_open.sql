-- A run that a person has open in the agent's own program: nobody works on it, on its workdir or on its conversation meanwhile.

ALTER TABLE runs ADD COLUMN opened INTEGER NOT NULL DEFAULT 0 CHECK (opened IN (0, 1));

CREATE INDEX opened_conversations ON runs (agent, scope) WHERE opened = 1;
CREATE INDEX opened_workspaces ON runs (workspace_id) WHERE opened = 1;
CREATE INDEX runs_by_scope ON runs (agent, scope, ordinal);
CREATE INDEX sessions_by_id ON sessions (id);

CREATE TRIGGER no_open_run_is_running BEFORE UPDATE ON runs
WHEN NEW.opened = 1 AND NEW.state = 'running'
BEGIN
    SELECT RAISE(ABORT, 'a run that is open for a person cannot be running');
END;
