"""Reports failed checks to the runs that they concern, with limits.

GitHub reports one failed workflow as a check run, a check suite and a workflow run, and every forge
reports each check separately. All of these become one update for each commit, with the logs of the
failures. The event names the user who pushed, who is usually the agent itself, so this name does
not show whether the report can be trusted. Only the branch and the commit are used, and they must
belong to a run. Called by `dispatcher`.

`job_excerpt` prepares the end of a failed job's log for an agent. It removes escape sequences and
the forge's own markers, and cuts the log after the error.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from itertools import chain

from msgspec.structs import replace

from perdure.capsule.secret_search import without_secrets
from perdure.engine.attempt import Engine
from perdure.errors import Conflict, ForgeDenied, ForgeRefused, NotFound, PerdureError
from perdure.forge.dispatch.current import Current
from perdure.forge.dispatch.selection import RuleChoice
from perdure.forge.webhooks.payload import cut
from perdure.model import TaskRun
from perdure.model.events import ChecksFailed
from perdure.model.forge.deliveries import Delivery, Intent, IntentKind
from perdure.model.forge.rules import OWN_CHECK, Rule, is_for
from perdure.model.forge.state import CheckState, CommitCheck, FailedCheck
from perdure.protocols import ForgeApi
from perdure.rules.excerpt import excerpt
from perdure.rules.text import clean

MOST = 4000
"""Maximum length of one job's excerpt, in characters."""
BEHIND = 2
"""Number of lines kept after the last error. On GitHub, later lines come from the runner's
clean-up."""

# GitHub and Gitea begin each line of a log with the time. GitLab has done so since version 17, with
# added markers such as `00O` and `01E`.
_TIME = re.compile(r"^\ufeff?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z(?: [0-9a-f]{2}[OE][+ ]?)? ?")
# GitLab marks a collapsible section by `section_start:1700000000:name[collapsed=true]`, followed by
# a CR.
_SECTION = re.compile(r"section_(?:start|end):\d+:[\w.-]+(?:\[[^\]\n]*\])?\r?")
_COMMAND = re.compile(r"^##\[(\w+)\]")
_ERROR = "##[error]"


def job_excerpt(log: str, most: int = MOST) -> str:
    """Return an excerpt of the log with the error and its context, at most `most` characters."""
    lines = [_TIME.sub("", line) for line in _SECTION.sub("", log).split("\n")]
    errors = [at for at, line in enumerate(lines) if line.startswith(_ERROR)]
    if errors:
        lines = lines[: errors[-1] + 1 + BEHIND]
    shown = [_COMMAND.sub(_named, clean(_last_drawn(line))) for line in lines]
    return excerpt("\n".join(shown), most)


def _last_drawn(line: str) -> str:
    """Return the part of a line that remains visible in a terminal. A progress bar overwrites its
    line after each carriage return."""
    drawn = [piece for piece in line.split("\r") if piece.strip()]
    if drawn:
        return drawn[-1]
    return ""


def _named(found: re.Match[str]) -> str:
    """Return the text that replaces one of GitHub's markers. It is `error: ` for the marker of an
    error and `warning: ` for that of a warning. It is empty for the other markers, which only make
    parts of the log collapsible."""
    if found[1] in ("error", "warning"):
        return f"{found[1]}: "
    return ""


WAIT_MS = 900_000
"""Time in milliseconds for which the report of a failed check may wait until the other checks of
the same commit end. The time is limited because a review, or a status that is never set, may stay
pending forever."""
KEPT_S = 15.0
"""Time in seconds for which the list of a commit's pending checks is cached."""
SHOWN_MOST = 10
"""Maximum number of failed checks that an update describes; the others are only named."""
NO_TOKEN = "There is no log: perdure has no token to ask the forge with."


class Checks:
    """Handles the failed checks of all runs. Asks the forge through `current`."""

    def __init__(self, engine: Engine, current: Current) -> None:
        self._engine, self._current = engine, current
        self._pending: dict[int, tuple[float, str]] = {}

    # --- which failed checks are reported ---

    def refused(self, choice: RuleChoice, intent: Intent) -> str:
        """Return why a failed check is not reported to the run; empty if it may be reported."""
        if choice.run is None or is_for(choice.rule, intent):
            return ""
        if self._is_ours(choice.run, intent.commit):
            return ""
        commit = intent.commit[:12] or "no commit"
        return (
            f"{commit} is not a commit of {choice.run.name}, and {choice.rule.name} does not "
            f"work for {intent.author or 'an unknown author'}"
        )

    def _is_ours(self, run: TaskRun, commit: str) -> bool:
        """Return whether the run made the commit: perdure pushed the commit, or it is or was HEAD
        of the workdir."""
        if not commit:
            return False
        store = self._engine.store
        posting = store.posting(run.id)
        if posting is not None and posting.commit == commit:
            return True
        heads = {each.workdir.head for each in store.checkpoints(run.id)}
        if run.workspace is None or self._engine.host.elsewhere(run):
            return commit in heads
        try:
            # Somebody else made the commit from which the workdir started.
            if self._engine.workspaces.began(run.workspace) == commit:
                return False
            return commit in heads or self._engine.workspaces.state(run.workspace).head == commit
        except PerdureError:
            return commit in heads

    def already_reported(self, run: TaskRun, intent: Intent) -> str:
        """Return the reason why this failed check is not reported, if the run was already informed
        of it. Otherwise return an empty text."""
        for event in self._known(run, intent.commit):
            if intent.rollup or event.rollup or intent.text in event.checks:
                return f"{run.name} was informed of the failed checks of {intent.commit[:12]}"
        return ""

    def _known(self, run: TaskRun, commit: str) -> list[ChecksFailed]:
        if not commit:
            return []
        return [event for _, event in self._events(run) if event.commit == commit]

    def _events(self, run: TaskRun) -> list[tuple[int, ChecksFailed]]:
        history = self._engine.store.run_events(run.id)
        found = []
        for each in history:
            if isinstance(each.event, ChecksFailed):
                found.append((each.at, each.event))
        return found

    def limit_reached(self, rule: Rule, run: TaskRun) -> str:
        """Return the reason why the run is not continued, if it has used up its attempts to repair
        failed checks. Otherwise return an empty text."""
        at = {when for when, _ in self._events(run)}
        row = 0
        for context in reversed(self._engine.store.contexts(run.id)):
            # An update about failed checks and its `ChecksFailed` event are written in one
            # transaction, so they have the same time. The loop counts the newest updates of this
            # kind in a row.
            if context.at not in at:
                break
            row += 1
        if row < rule.ci_attempts:
            return ""
        return (
            f"checks of {run.name} failed after each of {row} attempts to repair them, the limit "
            f"of {rule.name} (ci_attempts); a comment by a person continues it"
        )

    def wait(self, delivery: Delivery, rule: Rule, intent: Intent) -> None:
        """Raise Conflict while other checks of the commit are running, so that all failures are
        reported together. After `WAIT_MS`, the report waits no longer, and nothing is raised."""
        now = time.monotonic()
        self._pending = {key: kept for key, kept in self._pending.items() if now < kept[0]}
        if self._engine.store.now() - delivery.received > WAIT_MS:
            return
        if delivery.number not in self._pending:
            found = self._current.asked(delivery, intent, rule, lambda api: _checks(api, intent))
            names = [each.name for each in found or () if each.state is CheckState.PENDING]
            names = [name for name in names if not name.startswith(OWN_CHECK)]
            self._pending[delivery.number] = (now + KEPT_S, ", ".join(names[:3]))
        if pending := self._pending[delivery.number][1]:
            raise Conflict(
                f"{pending} is still being checked; all failures are reported together",
                "perdure inbox",
            )

    # --- the report ---

    def report(
        self, rule: Rule, run: TaskRun, told: Sequence[tuple[Delivery, Intent]]
    ) -> tuple[list[tuple[Delivery, Intent]], list[ChecksFailed]]:
        """Combine the failed checks of each commit into one intent. Returns all intents in order,
        and the events for the journal. Raises ForgeUnavailable, ForgeDenied."""
        groups: dict[str, list[tuple[Delivery, Intent]]] = {}
        for delivery, intent in told:
            if intent.kind is IntentKind.CI_FAILED:
                groups.setdefault(intent.commit or f"{intent.branch} {intent.number}", []).append(
                    (delivery, intent)
                )
        merged: list[tuple[Delivery, Intent]] = []
        events: list[ChecksFailed] = []
        for delivery, intent in told:
            if intent.kind is not IntentKind.CI_FAILED:
                merged.append((delivery, intent))
                continue
            group = groups.pop(intent.commit or f"{intent.branch} {intent.number}", None)
            if group is not None:
                one, event = self._one(rule, run, group)
                merged.append((delivery, one))
                events.append(event)
        return merged, events

    def _one(
        self, rule: Rule, run: TaskRun, group: Sequence[tuple[Delivery, Intent]]
    ) -> tuple[Intent, ChecksFailed]:
        delivery, intent = group[0]
        named = self._named(group)
        if intent.commit:
            found = self._current.asked(delivery, intent, rule, lambda api: _failed(api, intent))
        else:
            found = None
        known = set(chain.from_iterable(event.checks for event in self._known(run, intent.commit)))
        failed = []
        for each in found or ():
            if not each.name.startswith(OWN_CHECK) and each.name not in known:
                failed.append(each)
        note = ""
        if not failed:
            # The forge lists no failed check, so use the checks that the events name.
            failed = named
            if not self._current.knows(delivery, rule):
                note = NO_TOKEN
            else:
                note = ""
        texts = list(map(self._text, failed[:SHOWN_MOST]))
        if more := failed[SHOWN_MOST:]:
            texts.append(f"Failed as well: {', '.join(each.name for each in more)}")
        url = failed[0].url if len(failed) == 1 else ""
        text = cut(self._redacted("\n\n".join(filter(None, [*texts, note]))))
        names = dict.fromkeys(each.name for each in (*failed, *named))
        event = ChecksFailed(
            commit=intent.commit,
            checks=tuple(names),
            rollup=any(each.rollup for _, each in group) and not found,
        )
        return replace(intent, text=text, url=url, rollup=len(failed) > 1), event

    def _named(self, group: Sequence[tuple[Delivery, Intent]]) -> list[FailedCheck]:
        """Return the individual checks that the events name. If they name none, return the
        workflows that they name. If they name nothing at all, return one check without a name."""
        intents = [intent for _, intent in group]
        single = [each for each in intents if not each.rollup]
        # The event of a check suite names no check, so `found` does not contain it.
        found = {}
        for each in single or intents:
            if each.text:
                found[each.text] = FailedCheck(name=each.text, url=each.url)
        if found:
            return list(found.values())
        return [FailedCheck(name="", url=next((each.url for each in intents if each.url), ""))]

    def _text(self, check: FailedCheck) -> str:
        """Describe one failed check: its name, its address, the text that it reported, and an
        excerpt of its log."""
        head = " ".join(filter(None, [check.name, f"({check.url})" if check.url else ""]))
        log = job_excerpt(self._redacted(check.log)) if check.log else ""
        said = [head, check.text, f"The log, in part:\n{log}" if log else check.note]
        return "\n".join(each for each in said if each)

    def _redacted(self, text: str) -> str:
        """Return the text without the secrets of this environment, and without anything that looks
        like a secret."""
        return without_secrets(self._engine.redactor, text)


def _checks(api: ForgeApi, intent: Intent) -> Sequence[CommitCheck]:
    try:
        return api.checks(intent.repository, intent.commit)
    except ForgeDenied as error:
        if error.everywhere:
            raise
        return ()
    except (NotFound, ForgeRefused):
        return ()


def _failed(api: ForgeApi, intent: Intent) -> Sequence[FailedCheck]:
    try:
        return api.failed_checks(intent.repository, intent.commit)
    except ForgeDenied as error:
        if error.everywhere:
            raise
        return [FailedCheck(name=intent.text, url=intent.url, note=f"There is no log: {error}")]
    except (NotFound, ForgeRefused) as error:
        return [FailedCheck(name=intent.text, url=intent.url, note=f"There is no log: {error}")]
