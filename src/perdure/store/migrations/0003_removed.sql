-- A run that a person took off the list. Its attempts and its journal stay, under its id; its name and key are free again.

ALTER TABLE runs ADD COLUMN removed INTEGER;

CREATE TRIGGER only_final_runs_are_removed BEFORE UPDATE ON runs
WHEN NEW.removed IS NOT NULL AND (NEW.state NOT IN ('succeeded', 'failed', 'cancelled') OR NEW.opened = 1)
BEGIN
    SELECT RAISE(ABORT, 'only a run in a final state can be removed');
END;
