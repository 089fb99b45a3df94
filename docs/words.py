"""Descriptions of names in the code that have none there. `generate` reads them, and fails if
descriptions and code do not have the same names."""

from __future__ import annotations

SETTINGS = {
    "root": "the directory of workdirs and cache clones",
    "state": "the directory of the database, the attempts' logs and the copies of transcripts; must be on a local disk",
    "agent": "the agent: one that `perdure agents` lists",
    "model": "the model, by the agent's own name for it; not used for another agent than `agent`; empty: the agent's own default",
    "permissions": "what the agent may do without asking: `read`, `edit`, `full`",
    "continuity": "what may happen when the conversation is lost: `strict`, `disclose`, `fresh-ok`",
    "attempts": "how many attempts a run may have, without those that do not count; 1 to 1000",
    "timeout": "the maximum time of one attempt; 0: no limit",
    "stall": "how long an agent may be silent; five times as long while a tool runs; 0: no limit",
    "grace": "the time between SIGTERM and SIGKILL when an agent is ended",
    "checkpoint_every": "the minimum time between two checkpoints while an agent works; 0: checkpoints only at the ends of turns and attempts",
    "checkpoint_ignored": "which ignored files a checkpoint contains: `small` (each up to 10 MiB, without build output), `all`, `none`",
    "cold_cache": (
        "what to do when a conversation was idle so long that the model has to read all of it again: `resume`; `compact` or "
        "`cheapest` if that costs less; `ask` a person"
    ),
    "account_jobs": "how many runs may use one account at once: `2`, or by agent `claude=2,codex=1`; empty: any number",
    "spare_workdirs": (
        "how many [checkouts](../how-to/spare-workdirs.md) `perdure work` and `perdure serve` prepare for the next runs of each "
        "repository; 0 to 100, 0: none"
    ),
    "budget_usd": "dollars for all attempts of a run together; 0: no limit",
    "on_denied": (
        "what to do if a tool call was denied in a turn that otherwise ended well: `ask` (a person is asked: `needs_input`), "
        "`fail` or `report` (the turn counts). Not for a project's file"
    ),
    "last_word": (
        "`on` asks the agent to end with its status, a summary, open questions and follow-ups in a fixed format (Claude Code, "
        "Codex)"
    ),
    "on_leftover": (
        "what to do with processes that an agent leaves running when its turn is over: `end`, `keep` or `wait`. Not for a "
        "project's file"
    ),
    "when_full": (
        "what to do with a conversation that is nearly too long for its model: `compact`, `roll-over`, `stop` or `cli` ([what "
        "they do](../how-to/context-size.md))"
    ),
    "full_at": "from which percentage of the model's window `when_full` applies; at least 10",
    "windows": "how many tokens models accept, if perdure does not know it: `my-model*=32000, other=200000`",
    "backend": "`worktree` or `isolated`; empty: `worktree` for a local repository, `isolated` for a URL",
    "base": "the branch, tag or commit at which new workdirs begin; empty: the repository's current commit",
    "verify": (
        "a shell command, run in the workdir after the agent's success; with `--permissions read` it is not run unless given as"
        " an option"
    ),
    "verify_rounds": "how often a failed check is returned to the agent, for each version of the instructions; this uses up no attempt",
    "verify_timeout": "the maximum time of the check; a check that takes longer has failed; 0: no limit",
    "map": (
        "which prompts get the [project map](../how-to/project-map.md): `off`; `fallback`, if the agent has no conversation "
        "that knows the files; `first`, also the first prompt of each conversation; `always`"
    ),
    "map_tokens": "the maximum size of a project map in tokens, estimated as bytes / 3",
    "ca_file": "certificates against which a forge's https is checked, instead of the system's",
    "request_expiry": "a [request](../how-to/approve.md) to a person is refused if nobody answers it for this time; 0: agents ask nobody",
    "session_lifetime": "a [session](../how-to/sessions.md) expires if it is not used for this time; 0: never",
    "session_expiry": (
        "what to do when a session has expired and its transcript exists: `resume` (continue it, and report the expiry) or "
        "`rebuild` (a new conversation with a brief; not under the policy `strict`)"
    ),
    "database": (
        "`postgresql://USER@HOST/NAME`: a [database for several "
        "hosts](../how-to/shared-database.md); empty: SQLite"
    ),
    "lease": "with a shared database: how long a host keeps an attempt without renewing its claim; must be the same on all hosts",
    "session_cache": "a Redis in front of the session records, for "
    "[lookups by many processes](../how-to/sessions.md#a-cache-that-may-be-lost); its password is "
    "never shown; empty: none",
    "checkpoint_store": "a [checkpoint store](../how-to/another-machine.md) to which every checkpoint is also uploaded; empty: none",
    "receipts": (
        "where [signed receipts](../how-to/receipts.md) are attached automatically: `off`, `note` (a git note of the commit, "
        "when an attempt has ended), `comment` (the comment of a run on its forge, and its pull request), or `both`; the host "
        "needs a key (`perdure key make`)"
    ),
    "checkpoint_secrets": (
        "what to do with a checkpoint that contains a known secret, before it is uploaded: `refuse` (it is not uploaded, and "
        "that is reported), `leave-out` (those files are not uploaded, and secrets in the conversation are replaced by "
        "asterisks), or `allow`"
    ),
    "gc_workdirs": "how long after the end of the last run in a workdir the [sweeper](../how-to/clean-up.md) removes the workdir",
    "gc_copies": "how long after the last use of a conversation perdure's own copy of it is removed",
    "gc_logs": "how long after the end of a run its attempts' logs are removed; the journal stays",
    "gc_orphans": "how long things that belong to no run any more are kept",
    "gc_checkpoints": "how long the checkpoints of a finished run are kept",
    "gc_caches": "how long a cache is kept after the last fetch, if no workdir borrows from it",
    "gc_scratch": "how long temporary files that were left behind are kept",
    "gc_trash": "how long things that were proven to be saved are kept in the trash; everything else stays until you purge it",
    "gc_most": "the maximum number of things of one class that are removed at once without `--many`",
    "disk_warn": "perdure warns if less than this percentage of a volume is free",
    "disk_refuse": "new work is refused if less than this percentage of a volume is free, and less than `disk_refuse_bytes`; 0: never",
    "disk_refuse_bytes": "new work is refused only if less than this is free",
    "disk_ballast": "the size of the reserve file beside the database, which is deleted first when the disk is full; 0: none",
    "warm": (
        "which agents are [kept between attempts](../how-to/warm-agents.md), if the agent supports it: `off`, `plans` or `on` "
        "(all runs)"
    ),
    "warm_idle": "a kept agent is ended when it has waited for this time",
    "warm_turns": "the maximum number of attempts for one process, 1 to 1000",
    "warm_memory": (
        "the maximum memory of a kept agent and its child processes between two attempts; an agent that uses more is ended; 0: "
        "no limit"
    ),
    "warm_most": "the maximum number of agents that one perdure keeps waiting at once",
    "gc_inbox": "how long the body of a handled or ignored [delivery](../how-to/webhooks.md) is kept; delivery ids are kept for a year",
    "run_as": (
        "`USER:GROUP`, by name or number: the account of the agents, and the group that only perdure has; the group [protects "
        "its files and processes from them](../how-to/separate-user.md)"
    ),
    "serve_listen": "the address on which `perdure serve` listens",
    "git_ssh_key": (
        "the private key for repositories by [ssh](trust.md#credentials), instead of the keys that "
        "your ssh uses"
    ),
    "git_ssh_known_hosts": "a file with servers' keys for repositories by ssh, instead of your `known_hosts`",
    "git_ssh_config": (
        "the configuration of ssh for repositories by ssh (such as a key for each host), instead "
        "of your `~/.ssh/config`"
    ),
    "clone_hosts": "the only servers from which repositories may be fetched, as `host` or `host:port`; empty: any",
    "serve_reconcile": (
        "how often forges are asked for what no webhook reported: failed deliveries, open issues that wait for an agent; 0: "
        "never"
    ),
    "serve_public_url": "the address of the dashboard, such as `https://perdure.example.com`: for links in comments on a forge and in messages",
    "serve_proxies": "addresses and networks of the reverse proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are trusted",
    "serve_push_contact": (
        "your mail address, which push services see; set it to let people [add their browsers](../how-to/notify.md#in-a-browser); "
        "empty: they cannot"
    ),
    "serve_push_hosts": "the only push services to which messages are sent, as `host` or `host:port`; empty: any with a public address",
    "serve_hosts": "host names under which `perdure serve` answers, besides those of loopback and of `serve_public_url`; in the variable separated by spaces",
    "agents": (
        "tables `[agents.NAME]`: which [deliveries](../how-to/webhooks.md#let-agents-work) become work, and for which people; "
        "in the variable: the same as JSON"
    ),
    "openid": (
        "table `[openid]`: the provider by which people [sign in](../how-to/team.md#sign-in-by-openid-connect) to the "
        "dashboard; in the variable: the same as JSON; never in a repository's file"
    ),
    "notify": (
        "tables `[notify.NAME]`: where [messages about runs](../how-to/notify.md) are sent, and which ones; in the variable: "
        "the same as JSON; never in a repository's file"
    ),
    "webhooks": (
        "tables `[webhooks.NAME]`: who may send [webhooks](../how-to/webhooks.md), and where their secrets are; in the variable"
        " `NAME=FORGE:/path/of/the/secret` or `NAME=FORGE:$VARIABLE`, separated by spaces"
    ),
}
BYTES = ("disk_refuse_bytes", "disk_ballast", "warm_memory")
PERCENT = ("disk_warn", "disk_refuse")
PLACES = {
    "root": "`$XDG_DATA_HOME/perdure` (`~/.local/share/perdure`)",
    "state": "`$XDG_STATE_HOME/perdure` (`~/.local/state/perdure`)",
}

VARIABLES = {
    "PERDURE_TOKEN": "for `perdure whoami --server`: the token, if no `--token-file` is given",
    "PERDURE_GIT_TOKEN": (
        "a token for fetching by https; given to git by an askpass program for one call, never to "
        "the agent"
    ),
    "PERDURE_GIT_TOKEN_HOST": "the only host for which the token is used",
    "PERDURE_GIT_TOKEN_USER": "the name that goes with the token (default: x-access-token)",
    "PERDURE_IMAGE": "for `perdure operator`: the image of the attempts, as with --image",
    "PERDURE_HOST": "`portable` uses the back end for other systems than Linux, and `python` the shim in Python even if there is "
    "a compiled one ([platforms](platforms.md)); for tests",
    "PERDURE_PAGER": "the pager for `diff` on a terminal, before `PAGER` and `less`; `cat` or empty: none",
    "NO_COLOR": "set to anything: no colors",
    "CLICOLOR_FORCE": "set to anything but 0: colors also into a pipe",
    "PERDURE_ATTEMPT": (
        "set by perdure for the agent and everything that it starts: the mark of the attempt (or of the kept agent), by which "
        "perdure finds these processes again"
    ),
}

REPORT = {
    "schema_version": "raised when a field is removed or changes its meaning",
    "id": "32 hexadecimal digits; every command accepts a unique prefix of at least 4",
    "name": "the name that every command accepts",
    "state": "see [states](../state_machine.md#states)",
    "liveness": (
        "which processes are alive of a run that is `running`: `attended`, `unattended` (its agent works without a supervisor) "
        "or `interrupted` (none: `perdure retry` continues it); null in all other states ([more](../state_machine.md#liveness))"
    ),
    "reason": "why it waits, or how it ended; may be empty",
    "title": "the subject: the number and title of its issue or pull request, else the first words of its prompt",
    "link": "the address of that issue or pull request; empty for a run that no forge started",
    "role": "the rule (`[agents.NAME]`) under which it works; empty if none",
    "agent": "the driver's name",
    "scope": "runs of one agent with the same scope share one conversation",
    "key": "as given with `--key`, else empty",
    "origin": "the id that the run has on the machine where it began; empty if it began here",
    "host": (
        "in a [shared database](../how-to/shared-database.md): the host that has the workdir and the conversation; empty: none "
        "yet"
    ),
    "host_id": "that host's own id",
    "labels": "as given with `--label`",
    "policy": "what may happen when the conversation is lost",
    "context_version": "the newest version of the instructions; 1 is the prompt",
    "contexts": "all versions of the instructions, oldest first",
    "messages": (
        "[messages](../how-to/tell.md) to the running agent, oldest first: `version`, `text`, `told`, `delivered`, `how` "
        "(`turn`, `boundary`, `prompt`), `attempt`, `received`"
    ),
    "retired_contexts": (
        "versions of the instructions that a restore retired: see "
        "[checkpoints](../how-to/checkpoints.md)"
    ),
    "workspace": "the workdir",
    "workspace.path": "where the agent works",
    "workspace.repo": "the repository's path or URL; empty without one",
    "workspace.branch": "the branch that it works on; empty without one",
    "workspace.base": "the commit, branch or tag at which the branch began",
    "workspace.backend": "`worktree`, `isolated`, `task` or `here`",
    "workspace.head": "the commit of HEAD at the newest checkpoint; empty without one",
    "attempts_allowed": "the maximum number of attempts, without those that do not count; a retry or an update allows one more",
    "attempts": "all attempts, oldest first",
    "result": (
        "the final message of the last attempt's agent, as it wrote it; at most 16,384 characters; "
        "empty if it said nothing"
    ),
    "verdict": (
        "the verdict on the work of the newest attempt that ended: see "
        "[work report](work_report.md); null before"
    ),
    "attempts[].number": "counts from 1",
    "attempts[].context_version": "the version of the instructions for this attempt",
    "attempts[].continuation": "how it started: `fresh`, `resume`, `fork` or `rebuild`; null before that is decided",
    "attempts[].rung": (
        "the rung of the ladder: `native`, `path`, `copy`, `repaired`, `rebuilt` or `fresh`; null "
        "before that is decided"
    ),
    "attempts[].why": "the reason for this start, as a sentence",
    "attempts[].prices": "the estimated cost of each way to continue, in dollars, if the model's price is known",
    "attempts[].lost_session_id": "the lost conversation that this attempt replaces",
    "attempts[].expired": "time at which the session's lifetime had ended before this attempt; 0: it had not",
    "attempts[].rebuilt_sessions": "conversations whose lost records were made again for this attempt",
    "attempts[].session_id": "the agent's own id of the conversation",
    "attempts[].agent_version": "the agent's version, where it is known",
    "attempts[].flags": (
        "settings that a conversation does not store, and that perdure sets again on every resume; `account` shows a change of "
        "credentials"
    ),
    "attempts[].outcome": "null while it runs",
    "attempts[].receipt": "null while it runs, and if the conversation was never touched",
    "attempts[].usage": "what this attempt added",
    "attempts[].fill": (
        "how full its conversation was when it ended: `tokens`, `window`, `model`, and the source of the window (`source`); "
        "`compactions`, and the tokens before and after the last one; null if nothing reports it"
    ),
    "attempts[].sizes": (
        "what happened because of the conversation's size: `compacted`, `not_compacted`, "
        "`summarised`, `rolled_over`"
    ),
    "attempts[].effects": "what it did, or may have done, outside its workdir, according to its tool calls: see [the effect ledger](effects.md)",
    "attempts[].checkpoint": "the checkpoint whose conversation was restored for it; 0: none",
    "attempts[].checkpoints": "the checkpoints of the attempt that are kept, oldest first; the workdir is a git commit",
    "attempts[].missed_checkpoints": "why checkpoints could not be taken",
    "attempts[].checks": (
        "how the task's own check ended, with the most telling part of its output and the file "
        "that has all of it"
    ),
    "attempts[].drift": "how the workdir had changed since the last checkpoint when the attempt started",
    "attempts[].map": (
        "the [project map](../how-to/project-map.md) in its prompt: `tokens` (estimated), `files` in it, `full` of them with "
        "their exports, `left` out because they did not fit, and why it was `missed`; null if none was required"
    ),
    "attempts[].files": "what was done with the task's files when it started",
    "attempts[].effects[].kind": "such as `push`, `pull request`, `publish`, `deploy`",
    "attempts[].effects[].command": "the command, or the tool and its main argument",
    "attempts[].effects[].ok": "whether it succeeded; null if that is not known",
    "attempts[].effects[].outcome": (
        "`running`, `done`, `failed`, `denied` (the call did not run), or `unknown`: it was begun, and nothing shows how it "
        "ended"
    ),
    "attempts[].effects[].possible": "true: perdure only does not know that the command is local",
    "attempts[].effects[].reversible": "whether it can be undone; null if that is not known",
    "attempts[].work": "its [work report](work_report.md): what it changed, checked and was denied, and the verdict on it",
    "attempts[].turn": "which turn of its process the attempt was: from 2 on the agent was [kept warm](../how-to/warm-agents.md); "
    "0: none was started",
    "attempts[].result": "the final message of its agent; empty if it said nothing",
    "attempts[].started": "time",
    "attempts[].ended": "time; null while it runs",
    "attempts[].directory": "the directory of its prompt, raw output and exit",
    "usage": "all attempts together",
    "fill": "the `fill` of the newest attempt that has one",
    "on_denied": "the run's own policy for denied calls of tools; empty: the setting's",
    "last_word": "whether the agent of this run is asked for a final message in a fixed format; empty: the setting's",
    "on_leftover": "the run's own policy for processes left running; empty: the setting's",
    "when_full": "the run's own policy for a conversation that is nearly too long; empty: the setting's",
    "conditions": "what a person should know",
    "missed_checkpoint": "why the newest checkpoint that was due could not be taken; empty: nothing is missing",
    "posting": (
        "what was posted about a delivered run on the forge: `comment_url`, `commit` and `pull_url` of its branch, `tries`, "
        "`due`, and `reason` if something could not be done; null for any other run"
    ),
    "created": "time",
    "updated": "time",
    "finished": "time; null until the run is in a final state",
    "run_after": "time before which it will not be tried; 0: at once",
}

NOUNS = {
    "WorkReport.file_count": "number of changed files",
    "WorkReport.lines_added": "lines of text files",
    "WorkReport.lines_removed": "lines of text files",
    "WorkReport.commit_count": "number of commits that were not there when the attempt began",
    "WorkReport.checks": "`command`, `by` (`verify` or `agent`), `code`, `passed` (null if the exit code is not the check's own)",
    "WorkReport.denied": "denied tool calls: `name`, `input`, `count`",
    "WorkReport.question": "the open question; empty without one",
    "WorkReport.left": "processes that the agent left running: `command`, `age_s`, `became` (`ended`, `kept`, `unknown`)",
    "WorkReport.last_word": "the agent's own report, if `last_word` asked for one: `status`, `summary`, `questions`, `follow_ups`; else null",
    "WorkReport.effects": "as `attempts[].effects`",
    "WorkReport.files": "the first 100: `name`, `state` (`added`, `changed`, `deleted`), `added` and `removed` lines (null for binary files)",
    "WorkReport.commits": "the newest 20, newest first: `id`, `subject`",
    "Context.version": "1 is the prompt",
    "Context.text": "the instructions",
    "Context.at": "time",
    "Usage.input": "tokens",
    "Usage.output": "tokens",
    "Usage.cached": "the part of the input that came from the prompt cache",
    "Usage.cache_write": "the part of the input that was written to the prompt cache",
    "Usage.cost_usd": "dollars, as the agent reports them, else by list prices where its model is known",
    "Usage.estimated": (
        "true if the agent has not reported its final figure (it still works, or was killed), or reports no dollars; `≈` on "
        "screens"
    ),
    "Outcome.kind": "see [outcomes](../state_machine.md#outcomes)",
    "Outcome.detail": "a sentence; may be empty",
    "Outcome.until": "time at which a usage limit ends, if the agent reported it",
    "Outcome.code": "the agent's exit code",
    "Outcome.signal": "the signal that ended it",
    "Receipt.verdict": "see [the receipt](../discussions/continuity.md#the-receipt)",
    "Receipt.rung": "the rung of the ladder that was tried",
    "Receipt.reasons": "what the verdict rests on, as sentences",
    "Receipt.evidence": "what was observed",
    "Evidence.asked": "the conversation's id that was asked for",
    "Evidence.returned": "the id that the agent named",
    "Evidence.before": "the transcript before the launch",
    "Evidence.after": "the transcript after the end",
    "Evidence.writes_lost": "the agent's own report that it could not save the conversation",
    "Evidence.cached_tokens": "tokens of the input that came from the prompt cache",
    "Snapshot.path": "the transcript's file",
    "Snapshot.size": "bytes",
    "Snapshot.sha256": "of the whole file",
    "Condition.type": "`needs_person`, `collision`",
    "Condition.message": "a sentence",
    "Condition.at": "time",
}

BARE = {"--json": "print JSON instead of text", "--limit": "at most so many"}
"""Help for the two simplest flags, used if the command itself has none for them."""
