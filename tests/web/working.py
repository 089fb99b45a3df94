"""`python -m tests.web.working N [DIRECTORY]`: `perdure serve` is killed N times while agents work
on tasks from webhooks.

Real agents (Claude Code with the rehearsal) work by a rule. Each sender opens an issue with the
agent's label, then comments on it, and repeats each delivery until it is acknowledged. After a few
comments it opens the next issue. At the end every acknowledged delivery is in the inbox once and
was given to its run; each issue has one run; each text is in that run's instructions once and
reached the model once; no turn was made twice; and no process is left.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure import store as stores
from perdure.agents.rehearsal import Rehearsal
from perdure.model import OutcomeKind, RunState, TaskRun
from perdure.model.events import AttemptAdopted
from perdure.model.forge.deliveries import DeliveryState, Forge
from perdure.store.sql import SqlStore
from tests.forges import payloads
from tests.journeys.stage import Stage
from tests.web.serving import Serving

COMMENTS = 6
"""Number of comments on one issue before the next issue is opened."""
JOBS = 2
SCRIPT = "by history\n" + "\n---\n".join(
    f"run echo {n} >> log.txt\n---\nslow 0.7\nsay Turn {n} is done." for n in range(1, 4 * COMMENTS)
)
CONFIG = """
permissions = "full"
[webhooks.tea]
forge = "gitea"
secret_file = "{{home}}/secret"
[agents.dev]
agent = "claude"
login = "dev-bot"
authors = ["unknwon"]
labels = ["agent"]
clone = "{repo}"
"""
MARK = re.compile(r"note-\d+-\d+\.")


@dataclass
class Found:
    """The result of a campaign. `wrong` is empty if all promises held."""

    kills: int
    at_work: int = 0
    """Number of kills while an agent was running."""
    issues: int = 0
    acknowledged: int = 0
    sent: int = 0
    attempts: int = 0
    adopted: int = 0
    ended: int = 0
    """Number of attempts that were ended because their agent had not been launched yet."""
    wrong: list[str] = field(default_factory=list)


@dataclass
class _Sender:
    """A person on the forge who writes comments, each with its own text `note-ISSUE-NUMBER.`"""

    serving: Serving
    numbers: Any
    over: threading.Event
    chance: random.Random
    acknowledged: dict[str, int] = field(default_factory=dict)
    """The number of each acknowledged delivery, by its text."""
    sent: int = 0
    wrong: list[str] = field(default_factory=list)

    def go(self) -> None:
        while not self.over.is_set():
            issue = next(self.numbers)
            self._say(issue, 0, "issue_label", "issues_opened")
            for number in range(1, COMMENTS + 1):
                if self.over.wait(self.chance.random() * 3):
                    return
                self._say(issue, number, "issue_comment", "issue_comment_created")

    def _say(self, issue: int, number: int, event: str, name: str) -> None:
        mark = f"note-{issue}-{number}."

        def change(body: Any) -> None:
            if not number:
                payloads.gitea_labels(body)
            body["issue"] |= {"number": issue, "title": f"Issue {issue}", "body": mark}
            if number:
                body["issue"]["body"] = "as above"
                body["comment"]["body"] = f"{mark} Go on."

        body = payloads.derived("gitea", name, change)
        for tries in range(10**6):
            self.sent += 1
            headers = payloads.headers(
                Forge.GITEA, event, body, id=f"{mark}{tries if number % 3 == 2 else ''}"
            )
            try:
                status, said = self.serving.send("/webhooks/tea", body, headers)
            except (OSError, http.client.HTTPException, ValueError):
                # The server does not answer, because it was killed. It is started again even after
                # the last kill, so the delivery is sent again even if `over` is set.
                time.sleep(0.05)
                continue
            if status == 202:
                self.acknowledged[mark] = said["delivery"]
                return
            if status != 503:
                self.wrong.append(f"{mark} was answered with {status}: {said}")
                return


def campaign(one: Stage, serving: Serving, kills: int, senders: int, seed: int) -> Found:
    """Kill the server this many times and count the results. The server is stopped properly at the
    end, when all work is done."""
    chance, found, over = random.Random(seed), Found(kills), threading.Event()
    numbers = iter(range(1, 10**9))
    people = [
        _Sender(serving, numbers, over, random.Random(seed + number)) for number in range(senders)
    ]
    threads = [threading.Thread(target=each.go, daemon=True) for each in people]
    serving.start("--jobs", str(JOBS))
    for thread in threads:
        thread.start()
    for number in range(kills):
        time.sleep(chance.random() * 2)
        # Every second kill waits until an agent is running. The others happen at any moment.
        found.at_work += bool(
            serving.until(one.marked, "an agent is at work") if number % 2 == 0 else one.marked()
        )
        serving.kill()
        serving.start("--jobs", str(JOBS))
    over.set()
    for thread in threads:
        thread.join()
    with closing(stores.open(serving.state / "perdure.db", read_only=True)) as store:
        _until_done(serving, store)
    found.wrong += [wrong for each in people for wrong in each.wrong]
    if (code := serving.stop()) != 0:
        found.wrong.append(f"serve ended with {code}")
    acknowledged = {mark: number for each in people for mark, number in each.acknowledged.items()}
    found.sent, found.acknowledged = sum(each.sent for each in people), len(acknowledged)
    with closing(stores.open(serving.state / "perdure.db", read_only=True)) as store:
        _look(one, store, acknowledged, found)
    with contextlib.suppress(AssertionError):
        one.until(lambda: not one.marked(), "nothing lives on")
    found.wrong += [f"process {pid} lives on" for pid in one.marked()]
    return found


def _until_done(serving: Serving, store: SqlStore) -> None:
    """Wait until all work is done. The wait continues as long as there is progress, however slow
    the machine is."""
    while not _is_done(store):
        seen = store.newest_record()
        serving.until(
            lambda seen=seen: store.newest_record() > seen or _is_done(store), "something goes on"
        )


def _is_done(store: SqlStore) -> bool:
    waits = store.waiting_deliveries(1)
    return not waits and not store.find(
        [RunState.PENDING, RunState.QUEUED, RunState.RUNNING], limit=1
    )


def _look(one: Stage, store: SqlStore, acknowledged: dict[str, int], found: Found) -> None:
    kept = {each.number: each for each in store.inbox(limit=100_000)}
    wrong = found.wrong
    for mark, number in acknowledged.items():
        if number not in kept or not kept[number].id.startswith(mark):
            wrong.append(f"{mark} was acknowledged as {number} and is not there")
        elif kept[number].state is not DeliveryState.HANDLED:
            wrong.append(f"{mark} is {kept[number].state}: {kept[number].reason}")
    twice = [
        mark
        for mark, count in Counter(MARK.match(each.id)[0] for each in kept.values()).items()
        if count > 1
    ]  # type: ignore[index]
    wrong += [f"{mark} stands in the inbox twice" for mark in twice]
    runs = [store.get(row.id) for row in store.find(limit=100_000)]
    issues = Counter(str(run.spec.branch) for run in runs)
    found.issues = len(issues)
    wrong += [f"{branch} has {count} runs" for branch, count in issues.items() if count > 1]
    told = Counter(
        mark
        for run in runs
        for context in store.contexts(run.id)
        for mark in set(MARK.findall(context.text))
    )
    last = {request.session: request for request in one.rehearsal.requests}
    heard = Counter(
        mark
        for request in last.values()
        for prompt in request.prompts
        for mark in set(MARK.findall(prompt))
    )
    for what, counts in (("the instructions", told), ("what reached the model", heard)):
        wrong += [
            f"{mark} stands {counts[mark]} times in {what}"
            for mark in acknowledged
            if counts[mark] != 1
        ]
    for run in runs:
        _look_at(store, run, found)


def _look_at(store: SqlStore, run: TaskRun, found: Found) -> None:
    attempts = store.attempts(run.id)
    found.attempts += len(attempts)
    found.adopted += sum(
        isinstance(record.event, AttemptAdopted) for record in store.history(run.id, limit=100_000)
    )
    ended = [
        attempt
        for attempt in attempts
        if attempt.outcome is not None and attempt.outcome.kind is OutcomeKind.LOST
    ]
    found.ended += len(ended)
    if run.state is not RunState.SUCCEEDED:
        found.wrong.append(f"{run.name} has {run.state}: {run.reason}")
    if open_ones := [attempt.number for attempt in attempts if attempt.outcome is None]:
        found.wrong.append(f"{run.name}: attempts {open_ones} have no end")
    done = [attempt for attempt in attempts if attempt not in ended]
    if verdicts := [
        each.receipt.verdict.value
        for each in done[1:]
        if each.receipt is not None and each.receipt.verdict != "native"
    ]:
        found.wrong.append(f"{run.name}: receipts {verdicts}")
    assert run.workspace is not None
    turns = (Path(run.workspace.path) / "log.txt").read_text().split()
    if turns != [str(number) for number in range(1, len(done) + 1)]:
        found.wrong.append(f"{run.name}: {len(done)} attempts made the turns {' '.join(turns)}")


def play(
    directory: Path, kills: int, senders: int, seed: int, look: Callable[[Found], None] = print
) -> Found:
    """Run one campaign in a directory with a short path, because the path of a socket has at most
    108 bytes."""
    with Rehearsal(SCRIPT) as rehearsal:
        one = Stage(directory, "claude", rehearsal)
        serving = Serving(one.home, CONFIG.format(repo=one.repo), **one.environ)
        try:
            found = campaign(one, serving, kills, senders, seed)
            look(found)
            return found
        finally:
            serving.kill()
            one.close()


def main() -> int:
    count, seed = int(sys.argv[1]), int(time.time())
    directory = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp(prefix="pw"))
    print(f"seed {seed}, in {directory}", flush=True)
    found = play(directory, count, 3, seed)
    if not found.wrong:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if found.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
