"""A team's server in miniature, without a network: a real repository, a real store, and the real
dispatcher, one round at a time. The agents are programs that do nothing; the test claims and ends
the attempts."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from perdure.forge.dispatch import Dispatcher
from perdure.forge.webhooks import receive
from perdure.model import Claim, Decision, Outcome, OutcomeKind, RunState, TaskRun, TaskSpec
from perdure.model.forge.deliveries import (
    Arrived,
    Delivery,
    Forge,
    Intent,
    IntentKind,
    PayloadReading,
)
from perdure.model.forge.rules import Rule
from perdure.protocols import Ending
from perdure.wiring import open_engine
from tests.forges import payloads
from tests.sweeper.ground import Ground, make_ground

LEASE_S = 60.0


def intent(kind: IntentKind, **more: Any) -> Intent:
    """Return the intent of a delivery about issue 4 of shop/web, by Ada."""
    return Intent(
        kind=kind,
        **({"forge": Forge.GITHUB, "repository": "shop/web", "author": "ada", "number": 4} | more),
    )


@dataclass
class Office:
    ground: Ground
    rules: tuple[Rule, ...]
    said: list[str] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        programs = {"PERDURE_CLAUDE": "/bin/true", "PERDURE_CODEX": "/bin/true"}
        settings = replace(self.ground.settings, agents=self.rules)
        self.engine = open_engine(settings, {**self.ground.yard.environ, **programs})
        self.ground = replace(self.ground, engine=self.engine)
        self.dispatcher = Dispatcher(self.engine, self.rules, TaskSpec(prompt=""), self.said.append)

    def arrive(self, *intents: Intent, source: str = "hub") -> list[int]:
        """Store deliveries, in order. Return their numbers."""
        made = []
        for each in intents:
            self.count += 1
            body = json.dumps({"number": self.count})
            digest = sha256(body.encode()).hexdigest()
            made.append(
                Arrived(
                    source=source, id=f"delivery-{self.count:04}", forge=each.forge, event="e", sha256=digest, body=body,
                    reading=PayloadReading(each),
                )
            )  # fmt: skip
        return [accepted.number for accepted in self.engine.store.accept(made)]

    def deliver(
        self, forge: Forge, event: str, body: dict[str, Any], source: str = "hub"
    ) -> Delivery:
        """Receive a webhook from its raw body on, run one round of the dispatcher, and return the
        result."""
        self.count += 1
        # No two bodies are the same, as a real one has a time.
        raw = json.dumps({**body, "numbered": self.count}).encode()
        headers = payloads.headers(forge, event, raw)
        arrived = receive(
            headers,
            raw,
            source=source,
            secrets=(payloads.SECRET,),
            now_s=time.time(),
            expected=forge,
        )
        (accepted,) = self.engine.store.accept([arrived])
        self.dispatcher.round()
        return self.delivery(accepted.number)

    def told(self, *intents: Intent, source: str = "hub") -> list[Delivery]:
        """Store deliveries, run one round of the dispatcher, and return their results."""
        numbers = self.arrive(*intents, source=source)
        self.dispatcher.round()
        return [self.delivery(number) for number in numbers]

    def delivery(self, number: int) -> Delivery:
        return self.engine.store.delivery(str(number))[0]

    def run(self, rule: str = "dev") -> TaskRun:
        """Return the only run of the rule."""
        (found,) = [run for run in self.runs() if run.spec.rule == rule]
        return found

    def runs(self) -> list[TaskRun]:
        return [self.engine.store.get(row.id) for row in self.engine.store.find(limit=1000)]

    def prompts(self, rule: str = "dev") -> list[str]:
        return [context.text for context in self.engine.store.contexts(self.run(rule).id)]

    def claim(self, rule: str = "dev") -> Claim:
        found = self.engine.store.claim("ann", LEASE_S, self.run(rule).id)
        assert found is not None
        return found

    def stop(self, claim: Claim) -> TaskRun:
        """End the attempt as stopped by a person."""
        ending = Ending(
            outcome=Outcome(kind=OutcomeKind.CANCELLED), decision=Decision(state=RunState.CANCELLED)
        )
        return self.engine.store.finish(claim, ending)

    def end(self, claim: Claim) -> TaskRun:
        """End the attempt with success."""
        ending = Ending(
            outcome=Outcome(kind=OutcomeKind.SUCCEEDED), decision=Decision(state=RunState.SUCCEEDED)
        )
        return self.engine.store.finish(claim, ending)


def make_office(top: Path, rules: Sequence[Rule] = ()) -> Office:
    ground = make_ground(top)
    dev = Rule(
        name="dev",
        agent="claude",
        authors=("ada", "ben"),
        clone=str(ground.yard.repo),
        login="dev-bot",
        labels=("agent",),
    )
    made = [replace(rule, clone=rule.clone or str(ground.yard.repo)) for rule in rules] or [dev]
    return Office(ground, tuple(made))
