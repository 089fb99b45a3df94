-- Every statement of the store, by name. Parameters are `:name`; the dialects of SQLite and PostgreSQL both take them
-- (psycopg after one rewriting to `%(name)s`). Nothing here is put together from pieces at run time.

-- name: add_run
INSERT INTO runs (id, name, key, state, agent, scope, workspace_id, place, attempts_allowed, run_after, created, updated, spec, workspace,
                  host, host_name, rule, title, link)
VALUES (:id, :name, :key, 'queued', :agent, :scope, :workspace_id, :place, :attempts_allowed, :now, :now, :now, :spec, :workspace,
        :host, :host_name, :rule, :title, :link)
RETURNING *;

-- name: take_in_run
INSERT INTO runs (id, name, state, agent, scope, workspace_id, place, context_version, attempt, attempts_allowed, run_after, reason,
                  created, updated, finished, spec, workspace, conditions, origin, rule, title, link)
VALUES (:id, :name, :state, :agent, :scope, :workspace_id, :place, :context_version, :attempt, :attempts_allowed, :now, :reason,
        :created, :now, :now, :spec, :workspace, :conditions, :origin, :rule, :title, :link)
RETURNING *;

-- name: take_in_record
INSERT INTO records (run, attempt, at, kind, event) VALUES (:run, :attempt, :at, :kind, :event);

-- name: run_by_id
SELECT * FROM runs WHERE id = :ref AND removed IS NULL;

-- name: run_by_name
SELECT * FROM runs WHERE name = :ref AND removed IS NULL;

-- name: run_by_key
SELECT * FROM runs WHERE key = :ref AND removed IS NULL;

-- name: runs_by_prefix
SELECT * FROM runs WHERE id >= :ref AND id < :above AND removed IS NULL ORDER BY id LIMIT 6;

-- name: newest_names
SELECT name FROM runs WHERE removed IS NULL ORDER BY ordinal DESC LIMIT 500;

-- name: running_beside
-- The running run, if any, that holds this workspace or this conversation.
SELECT * FROM runs
WHERE state = 'running' AND id <> :id AND (workspace_id = :workspace_id OR (agent = :agent AND scope = :scope))
LIMIT 1;

-- name: newest
SELECT ordinal, id, name, state, agent, attempt, reason, updated, created, place, worker, run_after, fill_tokens, fill_window,
       lease_until, host, rule
FROM runs WHERE removed IS NULL AND ordinal < :before AND (:agent = '' OR agent = :agent) AND (:scope = '' OR scope = :scope)
ORDER BY ordinal DESC LIMIT :limit;

-- name: newest_in_state
SELECT ordinal, id, name, state, agent, attempt, reason, updated, created, place, worker, run_after, fill_tokens, fill_window,
       lease_until, host, rule
FROM runs WHERE state = :state AND removed IS NULL AND ordinal < :before
  AND (:agent = '' OR agent = :agent) AND (:scope = '' OR scope = :scope)
ORDER BY ordinal DESC LIMIT :limit;

-- name: last_changed_in_state
SELECT ordinal, id, name, state, agent, attempt, reason, updated, created, place, worker, run_after, fill_tokens, fill_window,
       lease_until, host, rule
FROM runs WHERE state = :state AND removed IS NULL
ORDER BY updated DESC, ordinal DESC LIMIT :limit;

-- name: claim_next
UPDATE runs
SET state = 'running', attempt = attempt + 1, worker = :worker, lease_until = :lease_until, reason = '', updated = :now
WHERE id = (
    SELECT due.id FROM runs AS due
    WHERE due.state = 'queued' AND due.run_after <= :now
      AND (due.host IN ('', :host) OR due.run_after <= :left_alone)
      AND NOT EXISTS (SELECT 1 FROM runs AS busy WHERE busy.state = 'running' AND busy.workspace_id = due.workspace_id)
      AND NOT EXISTS (SELECT 1 FROM runs AS busy WHERE busy.state = 'running' AND busy.agent = due.agent AND busy.scope = due.scope)
      AND NOT EXISTS (SELECT 1 FROM runs AS held WHERE held.opened = 1 AND held.workspace_id = due.workspace_id)
      AND NOT EXISTS (SELECT 1 FROM runs AS held WHERE held.opened = 1 AND held.agent = due.agent AND held.scope = due.scope)
    ORDER BY due.run_after, due.ordinal
    LIMIT 1
)
RETURNING *;

-- name: due
SELECT due.* FROM runs AS due
WHERE due.state = 'queued' AND due.run_after <= :now
  AND (due.host IN ('', :host) OR due.run_after <= :left_alone)
  AND NOT EXISTS (SELECT 1 FROM runs AS busy WHERE busy.state = 'running' AND busy.workspace_id = due.workspace_id)
  AND NOT EXISTS (SELECT 1 FROM runs AS busy WHERE busy.state = 'running' AND busy.agent = due.agent AND busy.scope = due.scope)
  AND NOT EXISTS (SELECT 1 FROM runs AS held WHERE held.opened = 1 AND held.workspace_id = due.workspace_id)
  AND NOT EXISTS (SELECT 1 FROM runs AS held WHERE held.opened = 1 AND held.agent = due.agent AND held.scope = due.scope)
ORDER BY due.run_after, due.ordinal
LIMIT :limit;

-- name: claim_one
UPDATE runs
SET state = 'running', attempt = attempt + 1, worker = :worker, lease_until = :lease_until, reason = '', updated = :now
WHERE id = (
    SELECT due.id FROM runs AS due
    WHERE due.id = :id AND due.state = 'queued' AND due.run_after <= :now
      AND NOT EXISTS (SELECT 1 FROM runs AS busy WHERE busy.state = 'running' AND busy.workspace_id = due.workspace_id)
      AND NOT EXISTS (SELECT 1 FROM runs AS busy WHERE busy.state = 'running' AND busy.agent = due.agent AND busy.scope = due.scope)
      AND NOT EXISTS (SELECT 1 FROM runs AS held WHERE held.opened = 1 AND held.workspace_id = due.workspace_id)
      AND NOT EXISTS (SELECT 1 FROM runs AS held WHERE held.opened = 1 AND held.agent = due.agent AND held.scope = due.scope)
)
RETURNING *;

-- name: held
-- The run of a claim, if the claim still holds it: the fence of every claimed write.
SELECT * FROM runs WHERE id = :id AND state = 'running' AND attempt = :attempt AND worker = :worker;

-- name: adopt
-- `lease_until` as it was seen: an owner that renewed since then is alive and keeps its attempt.
UPDATE runs SET worker = :new_worker, lease_until = :new_lease, updated = :now
WHERE id = :id AND state = 'running' AND attempt = :attempt AND worker = :worker AND lease_until = :lease_until
RETURNING *;

-- name: renew
UPDATE runs SET lease_until = :lease_until
WHERE id = :id AND state = 'running' AND attempt = :attempt AND worker = :worker
RETURNING *;

-- name: host_beside
-- Where the workdir or the conversation of a new run lies already.
SELECT host, host_name FROM runs WHERE host <> '' AND (workspace_id = :workspace_id OR (agent = :agent AND scope = :scope))
ORDER BY updated DESC, ordinal DESC LIMIT 1;

-- name: bind_to_host
-- A workdir and a conversation are in one place, whichever runs they serve.
UPDATE runs SET host = :host, host_name = :host_name WHERE workspace_id = :workspace_id OR (agent = :agent AND scope = :scope);

-- name: place_run
UPDATE runs SET workspace_id = :workspace_id, place = :place, workspace = :workspace, updated = :now WHERE id = :id;

-- name: reassign
UPDATE runs SET agent = :agent, spec = :spec, updated = :now WHERE id = :id AND state <> 'running' RETURNING *;

-- name: retitle
UPDATE runs SET title = :title, spec = :spec, updated = :now WHERE id = :id;

-- name: touch_run
UPDATE runs SET updated = :now WHERE id = :id;

-- name: settle
UPDATE runs
SET state = :state, run_after = :run_after, reason = :reason, conditions = :conditions, finished = :finished,
    worker = '', lease_until = 0, cancel_requested = 0, updated = :now
WHERE id = :id
RETURNING *;

-- name: reopen
UPDATE runs
SET state = 'queued', run_after = :now, reason = :reason, conditions = :conditions, attempts_allowed = :attempts_allowed,
    cancel_requested = 0, finished = NULL, updated = :now
WHERE id = :id
RETURNING *;

-- name: instruct
UPDATE runs SET context_version = :context_version, attempts_allowed = :attempts_allowed, updated = :now
WHERE id = :id
RETURNING *;

-- name: open_run
-- Only while nobody works on the run, or on its workdir or conversation.
UPDATE runs SET opened = 1, conditions = :conditions, updated = :now WHERE id = :id AND state <> 'running' AND opened = 0
RETURNING *;

-- name: take_back
UPDATE runs SET opened = 0, conditions = :conditions, updated = :now WHERE id = :id AND opened = 1 RETURNING *;

-- name: opened_beside
-- The run, if any, that a person has open in this workspace or conversation: this one, or another.
SELECT * FROM runs WHERE opened = 1 AND (workspace_id = :workspace_id OR (agent = :agent AND scope = :scope)) LIMIT 1;

-- name: newest_of_scope
SELECT * FROM runs WHERE agent = :agent AND scope = :scope AND removed IS NULL ORDER BY ordinal DESC LIMIT 1;

-- name: newest_under_rule
SELECT * FROM runs WHERE rule = :rule AND scope = :scope AND removed IS NULL ORDER BY ordinal DESC LIMIT 1;

-- name: remove_run
UPDATE runs SET removed = :now, name = id, key = NULL, updated = :now
WHERE id = :id AND state IN ('succeeded', 'failed', 'cancelled') AND opened = 0
RETURNING *;

-- name: put_back_run
-- Its name and key only if nobody has taken them since.
UPDATE runs SET removed = NULL, updated = :now,
    name = CASE WHEN :name <> '' AND NOT EXISTS (SELECT 1 FROM runs AS other WHERE other.name = :name) THEN :name ELSE name END,
    key = CASE WHEN :key <> '' AND NOT EXISTS (SELECT 1 FROM runs AS other WHERE other.key = :key) THEN :key ELSE key END
WHERE id = :id AND removed IS NOT NULL
RETURNING *;

-- name: placed
-- Every run that there ever was, removed ones too: what may lie on disk.
SELECT id, name, state, agent, scope, updated, finished, removed, opened, workspace, rule FROM runs ORDER BY ordinal;

-- name: ask_to_stop
UPDATE runs SET cancel_requested = 1, updated = :now WHERE id = :id RETURNING *;

-- name: running
SELECT * FROM runs WHERE state = 'running' ORDER BY ordinal;

-- name: lapsed
SELECT * FROM runs WHERE state = 'running' AND lease_until <= :now ORDER BY lease_until, ordinal;

-- name: add_context
INSERT INTO contexts (run, version, at, text, given, message) VALUES (:run, :version, :at, :text, :given, :message);

-- name: message
SELECT text FROM contexts WHERE run = :run AND message = :message;

-- name: first_context
SELECT given FROM contexts WHERE run = :run AND version = 1;

-- name: contexts
SELECT version, text, at, given, message FROM contexts WHERE run = :run ORDER BY version;

-- name: add_attempt
INSERT INTO attempts (run, number, started, body) VALUES (:run, :number, :started, :body);

-- name: attempt
SELECT body FROM attempts WHERE run = :run AND number = :number;

-- name: attempts
SELECT body FROM attempts WHERE run = :run ORDER BY number;

-- name: put_attempt
UPDATE attempts SET ended = :ended, outcome = :outcome, body = :body WHERE run = :run AND number = :number AND ended IS NULL;

-- name: add_record
INSERT INTO records (run, attempt, at, kind, event, actor) VALUES (:run, :attempt, :at, :kind, :event, :actor) RETURNING seq;

-- name: audit_head
SELECT number, hash, since FROM audit_head WHERE id = 1;

-- name: held_audit_head
SELECT number, hash FROM audit_head WHERE id = 1;

-- name: put_audit_head
UPDATE audit_head SET number = :number, hash = :hash WHERE id = 1;

-- name: add_audit
INSERT INTO audit (number, at, actor, kind, run, attempt, record, about, sha256, previous, hash)
VALUES (:number, :at, :actor, :kind, :run, :attempt, :record, :about, :sha256, :previous, :hash);

-- name: audit
SELECT number, at, actor, kind, run, attempt, record, about, sha256, previous, hash FROM audit
WHERE number > :after AND at >= :since AND (:actor = '' OR LOWER(actor) LIKE :actor ESCAPE '!') ORDER BY number LIMIT :limit;

-- name: audit_of_run
-- As `audit`, by the index that runs have.
SELECT number, at, actor, kind, run, attempt, record, about, sha256, previous, hash FROM audit
WHERE run = :run AND number > :after AND at >= :since AND (:actor = '' OR LOWER(actor) LIKE :actor ESCAPE '!')
ORDER BY number LIMIT :limit;

-- name: audited_records
SELECT audit.number, records.seq, records.run, records.attempt, records.at, records.kind, records.actor, records.event
FROM audit LEFT JOIN records ON records.seq = audit.record
WHERE audit.number > :after AND audit.number <= :until AND audit.record > 0 ORDER BY audit.number;

-- name: unaudited_records
-- Changes of state that are in the journal and not in the trail; what came with a run from another machine is in that one's.
SELECT records.seq, records.kind, records.run FROM records JOIN runs ON runs.id = records.run
WHERE records.seq > :since AND runs.origin = ''
  AND records.kind IN ('run_submitted', 'context_added', 'attempt_claimed', 'attempt_started', 'attempt_adopted', 'attempt_ended',
                       'run_queued', 'cancel_requested', 'run_finished')
  AND NOT EXISTS (SELECT 1 FROM audit WHERE audit.record = records.seq AND audit.record > 0) ORDER BY records.seq LIMIT :limit;

-- name: latest
SELECT run, seq, attempt, at, event, actor FROM records WHERE run = :run AND seq < :before ORDER BY seq DESC LIMIT :limit;

-- name: history
SELECT run, seq, attempt, at, event, actor FROM records WHERE run = :run AND seq > :after ORDER BY seq LIMIT :limit;

-- name: run_events
-- Without the kinds of `AgentEvent`.
SELECT run, seq, attempt, at, event, actor FROM records WHERE run = :run
  AND kind NOT IN ('session_seen', 'items_marked', 'turn_started', 'said', 'said_part', 'tool_started', 'tool_ended', 'tool_denied',
                   'question_asked', 'reply_cut', 'last_word_given', 'helpers_seen', 'usage_seen', 'reply_seen', 'request_seen',
                   'context_seen', 'retry_seen', 'limit_seen', 'writes_lost', 'turn_ended', 'unrecognised')
ORDER BY seq;

-- name: attempt_history
SELECT run, seq, attempt, at, event, actor FROM records WHERE run = :run AND attempt = :attempt ORDER BY seq DESC LIMIT :limit;

-- name: journal
SELECT run, seq, attempt, at, event, actor FROM records WHERE seq > :after ORDER BY seq LIMIT :limit;

-- name: newest_record
SELECT COALESCE(MAX(seq), 0) AS seq FROM records;

-- name: live_session
SELECT id, body, revision FROM sessions WHERE agent = :agent AND scope = :scope AND state <> 'retired';

-- name: lineage
SELECT body, revision FROM sessions WHERE agent = :agent AND scope = :scope ORDER BY created, ordinal;

-- name: sessions
SELECT body, revision FROM sessions ORDER BY updated DESC, ordinal DESC LIMIT :limit;

-- name: sessions_by_id
SELECT body, revision FROM sessions WHERE id = :id ORDER BY updated DESC, ordinal DESC;

-- name: put_session
-- The revision grows with every write of the key, whichever of its conversations it is of.
INSERT INTO sessions (agent, scope, id, state, created, updated, body, revision)
VALUES (:agent, :scope, :id, :state, :created, :updated, :body,
        (SELECT COALESCE(MAX(beside.revision), 0) + 1 FROM sessions AS beside WHERE beside.agent = :agent AND beside.scope = :scope))
ON CONFLICT (agent, scope, id)
DO UPDATE SET state = excluded.state, created = excluded.created, updated = excluded.updated, body = excluded.body,
              revision = excluded.revision
RETURNING revision;

-- name: session_revision
-- An update, so that nobody else stores it between the look and the write.
UPDATE sessions SET revision = revision WHERE agent = :agent AND scope = :scope AND id = :id RETURNING revision;

-- name: running_in_scope
SELECT * FROM runs WHERE state = 'running' AND agent = :agent AND scope = :scope;

-- name: runs_of_scope
-- Removed ones too: their attempts tell of the conversation as well.
SELECT * FROM runs WHERE agent = :agent AND scope = :scope ORDER BY ordinal;

-- name: ended_attempts
SELECT attempts.body, runs.agent, runs.scope FROM attempts JOIN runs ON runs.id = attempts.run
WHERE attempts.ended >= :since AND attempts.ended < :until
  AND (:agent = '' OR runs.agent = :agent) AND (:scope = '' OR runs.scope = :scope)
ORDER BY attempts.ended, attempts.run, attempts.number;

-- name: identity
SELECT id, secret FROM identity WHERE one = 1;

-- name: be_identified
INSERT INTO identity (one, id, secret) VALUES (1, :id, :secret) ON CONFLICT (one) DO NOTHING;

-- name: next_checkpoint
SELECT COALESCE(MAX(number), 0) + 1 AS number FROM checkpoints WHERE workspace_id = :workspace_id OR run = :run;

-- name: add_checkpoint
INSERT INTO checkpoints (workspace_id, number, run, attempt, at, body) VALUES (:workspace_id, :number, :run, :attempt, :at, :body);

-- name: checkpoints
SELECT body FROM checkpoints WHERE run = :run ORDER BY number;

-- name: all_checkpoints
SELECT body FROM checkpoints ORDER BY at, workspace_id, number;

-- name: forget_checkpoint
DELETE FROM checkpoints WHERE run = :run AND number = :number;

-- name: add_plan
INSERT INTO plans (id, name, created, updated, body) VALUES (:id, :name, :now, :now, :body)
ON CONFLICT (name) DO NOTHING
RETURNING *;

-- name: plan
SELECT * FROM plans WHERE name = :ref OR id = :ref;

-- name: plans
SELECT * FROM plans ORDER BY ordinal DESC LIMIT :limit;

-- name: claim_plan
-- Worker and lease as they were seen: whoever was quicker, or renewed since, keeps it.
UPDATE plans SET worker = :new_worker, lease_until = :new_lease, updated = :now
WHERE id = :id AND worker = :worker AND lease_until = :lease_until
RETURNING *;

-- name: renew_plan
UPDATE plans SET lease_until = :lease_until WHERE id = :id AND worker = :worker RETURNING *;

-- name: put_plan
UPDATE plans SET body = :body, updated = :now WHERE id = :id AND worker = :worker RETURNING *;

-- name: release_plan
UPDATE plans SET worker = '', lease_until = 0, updated = :now WHERE id = :id AND worker = :worker;

-- name: held_plan
-- The fence of every write about a plan's tasks.
UPDATE plans SET updated = :now WHERE id = :id AND worker = :worker RETURNING id;

-- name: put_planned
INSERT INTO planned_runs (plan, task, body) VALUES (:plan, :task, :body)
ON CONFLICT (plan, task) DO UPDATE SET body = excluded.body;

-- name: planned
SELECT body FROM planned_runs WHERE plan = :plan ORDER BY ordinal;

-- name: accept_delivery
-- No row comes back for one that was here before, by its id or by its body.
INSERT INTO inbox (source, delivery, forge, event, sha256, state, reason, received, updated, size, intent, body, kept, repository, issue)
VALUES (:source, :delivery, :forge, :event, :sha256, :state, :reason, :now, :now, :size, :intent, :body, :kept, :repository, :issue)
ON CONFLICT DO NOTHING
RETURNING number;

-- name: delivery_again
UPDATE inbox SET times = times + 1, updated = :now WHERE source = :source AND (sha256 = :sha256 OR delivery = :delivery) RETURNING number;

-- name: delivery
SELECT * FROM inbox WHERE number = :number;

-- name: deliveries_by_id
SELECT * FROM inbox WHERE delivery >= :ref AND delivery < :above ORDER BY number DESC LIMIT 6;

-- name: inbox
-- Newest first, below a number. An empty filter lets all pass.
SELECT number, source, delivery, forge, event, sha256, state, reason, received, updated, times, size, kept, intent FROM inbox
WHERE number < :before AND (:state = '' OR state = :state) AND (:source = '' OR source = :source)
ORDER BY number DESC LIMIT :limit;

-- name: deliveries_about
-- Newest first. Deliveries from before the two columns existed have NULL in them, and are returned whatever they are about.
SELECT number, source, delivery, forge, event, sha256, state, reason, received, updated, times, size, kept, intent FROM inbox
WHERE source = :source AND repository = :repository AND issue = :issue AND number < :before AND intent <> ''
UNION ALL
SELECT number, source, delivery, forge, event, sha256, state, reason, received, updated, times, size, kept, intent FROM inbox
WHERE source = :source AND repository IS NULL AND number < :before AND intent <> ''
ORDER BY number DESC LIMIT :limit;

-- name: deliveries_about_repository
-- As `deliveries_about`, for all issues of the repository.
SELECT number, source, delivery, forge, event, sha256, state, reason, received, updated, times, size, kept, intent FROM inbox
WHERE source = :source AND repository = :repository AND number < :before AND intent <> ''
UNION ALL
SELECT number, source, delivery, forge, event, sha256, state, reason, received, updated, times, size, kept, intent FROM inbox
WHERE source = :source AND repository IS NULL AND number < :before AND intent <> ''
ORDER BY number DESC LIMIT :limit;

-- name: deliveries_with_reason
SELECT number, source, delivery, forge, event, sha256, state, reason, received, updated, times, size, kept, intent FROM inbox
WHERE reason = :reason AND state IN ('handled', 'ignored') AND intent <> '' AND source = :source
ORDER BY number DESC LIMIT :limit;

-- name: waiting_deliveries
SELECT number, source, delivery, forge, event, sha256, state, reason, received, updated, times, size, kept, intent FROM inbox
WHERE state = 'received' ORDER BY number LIMIT :limit;

-- name: settle_delivery
-- Only what is still to be done can be settled: who was slower gets nothing.
UPDATE inbox SET state = :state, reason = :reason, updated = :now WHERE number = :number AND state = 'received' RETURNING number;

-- name: delay_delivery
UPDATE inbox SET reason = :reason WHERE number = :number AND state = 'received';

-- name: replay_delivery
UPDATE inbox SET state = :state, reason = :reason, intent = :intent, updated = :now, repository = :repository, issue = :issue
WHERE number = :number
RETURNING number, source, delivery, forge, event, sha256, state, reason, received, updated, times, size, kept, intent;

-- name: thin_inbox
UPDATE inbox SET body = '', kept = 0 WHERE kept = 1 AND state IN ('handled', 'ignored') AND updated < :before RETURNING number;

-- name: forget_deliveries
DELETE FROM inbox WHERE state IN ('handled', 'ignored') AND updated < :before RETURNING number;

-- name: fill_run
UPDATE runs SET fill_tokens = :fill_tokens, fill_window = :fill_window WHERE id = :id;

-- name: seats_taken
SELECT COUNT(*) AS taken FROM runs WHERE state = 'running' AND account = :account;

-- name: seats_taken_under
SELECT COUNT(*) AS taken FROM runs WHERE state = 'running' AND rule = :rule;

-- name: take_seat
UPDATE runs SET account = :account WHERE id = :id RETURNING *;

-- name: parked
SELECT * FROM parked WHERE until_ms > :now ORDER BY what, model;

-- name: parked_for
SELECT what FROM parked WHERE (what = :account OR what = :agent) AND (model = '' OR model = :model) AND until_ms > :now LIMIT 1;

-- name: forget_parked
DELETE FROM parked WHERE until_ms <= :now;

-- name: park
INSERT INTO parked (what, model, since, until_ms, reason) VALUES (:what, :model, :since, :until_ms, :reason)
ON CONFLICT (what, model) DO UPDATE SET since = excluded.since, until_ms = excluded.until_ms, reason = excluded.reason;

-- name: unpark
DELETE FROM parked WHERE what = :what;

-- name: defer
-- Only while nobody works on it, and no person has said anything else meanwhile.
UPDATE runs SET run_after = :run_after, reason = :reason, updated = :now WHERE id = :id AND state = 'queued' RETURNING *;

-- name: latest_attempts
SELECT attempts.body AS body FROM attempts JOIN runs ON runs.id = attempts.run
WHERE runs.agent = :agent AND attempts.ended IS NOT NULL
ORDER BY attempts.started DESC LIMIT :limit;

-- name: add_posting
INSERT INTO postings (run, updated) VALUES (:run, :now) ON CONFLICT DO NOTHING;

-- name: posting
SELECT * FROM postings WHERE run = :run;

-- name: postings_due
-- What changed since it was told, or could not be told. A run's files are on its host, so that one tells of it.
SELECT postings.* FROM postings JOIN runs ON runs.id = postings.run
WHERE postings.due <= :now AND (runs.updated > postings.seen OR postings.tries > 0) AND runs.removed IS NULL
  AND (runs.host = '' OR runs.host = :host) AND (postings.holder = :holder OR postings.held_until <= :now)
ORDER BY postings.due, runs.updated LIMIT :limit;

-- name: postings_waiting
SELECT postings.* FROM postings JOIN runs ON runs.id = postings.run WHERE tries > 0 AND removed IS NULL ORDER BY due LIMIT :limit;

-- name: hold_posting
UPDATE postings SET holder = :holder, held_until = :until WHERE run = :run AND (holder = :holder OR held_until <= :now) RETURNING *;

-- name: put_posting
UPDATE postings SET seen = :seen, due = :due, tries = :tries, body = :body, updated = :now WHERE run = :run AND holder = :holder
RETURNING run;

-- name: hurry_posting
UPDATE postings SET due = 0, tries = CASE WHEN tries = 0 THEN 1 ELSE tries END WHERE run = :run RETURNING run;

-- name: tell_run
UPDATE runs SET conditions = :conditions, updated = :now WHERE id = :id RETURNING *;

-- name: board
-- Runs of a state, the newest change first, below a change that was seen; those that ask for a person are on a list of their own.
SELECT runs.ordinal, runs.id, runs.name, runs.state, runs.agent, runs.attempt, runs.attempts_allowed, runs.reason, runs.created,
       runs.updated, runs.finished, runs.run_after, runs.fill_tokens, runs.fill_window, runs.place, runs.opened,
       runs.host, runs.host_name, runs.worker, runs.lease_until,
       runs.cancel_requested, runs.conditions, runs.workspace, SUBSTR(first.text, 1, 400) AS prompt,
       runs.key, runs.scope, runs.rule, runs.title, runs.link
FROM runs JOIN contexts AS first ON first.run = runs.id AND first.version = 1
WHERE runs.removed IS NULL AND runs.state = :state
  AND NOT (runs.opened = 1 OR runs.conditions LIKE '%"type":"needs_%')
  AND (runs.updated < :updated OR (runs.updated = :updated AND runs.ordinal < :ordinal))
  AND (:agent = '' OR runs.agent = :agent OR runs.rule = :agent)
  AND (:words = '' OR LOWER(runs.name) LIKE :words ESCAPE '!' OR LOWER(runs.place) LIKE :words ESCAPE '!'
       OR LOWER(runs.scope) LIKE :words ESCAPE '!' OR LOWER(first.text) LIKE :words ESCAPE '!'
       OR LOWER(runs.title) LIKE :words ESCAPE '!')
ORDER BY runs.updated DESC, runs.ordinal DESC LIMIT :limit;

-- name: board_asking
-- As `board`, for the runs of all states that ask for a person or are open to one.
SELECT runs.ordinal, runs.id, runs.name, runs.state, runs.agent, runs.attempt, runs.attempts_allowed, runs.reason, runs.created,
       runs.updated, runs.finished, runs.run_after, runs.fill_tokens, runs.fill_window, runs.place, runs.opened,
       runs.host, runs.host_name, runs.worker, runs.lease_until,
       runs.cancel_requested, runs.conditions, runs.workspace, SUBSTR(first.text, 1, 400) AS prompt,
       runs.key, runs.scope, runs.rule, runs.title, runs.link
FROM runs JOIN contexts AS first ON first.run = runs.id AND first.version = 1
WHERE runs.removed IS NULL AND (runs.opened = 1 OR runs.conditions <> '[]')
  AND (runs.opened = 1 OR runs.conditions LIKE '%"type":"needs_%')
  AND (runs.updated < :updated OR (runs.updated = :updated AND runs.ordinal < :ordinal))
  AND (:agent = '' OR runs.agent = :agent OR runs.rule = :agent)
  AND (:words = '' OR LOWER(runs.name) LIKE :words ESCAPE '!' OR LOWER(runs.place) LIKE :words ESCAPE '!'
       OR LOWER(runs.scope) LIKE :words ESCAPE '!' OR LOWER(first.text) LIKE :words ESCAPE '!'
       OR LOWER(runs.title) LIKE :words ESCAPE '!')
ORDER BY runs.updated DESC, runs.ordinal DESC LIMIT :limit;

-- name: board_counts
SELECT state, COUNT(*) AS many FROM runs WHERE removed IS NULL GROUP BY state;

-- name: board_asking_counts
-- Grouped by a text of no index, so that the few are found by theirs.
SELECT state || '' AS state, COUNT(*) AS many FROM runs
WHERE removed IS NULL AND (opened = 1 OR conditions <> '[]') AND (opened = 1 OR conditions LIKE '%"type":"needs_%') GROUP BY state || '';

-- name: board_matching
-- The counts of what a search finds: `asks` is 1 for what asks for a person.
SELECT runs.state, CASE WHEN runs.opened = 1 OR runs.conditions LIKE '%"type":"needs_%' THEN 1 ELSE 0 END AS asks, COUNT(*) AS many
FROM runs JOIN contexts AS first ON first.run = runs.id AND first.version = 1
WHERE runs.removed IS NULL
  AND (:agent = '' OR runs.agent = :agent OR runs.rule = :agent)
  AND (:words = '' OR LOWER(runs.name) LIKE :words ESCAPE '!' OR LOWER(runs.place) LIKE :words ESCAPE '!'
       OR LOWER(runs.scope) LIKE :words ESCAPE '!' OR LOWER(first.text) LIKE :words ESCAPE '!'
       OR LOWER(runs.title) LIKE :words ESCAPE '!')
GROUP BY runs.state, asks;

-- name: board_found
-- As `board_matching`, run by run.
SELECT runs.id, runs.state, CASE WHEN runs.opened = 1 OR runs.conditions LIKE '%"type":"needs_%' THEN 1 ELSE 0 END AS asks
FROM runs JOIN contexts AS first ON first.run = runs.id AND first.version = 1
WHERE runs.removed IS NULL
  AND (:agent = '' OR runs.agent = :agent OR runs.rule = :agent)
  AND (:words = '' OR LOWER(runs.name) LIKE :words ESCAPE '!' OR LOWER(runs.place) LIKE :words ESCAPE '!'
       OR LOWER(runs.scope) LIKE :words ESCAPE '!' OR LOWER(first.text) LIKE :words ESCAPE '!'
       OR LOWER(runs.title) LIKE :words ESCAPE '!');

-- name: run_marks
SELECT id, name, agent, rule, spec, workspace FROM runs ORDER BY ordinal DESC;

-- name: board_agents
-- Each agent is found by one step in an index, so the number of runs does not matter.
WITH RECURSIVE known (agent) AS (
  SELECT MIN(agent) FROM runs
  UNION ALL
  SELECT (SELECT MIN(agent) FROM runs WHERE runs.agent > known.agent) FROM known WHERE known.agent IS NOT NULL
)
SELECT agent FROM known WHERE agent IS NOT NULL AND EXISTS (
  SELECT 1 FROM runs WHERE runs.agent = known.agent AND runs.removed IS NULL
  AND runs.state IN ('pending', 'queued', 'running', 'succeeded', 'failed', 'cancelled')
) ORDER BY agent;

-- name: board_roles
SELECT DISTINCT rule FROM runs WHERE rule <> '' AND removed IS NULL ORDER BY rule LIMIT 200;

-- name: newest_attempts
SELECT body FROM attempts WHERE run = :run ORDER BY number DESC LIMIT :limit;

-- name: failed_attempts
SELECT attempts.run, attempts.number, attempts.ended, attempts.body, runs.agent, runs.name, runs.state, runs.removed
FROM attempts JOIN runs ON runs.id = attempts.run
WHERE attempts.outcome <> 'succeeded' AND attempts.ended >= :since ORDER BY attempts.ended DESC LIMIT :limit;

-- name: latest_word
SELECT run, seq, attempt, at, event, actor FROM records WHERE run = :run AND kind IN ('said', 'tool_started', 'attempt_started')
ORDER BY seq DESC LIMIT 1;

-- name: add_token
INSERT INTO tokens (name, sha256, scope, created, expires, repositories, labels)
VALUES (:name, :sha256, :scope, :now, :expires, :repositories, :labels)
ON CONFLICT DO NOTHING
RETURNING *;

-- name: tokens
SELECT name, scope, created, expires, used, repositories, labels FROM tokens ORDER BY ordinal;

-- name: token_of
SELECT name, scope, created, expires, used, repositories, labels FROM tokens WHERE sha256 = :sha256 AND (expires = 0 OR expires > :now);

-- name: use_token
UPDATE tokens SET used = :now WHERE name = :name AND used < :before;

-- name: remove_token
DELETE FROM tokens WHERE name = :name RETURNING *;

-- name: sign_in
INSERT INTO sign_ins (sha256, token, created, expires) VALUES (:sha256, :token, :now, :expires);

-- name: signed_in
-- A sign-in lives as long as its token does.
SELECT tokens.name, tokens.scope, tokens.created, tokens.expires, tokens.used, tokens.repositories, tokens.labels
FROM sign_ins JOIN tokens ON tokens.name = sign_ins.token
WHERE sign_ins.sha256 = :sha256 AND sign_ins.expires > :now AND (tokens.expires = 0 OR tokens.expires > :now);

-- name: sign_in_person
INSERT INTO openid_sign_ins (sha256, person, scope, repositories, labels, created, expires)
VALUES (:sha256, :person, :scope, :repositories, :labels, :now, :expires);

-- name: signed_in_person
SELECT person AS name, scope, created, expires, 0 AS used, repositories, labels FROM openid_sign_ins
WHERE sha256 = :sha256 AND expires > :now;

-- name: sign_out_person
DELETE FROM openid_sign_ins WHERE sha256 = :sha256;

-- name: sign_out_everywhere
DELETE FROM openid_sign_ins WHERE person = :person RETURNING sha256;

-- name: forget_people
DELETE FROM openid_sign_ins WHERE expires <= :now;

-- name: sign_out
DELETE FROM sign_ins WHERE sha256 = :sha256;

-- name: sign_out_token
DELETE FROM sign_ins WHERE token = :token;

-- name: forget_sign_ins
DELETE FROM sign_ins WHERE expires <= :now;

-- name: count_runs
SELECT state, agent, COUNT(*) AS number FROM runs WHERE removed IS NULL GROUP BY state, agent;

-- name: count_roles
SELECT state, rule, COUNT(*) AS number FROM runs WHERE removed IS NULL AND rule <> '' GROUP BY state, rule;

-- name: count_due
SELECT COUNT(*) AS number, MIN(run_after) AS since FROM runs WHERE state = 'queued' AND run_after <= :now;

-- name: count_running
SELECT agent, host_name, COUNT(*) AS number, SUM(CASE WHEN lease_until <= :now THEN 1 ELSE 0 END) AS lapsed,
       MIN(lease_until) AS lease_until
FROM runs WHERE state = 'running' GROUP BY agent, host_name;

-- name: count_conditions
-- Grouped by a text of no index, so that the few are found by theirs.
SELECT agent || '' AS agent, COUNT(*) AS number FROM runs
WHERE (opened = 1 OR conditions <> '[]') AND conditions LIKE '%"type":"needs_%' AND removed IS NULL GROUP BY agent || '';

-- name: count_opened
SELECT COUNT(*) AS number FROM runs WHERE opened = 1;

-- name: count_sessions
SELECT agent, state, COUNT(*) AS number FROM sessions GROUP BY agent, state;

-- name: count_deliveries
SELECT source, state, COUNT(*) AS number FROM inbox GROUP BY source, state;

-- name: oldest_delivery
SELECT MIN(received) AS since FROM inbox WHERE state = 'received';

-- name: count_parked
SELECT COUNT(*) AS number FROM parked WHERE until_ms > :now;

-- name: count_checkpoints
SELECT COUNT(*) AS number FROM checkpoints;

-- name: count_trouble
SELECT records.kind AS kind, runs.agent AS agent, COUNT(*) AS number FROM records JOIN runs ON runs.id = records.run
WHERE records.kind IN ('checkpoint_missed', 'collision_seen', 'compacted', 'copy_missed', 'rolled_over')
GROUP BY records.kind, runs.agent;

-- name: ended_after
SELECT attempts.run, attempts.number, attempts.ended, attempts.body, runs.agent, runs.scope
FROM attempts JOIN runs ON runs.id = attempts.run
WHERE attempts.ended >= :ended AND (attempts.ended, attempts.run, attempts.number) > (:ended, :run, :number)
ORDER BY attempts.ended, attempts.run, attempts.number
LIMIT :limit;

-- name: attempt_marks
SELECT run, seq, attempt, at, event, actor FROM records
WHERE run = :run AND attempt = :attempt
  AND kind IN ('agent_launched', 'attempt_adopted', 'checkpoint_taken', 'checkpoint_missed', 'collision_seen', 'compacted', 'rolled_over',
               'drift_seen', 'transcript_mended', 'copy_restored', 'session_confirmed', 'session_retired', 'verify_ended', 'limit_seen')
ORDER BY seq LIMIT 200;

-- name: final_words
SELECT event FROM records WHERE run = :run AND kind = 'turn_ended' ORDER BY seq DESC LIMIT 1;

-- name: add_request
INSERT INTO requests (run, number, state, expires, body) VALUES (:run, :number, :state, :expires, :body);

-- name: requests
SELECT body FROM requests WHERE run = :run ORDER BY number;

-- name: open_requests
SELECT body FROM requests WHERE state = 'open' ORDER BY expires, run, number LIMIT :limit;

-- name: request
SELECT body FROM requests WHERE run = :run AND number = :number;

-- name: put_request
-- Only a request in the state that was read is changed: of two answers one is first.
UPDATE requests SET state = :state, body = :body WHERE run = :run AND number = :number AND state = :was RETURNING number;

-- name: answered_run
-- A run whose last open request was answered is due.
UPDATE runs SET run_after = :now, conditions = :conditions, reason = :reason, updated = :now
WHERE id = :id AND state = 'queued'
RETURNING *;

-- name: notices_seen
SELECT line FROM notices_seen WHERE id = 1;

-- name: begin_notices
INSERT INTO notices_seen (id, line) VALUES (1, :line) ON CONFLICT DO NOTHING RETURNING line;

-- name: move_notices
-- Nobody, if another host was faster.
UPDATE notices_seen SET line = :line WHERE id = 1 AND line = :before RETURNING line;

-- name: add_notice
INSERT INTO notices (id, channel, line, event, run, at, body, state, due, tries, reason, updated)
VALUES (:id, :channel, :line, :event, :run, :at, :body, :state, :due, :tries, :reason, :now)
ON CONFLICT DO NOTHING;

-- name: notices_due
SELECT * FROM notices WHERE state = 'waiting' AND due <= :now AND (holder = :holder OR held_until <= :now) ORDER BY due, ordinal LIMIT :limit;

-- name: notices
SELECT * FROM notices ORDER BY ordinal DESC LIMIT :limit;

-- name: hold_notice
UPDATE notices SET holder = :holder, held_until = :until
WHERE id = :id AND state = 'waiting' AND due <= :now AND (holder = :holder OR held_until <= :now) RETURNING *;

-- name: settle_notice
UPDATE notices SET state = :state, due = :due, tries = :tries, reason = :reason, updated = :now, held_until = 0
WHERE id = :id AND holder = :holder AND state = 'waiting' RETURNING id;

-- name: thin_notices
DELETE FROM notices WHERE state <> 'waiting' AND updated < :before RETURNING id;

-- name: is_signed_in
SELECT sha256 FROM sign_ins WHERE sha256 = :sha256 AND expires > :now
UNION ALL SELECT sha256 FROM openid_sign_ins WHERE sha256 = :sha256 AND expires > :now;

-- name: other_devices
SELECT id FROM push_devices WHERE person = :person AND id <> :id;

-- name: drop_endpoint
-- The browser is somebody else's now.
DELETE FROM push_devices WHERE endpoint = :endpoint AND id <> :id;

-- name: put_device
INSERT INTO push_devices
  (id, person, sign_in, name, endpoint, public_key, auth, server_key, wishes, repositories, labels, added, expires)
VALUES (:id, :person, :sign_in, :name, :endpoint, :public_key, :auth, :server_key, :wishes, :repositories, :labels, :now, :expires)
ON CONFLICT (id) DO UPDATE SET sign_in = excluded.sign_in, name = excluded.name, public_key = excluded.public_key,
  auth = excluded.auth, server_key = excluded.server_key, wishes = excluded.wishes, repositories = excluded.repositories,
  labels = excluded.labels, expires = excluded.expires;

-- name: renew_device
UPDATE push_devices SET sign_in = :sign_in, repositories = :repositories, labels = :labels, expires = :expires
WHERE id = :id AND expires > :now RETURNING id;

-- name: devices
SELECT * FROM push_devices WHERE expires > :now ORDER BY ordinal;

-- name: remove_device
DELETE FROM push_devices WHERE id = :id RETURNING name;

-- name: forget_devices
DELETE FROM push_devices WHERE expires <= :now;

-- name: forget_devices_of
DELETE FROM push_devices WHERE person = :person RETURNING id;

-- name: forget_device_signed_in
DELETE FROM push_devices WHERE sign_in = :sha256;
