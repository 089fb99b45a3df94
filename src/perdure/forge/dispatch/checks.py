"""Failed checks: whose commit they are about, what is told of them, and how often.

GitHub tells of one red workflow by a check run, a check suite and a workflow run; every forge tells
of each check apart. All of that becomes one update for a commit, with the log of what has failed.
The event names who pushed, who is the agent itself as a rule, so its author says nothing: what
counts is the branch and the commit, which have to be those of a run. Called by `dispatcher`.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from perdure.capsule.scan import Scan
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import HISTORY
from perdure.errors import Conflict, ForgeDenied, ForgeRefused, NotFound, PerdureError
from perdure.forge.dispatch.current import Current
from perdure.forge.dispatch.job_log import job_excerpt
from perdure.forge.dispatch.selection import RuleChoice
from perdure.forge.webhooks.payload import cut
from perdure.model import TaskRun
from perdure.model.events import ChecksFailed
from perdure.model.forge.deliveries import Delivery, Intent, IntentKind
from perdure.model.forge.rules import OWN_CHECK, Rule, is_for
from perdure.model.forge.state import CheckState, CommitCheck, FailedCheck
from perdure.protocols import ForgeApi

WAIT_MS = 900_000
"""How long the other checks of a commit are waited for. A review, or a status that nobody sets, may
stay pending for ever."""
KEPT_S = 15.0
"""How long an answer about pending checks is good for."""
SHOWN_MOST = 10
"""Failed checks that an update describes; the others are named."""
NO_TOKEN = "There is no log: perdure has no token to ask the forge with."


class Checks:
    """The failed checks of all runs. `current` asks the forge."""

    def __init__(self, engine: Engine, current: Current) -> None:
        self._engine, self._current = engine, current
        self._pending: dict[int, tuple[float, str]] = {}

    # --- whether they are told
    # ---------------------------------------------------------------------------

    def refused(self, choice: RuleChoice, intent: Intent) -> str:
        """Return why a failed check is nothing to the run, or an empty text."""
        if choice.run is None or is_for(choice.rule, intent):
            return ""
        if self._is_ours(choice.run, intent.commit):
            return ""
        commit = intent.commit[:12] or "no commit"
        return (
            f"{commit} is no commit of {choice.run.name}, and {choice.rule.name} does not work for "
            f"{intent.author or 'nobody'}"
        )

    def _is_ours(self, run: TaskRun, commit: str) -> bool:
        """Whether the run has made the commit: perdure pushed it, or it was the HEAD of the
        workdir."""
        if not commit:
            return False
        store = self._engine.store
        posting = store.posting(run.id)
        if posting is not None and posting.commit == commit:
            return True
        heads = {each.workdir.head for each in store.checkpoints(run.id)}
        if run.workspace is None or self._engine.elsewhere(run):
            return commit in heads
        try:
            # Where it began is a commit of others.
            if self._engine.workspaces.began(run.workspace) == commit:
                return False
            return commit in heads or self._engine.workspaces.state(run.workspace).head == commit
        except PerdureError:
            return commit in heads

    def told(self, run: TaskRun, intent: Intent) -> str:
        """Return why a failed check is no news, or an empty text: the run was told of it before."""
        known = self._known(run, intent.commit)
        if not known:
            return ""
        is_known = intent.rollup or any(
            event.rollup or intent.text in event.checks for event in known
        )
        return (
            f"{run.name} was told of the failed checks of {intent.commit[:12]}" if is_known else ""
        )

    def _known(self, run: TaskRun, commit: str) -> list[ChecksFailed]:
        if not commit:
            return []
        return [event for _, event in self._events(run) if event.commit == commit]

    def _events(self, run: TaskRun) -> list[tuple[int, ChecksFailed]]:
        told = self._engine.store.history(run.id, limit=HISTORY)
        return [(each.at, each.event) for each in told if isinstance(each.event, ChecksFailed)]

    def spent(self, rule: Rule, run: TaskRun) -> str:
        """Return why no more failed checks are told, or an empty text."""
        at = {when for when, _ in self._events(run)}
        row = 0
        for context in reversed(self._engine.store.contexts(run.id)):
            # Told in the transaction of the update, at the same time.
            if context.at not in at:
                break
            row += 1
        if row < rule.ci_attempts:
            return ""
        return (
            f"checks of {run.name} failed after each of {row} attempts to repair them, and "
            f"{rule.name} makes no more (ci_attempts); a person's word goes on with it"
        )

    def wait(self, delivery: Delivery, rule: Rule, intent: Intent) -> None:
        """Raise Conflict while other checks of the commit are under way: all are told at once
        then."""
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
                f"{pending} is still being checked; what has failed is told together",
                "perdure inbox",
            )

    # --- what is told
    # ------------------------------------------------------------------------------------

    def report(
        self, rule: Rule, run: TaskRun, told: Sequence[tuple[Delivery, Intent]]
    ) -> tuple[list[tuple[Delivery, Intent]], list[ChecksFailed]]:
        """Return what is told with all failed checks of one commit as one, and what the journal is
        to say of them. Raises ForgeUnavailable, ForgeDenied."""
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
        found = (
            self._current.asked(delivery, intent, rule, lambda api: _failed(api, intent))
            if intent.commit
            else None
        )
        known = set(chain.from_iterable(event.checks for event in self._known(run, intent.commit)))
        failed = [
            each
            for each in found or ()
            if not each.name.startswith(OWN_CHECK) and each.name not in known
        ]
        note = ""
        if not failed:
            # The forge says no more than the event did.
            failed = named
            note = NO_TOKEN if not self._current.knows(delivery, rule) else ""
        texts = [self._text(each) for each in failed[:SHOWN_MOST]]
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
        """What the events themselves name: the checks, or what sums them up where no check is
        named."""
        intents = [intent for _, intent in group]
        single = [each for each in intents if not each.rollup]
        # A suite has no name.
        found = {
            each.text: FailedCheck(name=each.text, url=each.url)
            for each in single or intents
            if each.text
        }
        return list(found.values()) or [
            FailedCheck(name="", url=next((each.url for each in intents if each.url), ""))
        ]

    def _text(self, check: FailedCheck) -> str:
        """One failed check: its name, where it is, what it says, and the end of its log."""
        head = " ".join(filter(None, [check.name, f"({check.url})" if check.url else ""]))
        log = job_excerpt(self._redacted(check.log)) if check.log else ""
        said = [head, check.text, f"The log, in part:\n{log}" if log else check.note]
        return "\n".join(each for each in said if each)

    def _redacted(self, text: str) -> str:
        """Without secrets: those of this environment, and what looks like one."""
        pieces = Scan(self._engine.redactor).over("", io.BytesIO(text.encode("utf-8", "replace")))
        return b"".join(pieces).decode("utf-8", "replace")


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
