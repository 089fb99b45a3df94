"""Stories on the real control plane: TaskRuns whose agents are the real CLIs, with the rehearsal as
their model.

Pods share the network of the host, so an agent in a pod reaches the rehearsal on 127.0.0.1. The
rehearsal's address is in the Secret that the TaskRun names. The tests check the rehearsal's record
of the requests that it got, the TaskRun, and `kubectl perdure why`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from perdure.agents.rehearsal import Rehearsal, Request
from perdure.agents.rehearsal.agents import codex_args
from perdure.capsule.objects import CheckpointStore, open_store
from perdure.errors import NotFound
from tests.journeys.stage import native, said
from tests.kubernetes.place import Place
from tests.kubernetes.run import ENDED, Run
from tests.servers.kubernetes.api import Object
from tests.servers.kubernetes.machine import Process

WORD = "quercus"
PROMPT = f"Write one.txt. The magic word is {WORD}."
SCRIPT = """by history
run echo one > one.txt
---
hang
say It is done.
"""
"""In the first attempt the agent writes a file, and then the model never answers. In the attempt
that continues the conversation the model answers."""


class Story(Run):
    """A TaskRun with an agent and its own rehearsal."""

    def __init__(
        self, place: Place, name: str, agent: str, mode: str, script: str, spec: Object
    ) -> None:
        self.agent = agent
        self.rehearsal = place.stack.enter_context(Rehearsal(script))
        values = {
            key: value
            for key, value in self.rehearsal.environ(agent).items()
            if key != "CODEX_HOME"
        }
        whole: Object = {
            "service": "shop",
            "task": name,
            "agent": agent,
            "prompt": PROMPT,
            "permissions": "Full",
            "credentialsSecretRef": {"name": place.secret(f"{name}-model", values)},
            "agentArgs": codex_args(self.rehearsal.url) if agent == "codex" else [],
            "workspace": place.workspace(mode),
            "pod": {"terminationGracePeriodSeconds": 15},
        }
        super().__init__(place, name, place.make(name, {**whole, **spec}))

    @property
    def asked(self) -> list[Request]:
        """Return the requests that reached the model, as steps of the conversation."""
        return self.rehearsal.requests

    def told(self) -> str:
        heard = [
            f"model: {each.answer} {each.session} {said(each.messages)[-300:]}"
            for each in self.rehearsal.everything[-6:]
        ]
        return "\n".join([super().told(), *heard])

    def hangs(self) -> None:
        """Wait until the file is written, its checkpoint is in the place from which the next
        attempt will read it, and the model is silent."""

        def asks() -> bool:
            phase = self.status().get("phase")
            assert phase not in ENDED, f"it is {phase}"
            return any(each.reply == 1 for each in self.asked)

        self.until(asks, "the agent has written its file and asks the model")
        if self.mode != "Claim":
            self.until(self._published, "a checkpoint with the conversation is in the store")

    def _published(self) -> bool:
        try:
            _, manifest = self._store().newest(self.uid.replace("-", ""))
        except (NotFound, LookupError):
            return False
        return bool(manifest.conversations)

    def _store(self) -> CheckpointStore:
        """Return the checkpoint store for the TaskRun's mode. Raise LookupError if a shared claim
        has no store yet."""
        if self.mode == "Checkpoints":
            return self.place.store()
        volume = self.place.volume_of("shared")
        terms = next(
            volume.glob(f"shop/.task/{self.name}/**/runs/{self.uid.replace('-', '')}"), None
        )
        if terms is None:
            raise LookupError(self.name)
        return open_store(terms.parents[1].as_uri())

    def agent_process(self) -> Process:
        """Return the agent's process in the running pod."""
        program = native(self.agent)

        def found() -> Process | None:
            for each in self.processes():
                with suppress(OSError):
                    if Path(f"/proc/{each.pid}/exe").samefile(program):
                        return each
            return None

        agent: Process = self.until(found, "the agent is running")
        return agent

    def went_on(self) -> tuple[Object, Object]:
        """Check that the newest attempt continued the first one's conversation natively, and that
        the model got all earlier messages.

        Return both attempts.
        """
        status = self.settled()
        first, last = status["attempts"][0], status["attempts"][-1]
        told = self.told()
        assert last["number"] > 1 and last["outcome"] == "succeeded", told
        assert last["receipt"]["verdict"] == status["receipt"] == "native", told
        # The verdict is `unverified` without a check, unless the killed attempt had done all of the
        # work.
        assert last["work"]["verdict"] == status["work"], told
        assert status["work"] in ("unverified", "nothing_to_do"), told
        assert last["sessionId"] == first["sessionId"] == status["sessionId"], told
        words = said(self.rehearsal.last.messages)
        assert WORD in words and "one.txt" in words, words
        assert all(WORD in said(each.messages) for each in self.asked), (
            "the model was asked without the task"
        )
        assert {each.session for each in self.asked} == {first["sessionId"]}, told
        self.one_of_each()
        why = self.place.perdure("why", self.name)
        assert "native" in why and first["sessionId"] in why, why
        return first, last


def tell(
    place: Place,
    name: str,
    agent: str = "claude",
    mode: str = "Claim",
    script: str = SCRIPT,
    **spec: Any,
) -> Story:
    """Make a TaskRun. The given fields replace those that the spec of every story has."""
    return Story(place, name, agent, mode, script, spec)
