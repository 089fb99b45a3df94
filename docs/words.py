"""The words for what the code names without explaining: read by `generate`, which fails where words
and code differ."""

from __future__ import annotations

SETTINGS = {
    "root": "where workdirs and cache clones lie",
    "state": "where the database, the attempts' logs and the copies of transcripts lie; a local disk",
    "agent": "`claude`, `codex`, or a driver that is installed",
    "model": "the model, by the agent's own name for it; empty: the agent's own default",
    "permissions": "what the agent may do without asking: `read`, `edit`, `full`",
    "continuity": "what may happen when the conversation is lost: `strict`, `disclose`, `fresh-ok`",
    "attempts": "how many attempts that count a run has, 1 to 1000",
    "timeout": "the longest that one attempt may take; 0: no limit",
    "stall": "the longest that an agent may be silent, five times as long inside a tool; 0: no limit",
    "grace": "the time between the polite and the final end of an agent",
    "checkpoint_every": (
        "the least time between two checkpoints while an agent works; 0: only at the ends of turns "
        "and attempts"
    ),
    "checkpoint_ignored": (
        "which ignored files a checkpoint has: `small` (each up to 10 MiB, not what a build "
        "makes), `all`, `none`"
    ),
    "cold_cache": "what follows when a conversation was idle for so long that the model has to read all of it again: `resume`, `compact` or "
    "`cheapest` where that costs less, `ask` a person then",
    "account_jobs": (
        "how many runs may be at work on one account at once: `2`, or by agent `claude=2,codex=1`; "
        "empty: any number"
    ),
    "budget_usd": "dollars for all attempts of a run together; 0: no limit",
    "on_denied": "if a call of a tool was denied in a turn that ended well: `ask` (a person is asked: `needs_input`), `fail` or `report` "
    "(the turn counts). Not for a project's file",
    "last_word": "`on` asks the agent to end with its status, a summary, open questions and follow-ups in a fixed form (Claude Code, Codex)",
    "on_leftover": "what becomes of processes that an agent leaves running when its turn is over: `end`, `keep` or `wait`. Not for a project's file",
    "when_full": "if a conversation is nearly too long for its model: `compact`, `roll-over`, `stop` or `cli` "
    "([what they do](../how-to/context-size.md))",
    "full_at": "percent of the model's window at which it is; 10 at the least",
    "windows": (
        "what models take, in tokens, where perdure is to know better: `my-model*=32000, "
        "other=200000`"
    ),
    "backend": "`worktree` or `isolated`; empty: `worktree` for a local repository, `isolated` for a URL",
    "base": "the branch, tag or commit that new workdirs begin at; empty: where the repository stands",
    "verify": (
        "a shell command, run in the workdir after the agent's success; not run with "
        "`--permissions read` unless given as a flag"
    ),
    "verify_rounds": (
        "how often a failed check goes back to the agent, for each version of the instructions; it "
        "uses up no attempt"
    ),
    "verify_timeout": "the longest that the check may take: it has failed then; 0: no limit",
    "map": "which prompts get the [project map](../how-to/project-map.md): `off`; `fallback`, where no conversation carries what it says; "
    "`first`, also the first prompt of each conversation; `always`",
    "map_tokens": "the most tokens that a project map takes, estimated as bytes / 3",
    "ca_file": "certificates that a forge's https is checked against, instead of the system's",
    "request_expiry": "a [request](../how-to/approve.md) to a person that nobody answered for so long is refused; 0: agents ask nobody",
    "session_lifetime": "a [session](../how-to/sessions.md) expires when it was not used for so long; 0: never",
    "session_expiry": "what follows when a session has expired and its transcript is there: `resume` (it goes on, and that is told) or "
    "`rebuild` (a new conversation with a brief; not under the policy `strict`)",
    "database": (
        "`postgresql://USER@HOST/NAME`: a [database for several "
        "hosts](../how-to/shared-database.md); empty: SQLite"
    ),
    "lease": (
        "with a shared database: how long a host that is not heard of keeps an attempt; the same "
        "on all hosts"
    ),
    "session_cache": "a Redis in front of the session records, for "
    "[lookups by many processes](../how-to/sessions.md#a-cache-that-may-be-lost); its password is "
    "never shown; empty: none",
    "checkpoint_store": (
        "a [checkpoint store](../how-to/another-machine.md) to which every checkpoint is brought "
        "too; empty: none"
    ),
    "receipts": "where [signed receipts](../how-to/receipts.md) are attached by themselves: `off`, `note` (a git note of the commit, when "
    "an attempt has ended), `comment` (the comment of a run on its forge, and its pull request), or `both`; the host needs a key (`perdure key make`)",
    "checkpoint_secrets": "a checkpoint with a known secret in it, on its way there: `refuse` (it stays here, and that is told), "
    "`leave-out` (those files stay here, what was said is replaced by asterisks), or `allow`",
    "gc_workdirs": (
        "how long ago the last run in a workdir ended before the [sweeper](../how-to/clean-up.md) "
        "takes it"
    ),
    "gc_copies": "how long ago a conversation was last used before perdure's own copy of it is taken",
    "gc_logs": "how long ago a run ended before its attempts' logs are taken; the journal stays",
    "gc_orphans": "how old something must be that belongs to no run any more",
    "gc_checkpoints": "how long the checkpoints of a finished run are kept",
    "gc_caches": "how long ago a cache was last fetched into, if nothing borrows from it",
    "gc_scratch": "how old something temporary must be that was left behind",
    "gc_trash": (
        "the grace in the trash of what was proven to be saved; what was not, stays until you "
        "purge it"
    ),
    "gc_most": "more of one class than this is never taken at once without `--many`",
    "disk_warn": "percent of a volume: with less free, perdure warns",
    "disk_refuse": (
        "percent of a volume: with less free (and less than `disk_refuse_bytes`), new work is "
        "refused; 0: never"
    ),
    "disk_refuse_bytes": "new work is refused only where less than this is free",
    "disk_ballast": "the size of the file beside the database that is given up first on a full disk; 0: none",
    "warm": (
        "which agents are [kept between attempts](../how-to/warm-agents.md), where they can be: "
        "`off`, `plans` or `on` (all runs)"
    ),
    "warm_idle": "a kept agent is ended when it has waited so long",
    "warm_turns": "how many attempts one process serves at most, 1 to 1000",
    "warm_memory": (
        "the memory of a kept agent and all below it, between two attempts; with more it is ended; "
        "0: no limit"
    ),
    "warm_most": "how many agents one perdure keeps waiting at once",
    "gc_inbox": (
        "how long the body of a handled or ignored [delivery](../how-to/webhooks.md) is kept; delivery ids "
        "are remembered for a year"
    ),
    "run_as": (
        "`USER:GROUP`, by name or number: the account that agents run as, and the group that only "
        "perdure has, which [keeps its files and processes from them](../how-to/separate-user.md)"
    ),
    "serve_listen": "where `perdure serve` listens",
    "git_ssh_key": (
        "the private key for repositories by [ssh](trust.md#credentials), instead of the keys that "
        "your ssh uses"
    ),
    "git_ssh_known_hosts": "a file with servers' keys for repositories by ssh, instead of your `known_hosts`",
    "git_ssh_config": (
        "the configuration of ssh for repositories by ssh (such as a key for each host), instead "
        "of your `~/.ssh/config`"
    ),
    "clone_hosts": (
        "servers that repositories may be fetched from, as `host` or `host:port`: only these; "
        "empty is any"
    ),
    "serve_reconcile": (
        "how often forges are asked what no webhook told: failed deliveries, open issues that wait "
        "for an agent; 0: never"
    ),
    "serve_public_url": (
        "where people open the dashboard, such as `https://perdure.example.com`: for links in what "
        "is told on a forge"
    ),
    "serve_proxies": (
        "addresses and networks of the reverse proxies whose `X-Forwarded-For` and "
        "`X-Forwarded-Proto` are believed"
    ),
    "serve_hosts": (
        "names under which `perdure serve` may be asked, besides those of loopback; as a variable, "
        "with spaces between"
    ),
    "agents": "tables `[agents.NAME]`: which [deliveries](../how-to/webhooks.md#let-agents-work) become work, and whose; as a variable: "
    "the same as JSON",
    "openid": "table `[openid]`: the provider by which people [sign in](../how-to/team.md#sign-in-by-openid-connect) to the dashboard; as a variable: "
    "the same as JSON; never in a repository's file",
    "notify": "tables `[notify.NAME]`: where people are [told of runs](../how-to/notify.md), and of which; as a variable: "
    "the same as JSON; never in a repository's file",
    "webhooks": "tables `[webhooks.NAME]`: who may send [webhooks](../how-to/webhooks.md), and where their secrets are; as a variable "
    "`NAME=FORGE:/path/of/the/secret` or `NAME=FORGE:$VARIABLE`, with spaces between",
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
    "PERDURE_GIT_TOKEN_HOST": "the one host that the token is for",
    "PERDURE_GIT_TOKEN_USER": "the name that goes with the token (default: x-access-token)",
    "PERDURE_IMAGE": "for `perdure operator`: the image of the attempts, as with --image",
    "PERDURE_HOST": "`portable` uses the back end for other systems than Linux ([platforms](platforms.md)); for tests",
    "PERDURE_PAGER": "the pager for `diff` on a terminal, before `PAGER` and `less`; `cat` or empty: none",
    "NO_COLOR": "set to anything: no colors",
    "CLICOLOR_FORCE": "set to anything but 0: colors also into a pipe",
    "PERDURE_ATTEMPT": "set by perdure for the agent and all that it starts: the mark of the attempt (or of the kept agent), by which "
    "they are found again",
}

REPORT = {
    "schema_version": "raised when a field is removed or changes its meaning",
    "id": "32 hexadecimal digits; every verb takes a unique prefix of at least 4",
    "name": "the name that every verb takes",
    "state": "see [states](../state_machine.md#states)",
    "liveness": "what lives of a run that is `running`: `attended`, `unattended` (its agent works on without a supervisor) or "
    "`interrupted` (nothing lives: `perdure retry` goes on); null in all other states "
    "([more](../state_machine.md#liveness))",
    "reason": "why it waits, or how it ended; may be empty",
    "title": "what it is about: the number and title of its issue or pull request, else the first "
    "words of its prompt",
    "link": "the address of that issue or pull request; empty for a run that no forge started",
    "role": "the rule (`[agents.NAME]`) that it works under; empty if none",
    "agent": "the driver's name",
    "scope": "runs of one agent with the same scope share one conversation",
    "key": "as given with `--key`, else empty",
    "origin": "the id that the run has where it began; empty for one that began here",
    "host": (
        "in a [shared database](../how-to/shared-database.md): where workdir and conversation lie; "
        "empty: nowhere yet"
    ),
    "host_id": "that host's own id",
    "labels": "as given with `--label`",
    "policy": "what may happen when the conversation is lost",
    "context_version": "the newest version of the instructions; 1 is the prompt",
    "contexts": "all versions of the instructions, oldest first",
    "messages": (
        "what was [told](../how-to/tell.md) to the running agent, oldest first: `version`, `text`, "
        "`told`, `delivered`, `how` (`turn`, `boundary`, `prompt`), `attempt`, `received`"
    ),
    "retired_contexts": (
        "versions of the instructions that a restore retired: see "
        "[checkpoints](../how-to/checkpoints.md)"
    ),
    "workspace": "the workdir",
    "workspace.path": "where the agent works",
    "workspace.repo": "the repository's path or URL; empty without one",
    "workspace.branch": "the branch that it works on; empty without one",
    "workspace.base": "what the branch began at",
    "workspace.backend": "`worktree`, `isolated`, `task` or `here`",
    "workspace.head": "where HEAD stood at the newest checkpoint; empty without one",
    "attempts_allowed": "how many attempts that count are allowed; a retry or an update allows one more",
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
    "attempts[].context_version": "the instructions that it was to carry out",
    "attempts[].continuation": "how it started: `fresh`, `resume`, `fork` or `rebuild`; null before that is decided",
    "attempts[].rung": (
        "the rung of the ladder: `native`, `path`, `copy`, `repaired`, `rebuilt` or `fresh`; null "
        "before that is decided"
    ),
    "attempts[].why": "the reason for it, as a sentence",
    "attempts[].prices": (
        "what each way to go on was reckoned to cost, in dollars, where the model's price is "
        "known: an estimate"
    ),
    "attempts[].lost_session_id": "the conversation that could not go on, where this attempt stands in for it",
    "attempts[].expired": "time at which the session's lifetime had ended before this attempt; 0: it had not",
    "attempts[].rebuilt_sessions": "conversations whose lost records were made again for this attempt",
    "attempts[].session_id": "the agent's own id of the conversation",
    "attempts[].agent_version": "the agent's version, where it is known",
    "attempts[].flags": (
        "what is no part of a conversation and is set again on every resume; `account` shows a "
        "change of credentials"
    ),
    "attempts[].outcome": "null while it runs",
    "attempts[].receipt": "null while it runs, and where the conversation was never touched",
    "attempts[].usage": "what this attempt added",
    "attempts[].fill": "how full its conversation was when it ended: `tokens`, `window`, `model`, and who says the window (`source`); "
    "`compactions`, and what it held before the last and after; null where nothing tells",
    "attempts[].sizes": (
        "what happened because of the conversation's size: `compacted`, `not_compacted`, "
        "`summarised`, `rolled_over`"
    ),
    "attempts[].effects": (
        "what it did, or may have done, outside its workdir, as far as its tool calls show: see "
        "[the effect ledger](effects.md)"
    ),
    "attempts[].checkpoint": "the checkpoint whose conversation was put back for it; 0: none",
    "attempts[].checkpoints": "the checkpoints of the attempt that are kept, oldest first; the workdir is a git commit",
    "attempts[].missed_checkpoints": "why checkpoints could not be taken",
    "attempts[].checks": (
        "how the task's own check ended, with the most telling part of its output and the file "
        "that has all of it"
    ),
    "attempts[].drift": "what had become of the workdir since the last checkpoint when it started",
    "attempts[].map": "the [project map](../how-to/project-map.md) in its prompt: `tokens` (estimated), `files` in it, "
    "`full` of them with their exports, `left` without room, and why it was `missed`; null where "
    "none was due",
    "attempts[].files": "what was done with the task's files when it started",
    "attempts[].effects[].kind": "such as `push`, `pull request`, `publish`, `deploy`",
    "attempts[].effects[].command": "the command, or the tool and its main argument",
    "attempts[].effects[].ok": "whether it came back well; null where that is not known",
    "attempts[].effects[].outcome": (
        "`running`, `done`, `failed`, `denied` (the call did not run), or `unknown`: it was begun, "
        "and nothing tells how it ended"
    ),
    "attempts[].effects[].possible": "true: perdure does not know that it is local, and no more",
    "attempts[].effects[].reversible": (
        "whether it can be taken back; null where that is not known"
    ),
    "attempts[].work": "its [work report](work_report.md): what it changed, checked and was denied, and the verdict on it",
    "attempts[].turn": "which turn of its process the attempt was: from 2 on the agent was [kept warm](../how-to/warm-agents.md); "
    "0: none was started",
    "attempts[].result": "the final message of its agent; empty if it said nothing",
    "attempts[].started": "time",
    "attempts[].ended": "time; null while it runs",
    "attempts[].directory": "where its prompt, raw output and exit lie",
    "usage": "all attempts together",
    "fill": "of the newest attempt that has one",
    "on_denied": "the run's own policy for denied calls of tools; empty: the setting's",
    "last_word": "whether the agent of this run is asked for its last word in a fixed form; empty: the setting's",
    "on_leftover": "the run's own policy for processes left running; empty: the setting's",
    "when_full": "the run's own policy for a conversation that is nearly too long; empty: the setting's",
    "conditions": "what a person should know",
    "missed_checkpoint": "why the newest checkpoint that was due could not be taken; empty: nothing is missing",
    "posting": "what the forge was told of a delivered run: `comment_url`, `commit` and `pull_url` of its branch, `tries`, `due` "
    "and `reason` where something could not be done; null for any other run",
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
    "WorkReport.checks": "`command`, `by` (`verify` or `agent`), `code`, `passed` (null where the code is not the check's own)",
    "WorkReport.denied": "denied tool calls: `name`, `input`, `count`",
    "WorkReport.question": "the open question; empty without one",
    "WorkReport.left": "processes that the agent left running: `command`, `age_s`, `became` (`ended`, `kept`, `unknown`)",
    "WorkReport.last_word": "the agent's own account, if `last_word` asked for one: `status`, `summary`, `questions`, `follow_ups`; else null",
    "WorkReport.effects": "as `attempts[].effects`",
    "WorkReport.files": "the first 100: `name`, `state` (`added`, `changed`, `deleted`), `added` and `removed` lines (null for binary files)",
    "WorkReport.commits": "the newest 20, newest first: `id`, `subject`",
    "Context.version": "1 is the prompt",
    "Context.text": "the instructions",
    "Context.at": "time",
    "Usage.input": "tokens",
    "Usage.output": "tokens",
    "Usage.cached": "the part of the input that came from the prompt cache",
    "Usage.cache_write": "the part of the input that was written to it",
    "Usage.cost_usd": "dollars, as the agent reports them, else by list prices where its model is known",
    "Usage.estimated": "true where the agent has not told its final figure (it still works, or was killed), or tells no dollars; "
    "`≈` on screens",
    "Outcome.kind": "see [outcomes](../state_machine.md#outcomes)",
    "Outcome.detail": "a sentence; may be empty",
    "Outcome.until": "time at which a usage limit ends, where the agent said so",
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
    "Evidence.writes_lost": "the agent's own word that it could not save the conversation",
    "Evidence.cached_tokens": "tokens of the input that came from the prompt cache",
    "Snapshot.path": "the transcript's file",
    "Snapshot.size": "bytes",
    "Snapshot.sha256": "of the whole file",
    "Condition.type": "`needs_person`, `collision`",
    "Condition.message": "a sentence",
    "Condition.at": "time",
}

BARE = {"--json": "print JSON instead of text", "--limit": "at most so many"}
"""Help of the two plainest flags where the command gives none."""
