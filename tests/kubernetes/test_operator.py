"""The complete operator with a small API server in this process: what happens between two of its
requests."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from perdure.kubernetes.operator import Operator
from tests.kubernetes.apiserver import Fault, fails
from tests.kubernetes.staging import Stage, play, whole


def test_a_life_with_few_requests():
    """A TaskRun with a failed attempt and a successful one has one order, one claim and all
    versions of the instructions, and takes fewer than 25 requests an attempt."""

    async def story(stage: Stage) -> None:
        stage.begin()
        stage.make()
        await stage.done()
        requests = sum(stage.server.counted.values())
        whole(stage, ["failed", "succeeded"])
        assert requests / 2 < 25
        texts = next(iter(stage.server.objects["configmaps"].values()))["data"]
        assert texts["context-1"] == "Mend the test." and sorted(texts) == ["context-1", "order-2"]
        run = stage.server.objects["taskruns"]["default", "fix"]
        run["spec"] |= {"prompt": "And the docs.", "contextVersion": 2}
        run["metadata"]["generation"] += 1
        stage.server.put("taskruns", run)
        await stage.until(lambda: stage.status().get("attempt") == 3)
        await stage.done()
        texts = next(iter(stage.server.objects["configmaps"].values()))["data"]
        assert texts["context-1"] == "Mend the test." and texts["context-2"] == "And the docs."
        assert not run["metadata"].get("annotations")

    play(fails(1), story)


def test_instructions_of_a_secret_stay_in_it():
    """The operator never reads the Secret. The pod gets versions of the instructions first from a
    Secret, then from the TaskRun, then from a Secret again."""

    async def story(stage: Stage) -> None:
        stage.begin()
        stage.make(prompt="", promptFrom={"secretKeyRef": {"name": "words", "key": "one"}})
        await stage.done()
        for version, text in (
            (2, {"prompt": "And the docs."}),
            (3, {"promptFrom": {"secretKeyRef": {"name": "words", "key": "two"}}}),
        ):
            run = stage.server.objects["taskruns"]["default", "fix"]
            run["spec"] = {
                **run["spec"],
                "prompt": "",
                "promptFrom": None,
                "contextVersion": version,
                **text,
            }
            run["metadata"]["generation"] += 1
            stage.server.put("taskruns", run)
            await stage.until(lambda version=version: stage.status().get("attempt") == version)
            await stage.done()
        whole(stage, ["succeeded"] * 3)
        assert not [each for each in stage.server.counted if "secrets" in each]
        (kept,) = stage.server.objects["configmaps"].values()
        assert kept["data"].keys() == {"context-2", "order-3"} and json.loads(
            kept["data"]["order-3"]
        )["contexts"] == [1, 2, 3]
        jobs = [
            body
            for body in stage.server.objects["jobs"].values()
            if body["metadata"]["name"].endswith("-3")
        ]
        sources = jobs[0]["spec"]["template"]["spec"]["volumes"][0]["projected"]["sources"]
        assert [each["secret"]["items"][0] for each in sources[1:]] == [
            {"key": "one", "path": "contexts/1"}, {"key": "two", "path": "contexts/3"},
        ]  # fmt: skip

    play(fails(0), story)


def test_the_configmap_is_deleted_between_two_versions():
    """If the ConfigMap was deleted between two versions, the numbers show that two versions are
    missing. New instructions are never treated as known ones."""

    async def story(stage: Stage) -> None:
        stage.begin()
        stage.make()
        await stage.done()
        for version in (2, 5):
            if version == 5:
                (kept,) = stage.server.objects["configmaps"].values()
                stage.server.remove("configmaps", kept)
            run = stage.server.objects["taskruns"]["default", "fix"]
            run["spec"] |= {"prompt": f"Version {version}.", "contextVersion": version}
            run["metadata"]["generation"] += 1
            stage.server.put("taskruns", run)
            attempt = 2 if version == 2 else 3
            await stage.until(lambda attempt=attempt: stage.status().get("attempt") == attempt)
            await stage.done()
        (kept,) = stage.server.objects["configmaps"].values()
        order = json.loads(kept["data"]["order-3"])
        assert (order["contexts"], order["unlisted"], stage.status()["contexts"]) == ([5], 2, 3)

    play(fails(0), story)


def test_the_instructions_are_removed_from_the_configmap():
    """If somebody removed the instructions from the ConfigMap, the next attempt gets them from the
    TaskRun."""

    async def story(stage: Stage) -> None:
        def remove(method: str, path: str) -> None:
            if method == "POST" and path.endswith("/jobs"):
                (kept,) = stage.server.objects["configmaps"].values()
                del kept["data"]["context-1"]
                stage.server.after = lambda method, path: None

        stage.server.after = remove
        stage.begin()
        stage.make()
        await stage.done()
        whole(stage, ["failed", "succeeded"])
        texts = next(iter(stage.server.objects["configmaps"].values()))["data"]
        assert texts["context-1"] == "Mend the test." and sorted(texts) == ["context-1", "order-2"]

    play(fails(1), story)


def test_killed_between_any_two_writes():
    """The operator is killed before or after writes throughout a run with two attempts. The next
    operator continues, and nothing is done twice."""
    writes: list[str] = []

    async def life(stage: Stage) -> None:
        stage.server.after = lambda method, path: writes.append(f"{method} {path}")
        stage.begin()
        stage.make()
        await stage.done()

    play(fails(1), life)
    assert len(writes) > 10

    async def killed(stage: Stage) -> None:
        for at in range(0, 2 * len(writes), 3):
            name = f"fix-{at}"
            stage.server.jobs_made.clear()
            stage.server.began.clear()
            count, died = 0, asyncio.Event()

            def strike(method: str, path: str, at: int = at, died: asyncio.Event = died) -> None:
                nonlocal count
                count += 1
                if count == at // 2 + 1:
                    died.set()
                    raise ConnectionResetError

            quiet: Callable[[str, str], None] = lambda method, path: None  # noqa: E731
            stage.server.before, stage.server.after = (
                (strike, quiet) if at % 2 == 0 else (quiet, strike)
            )
            stage.begin()
            stage.make(name)
            ended = asyncio.create_task(stage.done(name))
            await asyncio.wait(
                [ended, asyncio.create_task(died.wait())], return_when=asyncio.FIRST_COMPLETED
            )
            ended.cancel()
            await stage.kill()
            stage.server.before = stage.server.after = quiet
            stage.begin()
            await stage.done(name)
            await stage.kill()
            whole(stage, ["failed", "succeeded"], name)

    play(fails(1), killed)


@pytest.mark.parametrize("code", [409, 429, 500, 503])
def test_each_write_is_answered_badly_once(code: int):
    """Each write is refused once, or its answer is lost once. The operator repeats it or derives it
    again, and nothing is done twice."""

    async def story(stage: Stage) -> None:
        for answered_first in (True, False):
            seen: set[str] = set()

            def fault(method: str, path: str, seen: set[str] = seen) -> None:
                if (key := f"{method} {path}") not in seen:
                    seen.add(key)
                    raise Fault(code)

            stage.server.jobs_made.clear()
            stage.server.began.clear()
            stage.server.before = fault if answered_first else lambda method, path: None
            stage.server.after = (
                fault if not answered_first and code != 409 else lambda method, path: None
            )
            stage.begin()
            stage.make(f"fix-{answered_first}")
            await stage.done(f"fix-{answered_first}")
            whole(stage, ["failed", "succeeded"], f"fix-{answered_first}")
            await stage.kill()

    play(fails(1), story)


def test_watches_that_end_and_expire_and_two_operators():
    """Watches end and expire while two operators handle five TaskRuns. Each attempt has one Job and
    one outcome."""

    async def story(stage: Stage) -> None:
        stage.begin(), stage.begin()
        names = [f"fix-{number}" for number in range(5)]
        for number, name in enumerate(names):
            stage.make(name)
            stage.server.end_watches(expired=number % 2 == 0)
        for name in names:
            await stage.done(name)
            assert [each["outcome"] for each in stage.status(name)["attempts"]] == [
                "failed",
                "succeeded",
            ]
        assert set(stage.server.jobs_made.values()) == {1} and len(stage.server.jobs_made) == 10

    play(fails(1), story)


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "another-goes-on-from-it"])
def test_a_claim_goes_only_where_nobody_else_works_on_it(shared: bool):
    """With `reclaim: Delete` and a confirmed loss, the claim is deleted together with its TaskRun.
    The claim stays if another TaskRun continues from it."""

    async def story(stage: Stage) -> None:
        stage.begin()
        stage.make(workspace={"mode": "Claim", "reclaim": "Delete"})
        await stage.done()
        if shared:
            stage.make(
                "second", suspend=True, resume={"mode": "Session", "sessionId": "s", "from": "fix"}
            )
            await stage.until(lambda: stage.status("second").get("phase") == "Suspended")
        run = stage.server.objects["taskruns"]["default", "fix"]
        run["metadata"]["annotations"] = {"perdure.dev/abandon": "true"}
        stage.server.remove("taskruns", run)
        await stage.until(lambda: ("default", "fix") not in stage.server.objects["taskruns"])
        assert bool(stage.server.objects["persistentvolumeclaims"]) == shared

    play(fails(0), story)


def test_health_tells_of_a_deaf_watch():
    """The operator is healthy while its watches receive events. After too long a silence it is
    unhealthy, with a reason, and a metric has the length of the silence."""

    async def story(stage: Stage) -> None:
        operator = stage.begin()
        await stage.until(lambda: operator.ready.is_set() and len(operator.activity.last_byte) == 3)
        assert operator.ill() == "" and operator.unready() == ""
        for path in operator.activity.last_byte:
            operator.activity.last_byte[path] -= 200
        assert "has been silent for 200 s" in operator.ill()
        text = operator.numbers.exposition("")[0].decode()
        age = re.search(r"^perdure_operator_watch_age_seconds (\d+)", text, re.MULTILINE)
        assert age is not None and int(age[1]) >= 200
        stage.make()
        await stage.done()
        assert operator.ill() == ""

    play(fails(0), story)


def test_a_running_attempt_outlives_a_list_of_two_namespaces():
    """All objects of two namespaces are listed while an attempt runs in the first. The lists of the
    second namespace do not have its pod, but the pod does not count as missing, and the attempt
    continues."""

    async def story(stage: Stage) -> None:
        operator = stage.begin("other")
        stage.make()
        await stage.until(lambda: stage.status().get("phase") == "Running")
        await operator.look_at_all()
        stage.touch()
        await looked_at(stage, operator)
        assert not stage.status()["attempts"][0].get("outcome"), stage.status()

    play(lambda attempt: None, story)


def test_an_attempt_that_begins_while_all_are_listed():
    """A TaskRun is created while all objects are being listed, after the lists of Jobs and pods.
    The watches report its Job and pod, which do not count as missing because of the older lists."""

    async def story(stage: Stage) -> None:
        operator = stage.begin()
        await stage.until(operator.ready.is_set)
        listed = operator.api.reduced

        async def late(kind: str, *more: Any, **named: Any) -> Any:
            if kind == "taskruns":
                stage.make()
                await stage.until(lambda: stage.status().get("phase") == "Running")
            return await listed(kind, *more, **named)

        operator.api.reduced = late  # type: ignore[method-assign]
        await operator.look_at_all()
        operator.api.reduced = listed  # type: ignore[method-assign]
        stage.touch()
        await looked_at(stage, operator)
        assert not stage.status()["attempts"][0].get("outcome"), stage.status()

    play(lambda attempt: None, story)


async def looked_at(stage: Stage, operator: Operator) -> None:
    """Wait until the operator has read the TaskRun's newest version and has nothing left to do."""
    newest = stage.server.objects["taskruns"]["default", "fix"]["metadata"]["resourceVersion"]

    def has_it() -> bool:
        found = operator.memory.of(("default", "fix"))
        return found is not None and int(found[0].version) >= int(newest)

    await stage.until(has_it)
    await stage.rest()
