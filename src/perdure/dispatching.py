"""Deliveries become work: a task for the agent that wants it, or new instructions for the one that is at it already.

A thread of `perdure serve`, beside the webhooks and the pool. Each delivery is settled in the very transaction that makes its run or
adds its instructions, so a kill at any point does it once or not yet. What cannot be done now (a full disk, a conversation that a person
has open) stays `received` and is tried again; what never can is `failed`, with why.

The conversation is the one of (agent, its name, repository, issue): the pull request of the agent's own branch belongs to its issue.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from perdure import bell, service
from perdure.attempt import Engine
from perdure.errors import AgentMissing, Conflict, NotFound, PerdureError, UsageError
from perdure.forges import Delivery, DeliveryState, Intent
from perdure.forges.postings import Origin, labels_of
from perdure.forges.prompts import delta, first
from perdure.forges.rules import BEGINNING, Rule, branch_of, issue_of, wants
from perdure.model import SessionKey, TaskRun, TaskSpec

AGAIN_S = 5.0
AT_ONCE = 1000


class Dispatcher:
    """From `with` to its end. `seed` has what every task takes from the settings; `say` gets a line for each delivery that failed."""

    def __init__(self, engine: Engine, rules: Sequence[Rule], seed: TaskSpec, say: Callable[[str], None]) -> None:
        self._engine, self._rules, self._seed, self._say = engine, rules, seed, say
        self._woken = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._go, name="dispatch", daemon=True)

    def wake(self) -> None:
        """Something was received. From any thread."""
        self._woken.set()

    def __enter__(self) -> Dispatcher:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over = True
        self.wake()
        self._thread.join()

    def _go(self) -> None:
        while not self._over:
            self._woken.clear()
            try:
                self.round()
            except (PerdureError, OSError) as error:
                self._say(f"deliveries wait: {error}")
            self._woken.wait(AGAIN_S)

    def round(self) -> None:
        """Settles whatever waits and can be settled now. Raises StoreError."""
        given = False
        for delivery in self._engine.store.waiting_deliveries(AT_ONCE):
            if self._over:
                break
            try:
                given |= self._settled(delivery)
            except (UsageError, AgentMissing, NotFound) as error:
                self._engine.store.settle_delivery(delivery.number, DeliveryState.FAILED, str(error))
                self._say(f"delivery {delivery.number} failed: {error}")
            except Conflict:
                continue  # Somebody else has the delivery, or a person the conversation.
        if given:
            bell.ring(self._engine.state)

    def _settled(self, delivery: Delivery) -> bool:
        """Whether a run got something to do by it."""
        intent = delivery.intent
        found = next(((rule, trigger) for rule in self._rules if intent and (trigger := wants(rule, intent))), None)
        if intent is None or found is None:
            self._engine.store.settle_delivery(delivery.number, DeliveryState.IGNORED, "no agent wants it")
            return False
        rule, trigger = found
        number = issue_of(rule, intent)
        run = self._run_of(rule, scope_of(rule, delivery, intent, number)) if number else None
        if run is not None:
            text = delta(delivery, intent)
            service.check_prompt(text, self._engine.driver(run.spec.agent).abilities.max_prompt_bytes)
            service.refuse_open(self._engine, run)
            self._engine.store.update(run.id, text, delivery=delivery.number)
            return True
        if trigger not in BEGINNING:
            self._engine.store.settle_delivery(delivery.number, DeliveryState.IGNORED, f"{rule.name} has no run to go on with")
            return False
        service.submit(self._engine, spec_of(self._seed, rule, delivery, intent), Path("/"), delivery=delivery.number)
        return True

    def _run_of(self, rule: Rule, scope: str) -> TaskRun | None:
        run = self._engine.store.run_of(SessionKey(rule.agent, scope))
        if run is None:
            return None
        try:
            return self._engine.store.get(run.id)
        except NotFound:
            return None  # It was removed from the list.


def scope_of(rule: Rule, delivery: Delivery, intent: Intent, number: int) -> str:
    """Whose conversation it is."""
    return f"{delivery.source}:{rule.name}:{intent.repository}#{number}"[-200:]


def spec_of(seed: TaskSpec, rule: Rule, delivery: Delivery, intent: Intent) -> TaskSpec:
    """The task of a first delivery. The key makes it one run, however often it is tried."""
    number = issue_of(rule, intent)
    return replace(
        seed,
        prompt=first(delivery, intent),
        agent=rule.agent,
        key=f"delivery:{delivery.number}:{delivery.sha256[:12]}",
        repo=rule.clone.replace("{repository}", intent.repository),
        base=intent.branch if intent.pull else seed.base,
        branch=branch_of(rule, number),
        scope=scope_of(rule, delivery, intent, number),
        labels=labels_of(
            delivery.number,
            Origin(
                source=delivery.source,
                rule=rule.name,
                repository=intent.repository,
                number=number,
                pull=intent.pull and number == intent.number,
            ),
        ),
    )
