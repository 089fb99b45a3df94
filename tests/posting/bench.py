"""A run that a delivery began, a small forge with its issue, and the run's repository over HTTP.
All servers are on 127.0.0.1, and there is no agent."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from perdure import wiring
from perdure.config.files import load
from perdure.engine import service
from perdure.engine.attempt import Engine
from perdure.forge.clients.connections import connect
from perdure.forge.clients.tokens import ForgeToken
from perdure.forge.replies import PostingUpdater
from perdure.model import OutcomeKind, Receipt, RunState, TaskRun, TaskSpec, Usage, Verdict
from perdure.model.events import AnyEvent, TurnEnded
from perdure.model.forge.deliveries import Forge
from perdure.model.forge.postings import Origin, Posting, labels_of
from perdure.model.forge.rules import rules
from perdure.protocols import ForgeApi
from perdure.testing.stores.inbox import arrived
from perdure.testing.stores.samples import begun, claimed, ending
from tests.journeys.stage import native
from tests.servers.forge import Repository, Request, SmallForge, gitea, github, gitlab
from tests.servers.forge.state import Item
from tests.servers.githttp import GitHttp, serving
from tests.workspace.yard import Yard, make_yard

SHOP = "shop/prices"
DIALECTS = {Forge.GITEA: gitea, Forge.GITHUB: github, Forge.GITLAB: gitlab}
TOKEN = "t0ken-of-the-bot"
PASSWORD = "correct-horse-battery"


@dataclass
class Bench:
    """A run, its forge and its engine. `engine` is opened as for any verb; `small` is the forge's
    API, and `http` its git server."""

    yard: Yard
    engine: Engine
    small: SmallForge
    http: GitHttp
    bare: Path
    api: ForgeApi

    @property
    def shop(self) -> Repository:
        return self.small.state.repositories[SHOP]

    @property
    def issue(self) -> Item:
        return self.shop.items[1]

    @property
    def comments(self) -> list[str]:
        return [each.text for each in self.issue.said]

    @property
    def pulls(self) -> list[Item]:
        return [each for each in self.shop.items.values() if each.head]

    def git(self, *args: str, cwd: Path | None = None) -> str:
        who = {
            f"GIT_{role}_{part}": "a@b"
            for role in ("AUTHOR", "COMMITTER")
            for part in ("NAME", "EMAIL")
        }
        return self.yard.git(*args, cwd=cwd or self.bare, env=who)

    def answering(self, **rule: Any) -> PostingUpdater:
        return answering_of(self.engine, self.http.url("{repository}"), lambda: self.api, **rule)

    @contextmanager
    def another_client(self) -> Iterator[None]:
        """Use a new client inside the block, as after a restart. The earlier client may still wait,
        because the forge asked it to."""
        before, self.api = self.api, client(self.small.url)
        yield
        self.api.close()
        self.api = before

    def dispatched(self, number: int = 1) -> TaskRun:
        """Make a run for the issue, as a dispatch makes it."""
        (accepted,) = self.engine.store.accept([arrived()])
        labels = labels_of(
            accepted.number, Origin(source="tea", rule="dev", repository=SHOP, number=number)
        )
        spec = TaskSpec(
            prompt="do it",
            repo=self.http.url(SHOP),
            branch=f"perdure/dev-{number}",
            scope=f"tea:dev:{SHOP}#{number}",
            labels=labels,
        )
        return self._told(
            service.submit(self.engine, spec, Path("/"), deliveries=[accepted.number])
        )

    def _told(self, run: TaskRun) -> TaskRun:
        """Wait until the run's last change is at least a millisecond ago, because a run that was
        read in the millisecond of its change is read once more. Return the run."""
        while self.engine.store.now() <= run.updated:
            time.sleep(0.0005)
        return run

    def begin(self, run: TaskRun) -> TaskRun:
        """Begin an attempt with its workdir, and return the run."""
        assert run.workspace is not None
        self.engine.workspaces.prepare(run.workspace, "claude")
        self.engine.store.begin(claimed(self.engine.store, run), begun(run))
        return self._told(self.engine.store.get(run.id))

    def end(
        self,
        run: TaskRun,
        kind: OutcomeKind = OutcomeKind.SUCCEEDED,
        state: RunState = RunState.SUCCEEDED,
        says: str = "Done.",
    ) -> TaskRun:
        """End the running attempt, and return the run."""
        (claim,) = [each for each in self.engine.store.claims() if each.run.id == run.id]
        events: tuple[AnyEvent, ...] = (TurnEnded(ok=True, text=says),)
        done = replace(
            ending(kind, state, reason="" if kind is OutcomeKind.SUCCEEDED else "it broke"),
            usage=Usage(12_300, 1200, 0, 0, 0.12), receipt=Receipt(verdict=Verdict.FRESH), events=events,
        )  # fmt: skip
        return self._told(self.engine.store.finish(claim, done))

    def worked(
        self,
        run: TaskRun,
        name: str = "work.txt",
        text: str = "x\n",
        *,
        commit: bool = True,
        says: str = "Done.",
    ) -> TaskRun:
        """Play a whole attempt, which leaves a file. Return the run."""
        run = self.begin(run)
        assert run.workspace is not None
        place = Path(run.workspace.path)
        (place / name).write_text(text)
        if commit:
            self.git("add", "-A", cwd=place)
            self.git("commit", "-qm", f"Write {name}", cwd=place)
        return self.end(run, says=says)

    def again(self, run: TaskRun, text: str = "more") -> TaskRun:
        return self._told(self.engine.store.update(run.id, text))

    def posting(self, run: TaskRun) -> Posting:
        found = self.engine.store.posting(run.id)
        assert found is not None
        return found

    def branch(self, number: int = 1) -> str:
        return self.shop.branches().get(f"perdure/dev-{number}", "")


def environment(top: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"], "HOME": str(top / "home"), "TMPDIR": str(top / "tmp"), "PERDURE_DISK_BALLAST": "0",
        "PERDURE_CLAUDE": str(native("claude")),
    }  # fmt: skip


def open_engine(top: Path) -> Engine:
    """Open an engine as any verb does, with the password for fetching."""
    environ = environment(top)
    engine = wiring.open_engine(load(environ, top), environ, secrets=[TOKEN, PASSWORD])
    engine.workspaces.add_credentials(lambda url: ("x-access-token", PASSWORD))
    return engine


@contextmanager
def make_bench(
    top: Path, check: Callable[[Request], None] | None = None, kind: Forge = Forge.GITEA
) -> Iterator[Bench]:
    """Make a bench. `check` is called for each request to the forge, after the request was carried
    out and before it is answered."""
    yard = make_yard(top)
    with ExitStack() as stack:
        http = stack.enter_context(serving(top / "forge", PASSWORD))
        bare = http.make(SHOP, yard.repo)
        small = stack.enter_context(SmallForge(DIALECTS[kind], check=check))
        small.state.person("dev-bot", TOKEN)
        small.state.repository(SHOP, git=bare, ada="admin", dev_bot="write")
        small.state.issue(SHOP, "ada", "Rounding <b>", "The total is off. @ben")
        api = client(small.url, kind)
        stack.callback(api.close)
        engine = open_engine(top)
        stack.callback(engine.store.close)
        yield Bench(yard, engine, small, http, bare, api)


def client(url: str, kind: Forge = Forge.GITEA) -> ForgeApi:
    return connect(kind, url, ForgeToken("the variable THE_TOKEN", held=TOKEN))


def answering_of(
    engine: Engine, clone: str, api: Callable[[], ForgeApi], **rule: Any
) -> PostingUpdater:
    table = {"agent": "claude", "authors": ["ada"], "clone": clone} | rule
    return PostingUpdater(
        engine=engine, rules={each.name: each for each in rules({"dev": table})}, forge=lambda source, name: api(),
        credentials=lambda source, name: lambda url: ("x-access-token", PASSWORD),
        page=lambda name: f"https://perdure.example.com/runs/{name}",
    )  # fmt: skip
