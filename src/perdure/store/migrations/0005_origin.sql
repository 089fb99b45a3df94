-- A run that came from another machine brings its attempts with it. It is never queued by its coming: a person says when it goes on.

ALTER TABLE runs ADD COLUMN origin TEXT NOT NULL DEFAULT '';

DROP TRIGGER runs_begin_waiting;

CREATE TRIGGER runs_begin_waiting BEFORE INSERT ON runs
WHEN (NEW.origin = '' AND NEW.state NOT IN ('pending', 'queued'))
  OR (NEW.origin <> '' AND NEW.state NOT IN ('succeeded', 'failed', 'cancelled'))
BEGIN
    SELECT RAISE(ABORT, 'a new run is pending or queued, and one from another machine is at its end');
END;
