-- The repository and the issue or pull request (`#4`, `!4`) that a delivery is about, so that related deliveries are found in an index.
-- NULL: the delivery was stored before this migration, so its intent must be compared.

ALTER TABLE inbox ADD COLUMN repository TEXT;

ALTER TABLE inbox ADD COLUMN issue TEXT;

CREATE INDEX inbox_by_repository ON inbox (source, repository, number);

CREATE INDEX inbox_by_issue ON inbox (source, repository, issue, number);

CREATE INDEX inbox_by_reason ON inbox (reason, number) WHERE state IN ('handled', 'ignored') AND intent <> '';
