"""Processes the inbox, in its own thread of `perdure serve`.

All waiting events of one task become one update. Events that arrive while the task's agent is
running also wait. The next attempt receives them in order, each once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from perdure.engine import service
from perdure.engine.attempt import Engine
from perdure.errors import (
    AgentMissing,
    CapsuleError,
    Conflict,
    ForgeDenied,
    ForgeRefused,
    ForgeUnavailable,
    NotFound,
    PerdureError,
    StoreError,
    UsageError,
)
from perdure.forge.dispatch.checks import Checks
from perdure.forge.dispatch.coalesce import is_unchanged, merged, told_before, with_before
from perdure.forge.dispatch.comments import (
    RequestReplies,
    UnreadComments,
    unread_comments,
    unread_reason,
)
from perdure.forge.dispatch.current import Current, current
from perdure.forge.dispatch.prompts import Moved, Prompts
from perdure.forge.dispatch.selection import (
    ENDING,
    RuleChoice,
    choose,
    overtaken,
    scope_of,
    spec_of,
    takes_from,
    title_of,
    unattended,
)
from perdure.forge.dispatch.withdrawal import (
    SPOKEN,
    WITHDRAWN,
    clean,
    ignored_reason,
    is_cleaned_up,
    is_given_again,
    is_told_to_stop,
    may_withdraw,
    message,
    missed_comments,
    restore_workdir,
    taken_back,
    with_changes,
    withdrawn,
)
from perdure.host import wakeup
from perdure.host.actors import PERDURE, acting, actor
from perdure.host.rounds import Rounds
from perdure.model import Condition, RunState, TaskRun, TaskSpec
from perdure.model.events import AnyEvent, BaseMoved, Withdrawn
from perdure.model.forge.deliveries import Delivery, DeliveryState, Forge, Intent, IntentKind
from perdure.model.forge.rules import Rule, issue_of, wants
from perdure.protocols import ForgeApi
from perdure.rules.lifecycle import FINAL

AGAIN_S = 2.0
"""Poll interval of the inbox when nothing wakes the thread, in seconds. Deliveries that have to
wait are retried at this interval."""
AT_ONCE = 10_000
TROUBLED_S = 60.0
"""Delay in seconds before a delivery is retried after an unexpected error."""
COMPLAIN_S = 600.0
"""Minimum pause in seconds before perdure logs again, for the same reason, that the forge of a
source does not answer or refuses the token."""
QUIET = frozenset({"commented", "line_commented", "ci_failed", "approved", "edited"})
"""Triggers that do not continue a run whose issue is closed."""

WITHDRAWING = frozenset({IntentKind.UNASSIGNED, IntentKind.UNLABELLED})

Told = tuple[Delivery, Intent]


class Dispatcher:
    """Handles the deliveries, as a context manager. `seed` has the fields that every task takes
    from the settings. `say` is called with a line for each delivery that fails, and for each forge
    that does not answer. `forge` returns the client for a source and a rule, or None.

    Raises ConfigError if the templates of a rule cannot be used.
    """

    def __init__(
        self, engine: Engine, rules: Sequence[Rule], seed: TaskSpec, say: Callable[[str], None],
        forge: Callable[[str, str], ForgeApi | None] = lambda source, rule: None,
    ) -> None:  # fmt: skip
        self._engine, self._rules, self._seed, self._say = engine, rules, seed, say
        self._current = Current(forge)
        self._checks = Checks(engine, self._current)
        self._replies = RequestReplies(engine, self._current)
        self._unread = UnreadComments(engine, self._current, rules)
        self._prompts = Prompts(rules)
        self._held: set[str] = set()
        self._later: dict[int, float] = {}
        self._complained: dict[tuple[str, str], float] = {}
        self._rounds = Rounds("dispatch", self.round, AGAIN_S, self._failed)

    def wake(self) -> None:
        """Wake the thread because a delivery arrived. May be called from any thread."""
        self._rounds.wake()

    def __enter__(self) -> Dispatcher:
        self._rounds.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._rounds.stop()

    def _failed(self, error: Exception) -> None:
        self._say(f"deliveries wait: {error or type(error).__name__}")

    def round(self) -> None:
        """Settle every delivery that can be settled now. Raises StoreError."""
        news: dict[str, list[Told]] = {}
        given = False
        self._held.clear()
        later = {}
        for number, until in self._later.items():
            if until > time.monotonic():
                later[number] = until
        self._later = later
        for delivery in self._engine.store.waiting_deliveries(AT_ONCE):
            if self._rounds.is_over():
                break
            if delivery.number in self._later:
                continue
            given |= self._tried([delivery], partial(self._begin_or_queue, delivery, news))
        for run_id, told in news.items():
            deliveries = [delivery for delivery, _ in told]
            given |= self._tried(deliveries, partial(self._deliver_news, run_id, told))
        if given:
            wakeup.ring(self._engine.state)

    def _tried(self, deliveries: Sequence[Delivery], work: Callable[[], bool]) -> bool:
        """Call `work`, which processes these deliveries, and return whether a run got new work. If
        `work` fails, store the reason with each delivery and return False. Raises StoreError."""
        try:
            with acting(_actor(deliveries)):
                return work()
        except (UsageError, AgentMissing, NotFound, ForgeRefused, CapsuleError) as error:
            for delivery in deliveries:
                self._engine.store.settle_delivery(
                    delivery.number, DeliveryState.FAILED, str(error)
                )
                self._say(f"delivery {delivery.number} failed: {error}")
        except (Conflict, ForgeUnavailable, ForgeDenied) as error:
            # Another process has the delivery, a person has the conversation open, or the forge
            # does not answer.
            if not isinstance(error, Conflict):
                self._complain(deliveries[0].source, str(error))
            self._wait(deliveries, str(error))
        except StoreError:
            raise
        except Exception as error:
            # A delivery that fails unexpectedly must not block the others.
            for delivery in deliveries:
                self._later[delivery.number] = time.monotonic() + TROUBLED_S
            self._say(f"delivery {deliveries[0].number} waits: {error or type(error).__name__}")
            self._wait(deliveries, str(error) or type(error).__name__)
        return False

    def _complain(self, source: str, why: str) -> None:
        """Log that the forge of a source does not answer or refuses the token, unless this was
        logged within the last `COMPLAIN_S`."""
        now = time.monotonic()
        said = {key: until for key, until in self._complained.items() if now < until}
        if (source, why) not in said:
            said[source, why] = now + COMPLAIN_S
            self._say(f"deliveries of {source} wait: {why}")
        self._complained = said

    def _wait(self, deliveries: Sequence[Delivery], why: str) -> None:
        for delivery in deliveries:
            if delivery.reason != f"waits: {why}":
                self._engine.store.delay_delivery(delivery.number, f"waits: {why}")

    def _settle(self, delivery: Delivery, state: DeliveryState, reason: str) -> None:
        self._engine.store.settle_delivery(delivery.number, state, reason)

    def _begin_or_queue(self, delivery: Delivery, news: dict[str, list[Told]]) -> bool:
        """Process one delivery: begin a task, settle the delivery, or add it to `news`, the
        deliveries to be passed to existing runs. Returns whether a task was begun."""
        intent = delivery.intent
        if intent is not None and intent.kind in ENDING:
            self._clean(delivery, intent, news)
            return False
        if intent is not None and intent.kind is IntentKind.EDITED:
            self._retitle(delivery, intent)
        stopped: dict[str, str] = {}
        if intent is not None:
            intent = with_before(self._engine.store, delivery, intent)
            intent = self._current.placed(delivery, intent, self._rules)
            stopped = self._withdraw(delivery, intent, news)
            if intent.kind in WITHDRAWING:
                done = "; ".join(stopped.values())
                self._settle(
                    delivery,
                    DeliveryState.HANDLED if done else DeliveryState.IGNORED,
                    done or "it does not stop any agent",
                )
                return False
        rules = [rule for rule in self._rules if rule.name not in stopped]
        if intent is not None:
            reply = self._replies.reply(delivery, intent, rules, {*news, *self._held})
            if reply is not None:
                self._settle(delivery, reply.state, reply.reason)
                return False
        if intent is not None:
            choice = choose(rules, delivery, intent, self._run_of)
        else:
            choice = "it calls for no action"
        if intent is not None and isinstance(choice, RuleChoice):
            choice = self._passed_over(delivery, intent, choice) or choice
        if (
            isinstance(choice, RuleChoice)
            and choice.run is not None
            and (choice.run.state is RunState.RUNNING or choice.run.id in self._held)
        ):
            # The run gets this delivery after the earlier ones, when its attempt has ended. Only
            # then is the forge asked for the current state.
            self._held.add(choice.run.id)
            raise Conflict(
                f"{choice.run.name} is running, and gets the delivery when its attempt has ended",
                f"perdure logs -f {choice.run.name}",
            )
        if intent is not None and isinstance(choice, RuleChoice):
            wanting = [rule for rule in rules if takes_from(rule, delivery) and wants(rule, intent)]
            now, able = self._present(delivery, intent, choice, wanting)
            if isinstance(now, Intent):
                choice = choose(able, delivery, now, self._run_of)
            else:
                choice = now
            if isinstance(now, Intent) and isinstance(choice, str):
                choice = f"as of now, {choice}"
            intent = now if isinstance(now, Intent) else intent
        if intent is not None and isinstance(choice, RuleChoice):
            over = self._closed_reason(delivery, intent, choice, news) or overtaken(
                self._engine.store, delivery, intent
            )
            choice = (
                over
                or self._told_before(delivery, intent, choice, news)
                or self._is_off(delivery, intent, choice)
                or choice
            )
        if intent is None or isinstance(choice, str):
            done = "; ".join(stopped.values())
            self._settle(
                delivery,
                DeliveryState.HANDLED if done else DeliveryState.IGNORED,
                done or str(choice),
            )
            return False
        if choice.run is None:
            prompt = self._prompts.first(
                choice.rule, delivery, intent, self._current.earlier(delivery, intent, choice.rule)
            )
            spec = spec_of(self._seed, choice.rule, delivery, intent, prompt)
            service.submit(self._engine, spec, Path("/"), deliveries=[delivery.number])
            return True
        if why := unattended(
            self._engine.store,
            self._engine.store.contexts(choice.run.id),
            self._rules,
            delivery,
            choice,
            intent,
        ):
            self._ask_a_person(choice.run, why)
            self._settle(delivery, DeliveryState.IGNORED, why)
            return False
        if intent.kind is IntentKind.CI_FAILED:
            if why := self._checks.limit_reached(choice.rule, choice.run):
                self._ask_a_person(choice.run, why)
                self._settle(delivery, DeliveryState.IGNORED, why)
                return False
            self._checks.wait(delivery, choice.rule, intent)
        if why := _is_no_news(choice, intent):
            self._settle(delivery, DeliveryState.HANDLED, why)
            return False
        news.setdefault(choice.run.id, []).append((delivery, intent))
        return False

    def _present(
        self, delivery: Delivery, intent: Intent, choice: RuleChoice, rules: Sequence[Rule]
    ) -> tuple[Intent | str, Sequence[Rule]]:
        """Ask the forge, and return the same values as `Current.of`. The delivery may be a comment
        on a closed issue that has a run. If the comment was written before the closing, tell its
        author that the agent has not read the comment. A comment that was written after the closing
        continues the run if the comment mentions the agent."""
        now, able = self._current.of(delivery, intent, rules)
        if isinstance(now, Intent) or choice.run is None or intent.kind not in SPOKEN:
            return now, able
        found, able = self._current.of(delivery, intent, [choice.rule], closed=True)
        if isinstance(found, str) or not able:
            return found, ()
        if self._unread.is_before_end(delivery, found, choice.rule):
            self._unread.reply([(delivery, found)], choice.rule)
            return unread_reason(choice.run), ()
        if choice.trigger == "mentioned":
            return found, able
        return now, ()

    def _ask_a_person(self, run: TaskRun, why: str) -> None:
        """Set the condition `needs_person`, unless the run already has it with this message. Every
        change of a run is reported to its forge, so setting the same condition again would cause a
        useless report."""
        if not any(each.type == "needs_person" and each.message == why for each in run.conditions):
            needs = Condition(type="needs_person", message=why, at=self._engine.store.now())
            self._engine.store.record_outside_attempt(run.id, [], needs)

    def _passed_over(self, delivery: Delivery, intent: Intent, choice: RuleChoice) -> str:
        """Return why a delivery that matches a rule is not reported to its run; empty if it is
        reported."""
        run = choice.run
        if run is None:
            if is_told_to_stop(choice.rule, intent):
                return "there is nothing to stop"
            return ""
        if is_unchanged(intent):
            return "its text has not changed"
        if intent.kind is IntentKind.CI_FAILED:
            return self._checks.refused(choice, intent) or self._checks.already_reported(
                run, intent
            )
        return ""

    def _told_before(
        self,
        delivery: Delivery,
        intent: Intent,
        choice: RuleChoice,
        news: Mapping[str, Sequence[Told]],
    ) -> str:
        """Return the reason not to pass a comment to the run, if another delivery of the same
        comment was passed to the run, or will be; otherwise an empty text."""
        if choice.run is None:
            return ""
        queued = news.get(choice.run.id, ())
        return told_before(self._engine.store, delivery, intent, queued)

    def _is_off(self, delivery: Delivery, intent: Intent, choice: RuleChoice) -> str:
        """Return the reason why the run gets no events now; empty if it gets them. A run whose work
        was withdrawn on the forge gets its events later, when the work is given to the agent again.
        The caller must check the author of an event first. Otherwise the run would later get events
        of people who may not instruct it."""
        run = choice.run
        if run is None or withdrawn(run) is None:
            return ""
        given = is_given_again(
            self._engine.store, delivery, intent, run, choice.rule, choice.trigger
        )
        if given:
            return ""
        return ignored_reason(run)

    def _retitle(self, delivery: Delivery, intent: Intent) -> None:
        """Give the runs of a renamed issue the issue's new title, even if their agents are not
        informed of the edit."""
        for rule in self._rules:
            if takes_from(rule, delivery):
                number = issue_of(rule, intent)
            else:
                number = 0
            if number:
                run = self._run_of(rule, scope_of(rule, delivery, intent, number))
            else:
                run = None
            if run is not None and number == intent.number and run.spec.title:
                self._engine.store.retitle(run.id, title_of(rule, intent, number))

    def _withdraw(
        self, delivery: Delivery, intent: Intent, news: dict[str, list[Told]]
    ) -> dict[str, str]:
        """Stop gracefully the runs whose work this delivery takes back. Returns, by the name of the
        rule, a sentence about what was done. Raises Conflict while an attempt of such a run is
        still running."""
        store, said = self._engine.store, dict[str, str]()
        if not may_withdraw(intent):
            return said
        for rule in self._rules:
            if not takes_from(rule, delivery) or not (number := issue_of(rule, intent)):
                continue
            run = self._run_of(rule, scope_of(rule, delivery, intent, number))
            if run is None:
                continue
            why = self._taken_back(delivery, with_changes(store, delivery, intent, run), rule, run)
            if not why:
                continue
            words = message(rule, why)
            known = withdrawn(run)
            if known is None or known.message != words:
                # The condition keeps its first time, and is recorded before the comments are
                # settled. `missed_comments` returns only comments that were settled after it.
                since = store.now() if known is None else known.at
                store.record_outside_attempt(
                    run.id,
                    [Withdrawn(why=why)],
                    Condition(type=WITHDRAWN, message=words, at=since),
                )
            for each, _ in news.pop(run.id, []):
                self._settle(each, DeliveryState.IGNORED, ignored_reason(run))
            run = self._stopped(run)
            said[rule.name] = f"{run.name} no longer works on it: {why}"
        return said

    def _taken_back(self, delivery: Delivery, intent: Intent, rule: Rule, run: TaskRun) -> str:
        """Return in words how the run's work was taken back; empty if it was not. The forge is
        asked for its present state first."""
        store, stops = self._engine.store, is_told_to_stop(rule, intent)
        if not stops and not taken_back(store, rule, run, intent):
            return ""
        if stops:
            now, able = self._current.of(delivery, intent, [rule])
            if isinstance(now, Intent) and able:
                return f"stopped by {intent.author}"
            return ""
        found = (
            self._current.asked(delivery, intent, rule, lambda api: current(api, intent)) or intent
        )
        if isinstance(found, Intent):
            return taken_back(store, rule, run, found)
        return ""

    def _deliver_news(self, run_id: str, told: Sequence[Told]) -> bool:
        """Append the waiting events of a run to its instructions, as one update. If one update
        would be too long, use several. Returns True, because the run got new work."""
        run = self._engine.store.get(run_id)
        deliveries = [delivery for delivery, _ in told]
        service.refuse_open(self._engine.store, run)
        restore_workdir(self._engine, run)
        moved = self._base_changes(run)
        rule = self._rule_of(run)
        sources = sorted({delivery.source for delivery in deliveries})
        before = [
            *missed_comments(self._engine.store, run, sources),
            *unread_comments(self._engine.store, run, sources),
        ]
        before.sort(key=lambda each: each[0].number)
        shown, failed = self._checks.report(rule, run, merged([*before, *told]))
        text = self._prompts.delta(rule, shown, moved)
        try:
            service.check_prompt(
                text, self._engine.driver(run.spec.agent).abilities.max_prompt_bytes
            )
        except UsageError:
            if len(told) == 1:
                raise
            half = len(told) // 2
            self._deliver_news(run_id, told[:half])
            return self._deliver_news(run_id, told[half:])
        events: list[AnyEvent] = [*failed]
        if moved is not None:
            events.append(
                BaseMoved(branch=moved.branch, commit=moved.commit, commits=moved.commits)
            )
        self._engine.store.update(
            run.id, text, deliveries=[delivery.number for delivery in deliveries], events=events
        )
        return True

    def _base_changes(self, run: TaskRun) -> Moved | None:
        """Return the commits that the base branch got since the agent was last informed of them.
        Returns None if there are none, or if the branch cannot be fetched now; a later update then
        reports them."""
        if run.workspace is None:
            return None
        told = (record.event for record in reversed(self._engine.store.run_events(run.id)))
        last = next((event.commit for event in told if isinstance(event, BaseMoved)), "")
        try:
            found = self._engine.workspaces.ahead(run.workspace, run.spec.base, last)
        except PerdureError:
            return None
        if found is not None:
            return Moved(run.spec.base, found.commit, found.commits, found.subjects)
        return None

    def _stopped(self, run: TaskRun) -> TaskRun:
        """Stop the run if it is not in a final state, and return it. Only a run in a final state
        can be cleaned up. Raises Conflict while its agent is still ending."""
        if run.state not in FINAL:
            run = service.stop(self._engine, run.id)
        if run.state not in FINAL:
            raise Conflict(f"{run.name} is stopping", f"perdure logs -f {run.name}")
        return run

    def _clean(self, delivery: Delivery, intent: Intent, news: dict[str, list[Told]]) -> None:
        """Clean up the runs of an issue or pull request that was closed, merged, or lost its
        branch. Events that these runs have not read yet are kept, because a run may be continued
        later."""
        found = []
        for rule in self._rules:
            number = issue_of(rule, intent) if takes_from(rule, delivery) else 0
            if not number:
                continue
            run = self._run_of(rule, scope_of(rule, delivery, intent, number))
            if run is not None:
                found.append((rule, run))
        if not found:
            self._settle(delivery, DeliveryState.IGNORED, "no agent works on it")
            return
        now, _ = self._current.of(delivery, intent, [rule for rule, _ in found])
        if why := now if isinstance(now, str) else overtaken(self._engine.store, delivery, intent):
            self._settle(delivery, DeliveryState.IGNORED, why)
            return
        said = []
        for rule, run in found:
            if (
                run.state is RunState.RUNNING
                and intent.author.casefold() == rule.login.casefold() != ""
            ):
                raise Conflict(
                    f"{run.name} is running; it closed the issue itself",
                    f"perdure logs -f {run.name}",
                )
            self._unread.keep(news.pop(run.id, []), rule, run)
            self._unread.reply_about_queued(delivery.source, rule, run)
            run = self._stopped(run)
            pull = intent.number if intent.pull else self._pull_of(run)
            if intent.author:
                why = f"{_ended(intent)} by {intent.author}"
            else:
                why = _ended(intent)
            said.append(clean(self._engine, rule, run, why, pull=pull, forge=intent.forge))
        self._settle(delivery, DeliveryState.HANDLED, "; ".join(said))

    def _closed_reason(
        self,
        delivery: Delivery,
        intent: Intent,
        choice: RuleChoice,
        news: Mapping[str, object],
    ) -> str:
        """Return why a delivery does not continue a run that was cleaned up; empty if it does. An
        event with a trigger in `QUIET`, such as a comment or a failed check, does not continue such
        a run. There are two exceptions: the forge was asked and has confirmed that the issue is
        open, or another event already waits for the run, such as the reopening of the issue."""
        if choice.run is None or choice.trigger not in QUIET or choice.run.id in news:
            return ""
        asked = self._current.knows(delivery, choice.rule)
        if not asked and is_cleaned_up(self._engine.store, choice.run):
            if self._unread.is_before_end(delivery, intent, choice.rule):
                return unread_reason(choice.run)
            return f"{choice.run.name} has ended and was cleaned up"
        return ""

    def _pull_of(self, run: TaskRun) -> int:
        posting = self._engine.store.posting(run.id)
        if posting is not None:
            return posting.pull
        return 0

    def _rule_of(self, run: TaskRun) -> Rule:
        name = run.spec.rule or run.spec.labels.get("agent", "")
        found = next((rule for rule in self._rules if rule.name == name), None)
        if found is None:
            raise NotFound(
                f"The configuration no longer has an agent {name!r}",
                "add [agents.NAME] again",
            )
        return found

    def _run_of(self, rule: Rule, scope: str) -> TaskRun | None:
        run = self._engine.store.run_under(rule.name, scope)
        if run is None:
            return None
        try:
            return self._engine.store.get(run.id)
        except NotFound:
            return None  # The run was removed from the store's list of runs.


def _actor(deliveries: Sequence[Delivery]) -> str:
    """Return the actor for the audit trail: the logins of the deliveries' authors, or perdure
    itself if the forge names no author."""
    source = deliveries[0].source
    logins: dict[str, None] = {}
    for each in deliveries:
        if each.intent is not None and each.intent.author:
            logins[each.intent.author] = None
    if logins:
        return actor("forge", f"{source}/{','.join(logins)}")
    return PERDURE


def _ended(intent: Intent) -> str:
    return {IntentKind.BRANCH_DELETED: "left without its branch"}.get(
        intent.kind, intent.kind.value
    )


def _is_no_news(choice: RuleChoice, intent: Intent) -> str:
    """Return the reason not to pass on a delivery that asks for work on which the run already
    works; otherwise an empty text. An issue that is opened with labels or assignees arrives as
    several events. Gitea and Forgejo also report all labels and assignees whenever one of them
    changes, so their reports are not passed on even after the run has ended."""
    run = choice.run
    if (
        run is None
        or withdrawn(run) is not None
        or intent.kind
        not in (
            IntentKind.OPENED,
            IntentKind.ASSIGNED,
            IntentKind.LABELLED,
            IntentKind.REVIEW_REQUESTED,
        )
    ):
        return ""
    all_told = (
        intent.forge in (Forge.GITEA, Forge.FORGEJO)
        and intent.kind is not IntentKind.REVIEW_REQUESTED
    )
    if run.state not in FINAL or all_told:
        return f"{run.name} already works on it"
    return ""
