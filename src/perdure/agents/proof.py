"""Proves that the installed agent can continue from a transcript: runs a real resume in a scratch
home against a rehearsed model.

`wiring` passes the prover to the engine as `Engine.prove`, and `perdure sessions repair` calls it.
The agent is started as in an attempt and resumes the repaired copy. The last request that the agent
sends to the model is compared with the content of the copy. Of the user's files, only the agent's
program and the transcripts of the copy's ancestors are read. The proof uses no network but
127.0.0.1 and no token, and costs nothing. The rehearsal is strict: it refuses what the real
services refuse.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from uuid import uuid4

from perdure.errors import PerdureError
from perdure.host import process
from perdure.model import Command, Continuation, Exit, Launch, Start, TaskSpec
from perdure.protocols import AgentDriver

PATIENCE_S = 120.0
ASKED = "Say that you are here."
KEPT = ("PATH", "IS_SANDBOX", "LANG", "LD_LIBRARY_PATH", "NODE_PATH")
COMPACTED = (
    b'"compact_boundary"',
    b'"type":"compacted"',
    b"Got it. Thanks for the additional context!",
)
"""Texts that occur in a transcript only after a compaction. The model then gets a summary in place
of the beginning of the conversation."""

Prove = Callable[[AgentDriver, str, bytes, str, Path], str]
"""Type of a prover, a function that tests one copy of a transcript. Its parameters are the driver,
the conversation's id, the copy's content, the copy's file name, and the agent's own home. It
returns the reason why the copy is not proven; empty if the copy is proven."""


def prover(environ: Mapping[str, str]) -> Prove:
    """Return a prover that finds the agents' programs with this environment."""

    def prove(driver: AgentDriver, session_id: str, content: bytes, name: str, home: Path) -> str:
        try:
            with tempfile.TemporaryDirectory(prefix="pp", ignore_cleanup_errors=True) as scratch:
                return _Trial(driver, session_id, content, name, home, Path(scratch), environ).run()
        except (PerdureError, OSError, ValueError) as error:
            return f"it could not be tried: {error}"

    return prove


class _Trial:
    """Runs one test resume of a copy in a scratch home."""

    def __init__(
        self,
        driver: AgentDriver,
        session_id: str,
        content: bytes,
        name: str,
        home: Path,
        scratch: Path,
        environ: Mapping[str, str],
    ) -> None:
        self.driver, self.session_id, self.content, self.name, self.real_home = (
            driver,
            session_id,
            content,
            name,
            home,
        )
        self.scratch, self.work = scratch, scratch / "work"
        self.program = driver.locate(environ)
        self.outer = {key: value for key, value in environ.items() if key in KEPT}

    def run(self) -> str:
        for folder in ("work", "home", "tmp"):
            (self.scratch / folder).mkdir()
        # Imported late, because this module loads a whole server and is rarely needed.
        from perdure.agents.rehearsal import Rehearsal

        with Rehearsal("say I am here.", strict=True) as rehearsal:
            places = {"HOME": str(self.scratch / "home"), "TMPDIR": str(self.scratch / "tmp")}
            own = rehearsal.environ(
                self.driver.name, home=self.scratch / "home" / self.driver.name, retries=0
            )
            self.environ = {**self.outer, **places, **own}
            self.home = self.driver.home(self.environ)
            self.put_in_place()
            command = self.driver.command(self.launch())
            end, said = self.process(command, "resume")
            if end.cause != "exited":
                return f"the agent did not end within {PATIENCE_S:g} s"
            lines = filter(None, said.split(b"\n"))
            events = list(chain.from_iterable(map(self.driver.parse, lines)))
            outcome = self.driver.outcome(end, events)
            if not outcome.ok:
                return (
                    f"the agent did not continue from it: {outcome.kind} {outcome.detail}".rstrip()
                )
            told = rehearsal.last.messages if rehearsal.requests else ()
            return self.missing(_plain("\n".join(message.text for message in told)))

    def launch(self) -> Launch:
        return Launch(
            spec=TaskSpec(prompt=ASKED, agent=self.driver.name),
            continuation=Continuation(kind=Start.RESUME, session_id=self.session_id),
            prompt=ASKED,
            cwd=str(self.work),
            home=str(self.home),
            program=self.program,
            mark=f"prove-{uuid4().hex}",
        )

    def put_in_place(self) -> None:
        """Put the copy, and the conversations that it was forked from, at the paths where the agent
        looks for them."""
        if self.driver.archive is not None:
            self.process(
                self.driver.archive.restore(self.program, self.session_id, self.content), "restore"
            )
            return
        self.put(self.session_id, self.content, self.name)
        seen, parent = {self.session_id}, self.driver.parent(self.content)
        while parent and parent not in seen:
            seen.add(parent)
            found = self.driver.transcript(self.real_home, parent)
            content = found.read_bytes() if found is not None else b""
            if found is not None:
                self.put(parent, content, found.name)
            parent = self.driver.parent(content)

    def put(self, session_id: str, content: bytes, name: str) -> None:
        copy = self.scratch / f"copy-{session_id}" / (Path(name).name or "copy")
        copy.parent.mkdir()
        copy.write_bytes(content)
        place = self.driver.place(self.home, session_id, self.work, copy)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    def process(self, command: Command, name: str) -> tuple[Exit, bytes]:
        started = process.start(
            Command(argv=command.argv, stdin=command.stdin),
            directory=self.scratch / name,
            cwd=self.work,
            env={**command.env, **self.environ},
            mark=f"prove-{uuid4().hex}",
            deadline_s=PATIENCE_S,
            grace_s=2.0,
        )
        try:
            end = started.wait()
            assert end is not None
            return end, started.stdout.read_bytes() if started.stdout.exists() else b""
        finally:
            started.kill()

    def missing(self, told: str) -> str:
        """Return an error message that quotes the first text of the copy that did not reach the
        model. Empty if all texts reached the model in order. After a compaction, the first texts of
        the conversation may be missing. `told`: the text of the request."""
        spoken = []
        for message in self.driver.messages_of(self.content):
            if plain := _plain(message.text):
                spoken.append(plain)
        at, begun = 0, not any(mark in self.content for mark in COMPACTED)
        for words in spoken:
            found = told.find(words, at)
            if found >= 0:
                at, begun = found + len(words), True
            elif begun:
                return f"the model did not get {words[:80]!r}"
        if begun and spoken:
            return ""
        return "the model got nothing of the conversation"


def _plain(words: str) -> str:
    return " ".join(words.split())
