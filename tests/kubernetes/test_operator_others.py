"""The complete operator with a small API server: when claims are deleted or kept, and other
people's objects that have perdure's names and labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perdure.kubernetes.wanted import WantedRun, wanted
from perdure.model import OutcomeKind
from tests.kubernetes import making
from tests.kubernetes.apiserver import Fault, fails
from tests.kubernetes.staging import Stage, play

DELETE = {"workspace": {"mode": "Claim", "reclaim": "Delete"}, "task": "cart"}
KEEP = {"workspace": {"mode": "Claim", "reclaim": "Keep"}, "task": "cart"}


def ends(*, saved: bool) -> Callable[[int], Any]:
    return lambda attempt: making.told(attempt, OutcomeKind.SUCCEEDED, saved=saved)


def claims(stage: Stage) -> list[dict[str, Any]]:
    return list(stage.server.objects["persistentvolumeclaims"].values())


def test_a_claim_goes_with_its_taskrun():
    """A TaskRun whose work is saved is deleted long after its end, together with its claim."""

    async def story(stage: Stage) -> None:
        stage.begin()
        stage.make(**DELETE)
        await stage.done()
        await stage.rest()
        assert len(claims(stage)) == 1
        stage.delete("fix")
        await stage.gone("fix")
        assert not claims(stage)

    play(ends(saved=True), story)


def test_a_claim_with_work_that_is_not_saved_stays():
    """The deletion of a TaskRun with unsaved work waits. TaskRun and claim are deleted only after a
    person has given up the work."""

    async def story(stage: Stage) -> None:
        stage.begin()
        stage.make(**DELETE)
        await stage.done()
        stage.delete("fix")
        await stage.until(lambda: stage.condition("UnsavedWork"))
        assert len(claims(stage)) == 1
        stage.touch("fix", **{"perdure.dev/abandon": "true"})
        await stage.gone("fix")
        assert not claims(stage)

    play(ends(saved=False), story)


def test_of_several_taskruns_the_last_takes_the_claim():
    """If both TaskRuns of a task are set to delete their claim, it is deleted with the last of them.
    If one is set to keep it, the claim stays, even after that TaskRun is gone."""

    async def story(stage: Stage) -> None:
        stage.begin()
        for name in ("one", "two"):
            stage.make(name, **DELETE)
            await stage.done(name)
        (claim,) = claims(stage)
        stage.delete("one")
        await stage.gone("one")
        assert claims(stage) == [claim]
        stage.delete("two")
        await stage.gone("two")
        assert not claims(stage)
        for name, spec in (("three", DELETE), ("four", KEEP), ("five", DELETE)):
            stage.make(name, **spec)
            await stage.done(name)
        for name in ("four", "three", "five"):
            stage.delete(name)
            await stage.gone(name)
        assert len(claims(stage)) == 1

    play(ends(saved=True), story)


def test_a_keep_that_comes_after_the_last_attempt_keeps_the_claim():
    """Two TaskRuns of one task delete its claim. Then one of them says Keep, before it is deleted or
    while its deletion waits. The claim stays when the other is deleted."""

    async def story(stage: Stage) -> None:
        stage.begin()
        for task, waits in (("cart", False), ("till", True)):
            spec = {**DELETE, "task": task}
            names = [f"{task}-one", f"{task}-two"]
            for name in names:
                stage.make(name, **spec)
                await stage.done(name)
            if waits:
                stage.delete(names[0])
                await stage.until(lambda name=names[0]: stage.condition("UnsavedWork", name))
            stage.change(names[0], workspace={"mode": "Claim", "reclaim": "Keep"})
            if waits:
                await stage.gone(names[0])
            else:
                await stage.until(lambda name=names[0]: not stage.finalizers(name))
                stage.delete(names[0])
            stage.touch(names[1], **{"perdure.dev/abandon": "true"})
            stage.delete(names[1])
            await stage.gone(names[1])
            assert [claim for claim in claims(stage) if task in claim["metadata"]["name"]]

    play(ends(saved=False), story)


def test_a_taskrun_that_is_already_gone_does_not_hold_the_others():
    """When its namespace is deleted, the operator releases every TaskRun in it, also if one of them
    is already gone."""

    async def story(stage: Stage) -> None:
        operator = stage.begin()
        for name in ("fix", "mend"):
            stage.make(name, **DELETE | {"task": name})
            await stage.done(name)
        await stage.rest()
        assert list(operator.memory) == [("default", "fix"), ("default", "mend")]
        assert stage.finalizers("mend")
        del stage.server.objects["taskruns"]["default", "fix"]
        stage.server.leaving.add("default")
        await operator._let_go()
        assert not stage.finalizers("mend")

    play(ends(saved=False), story)


FORK = {"mode": "Session", "sessionId": "s", "from": "fix"}


def test_a_fork_outlives_the_taskrun_that_it_continues():
    """A TaskRun uses another TaskRun's claim. After that other TaskRun is deleted, the next attempt
    of the first one still uses the same claim."""

    async def story(stage: Stage) -> None:
        stage.begin()
        stage.make()
        await stage.done()
        stage.make("second", resume=FORK)
        await stage.done("second")
        stage.delete("fix")
        await stage.gone("fix")
        stage.change("second", prompt="And the docs.", contextVersion=2)
        await stage.until(lambda: stage.status("second").get("attempt") == 2)
        status = await stage.done("second")
        assert [each["outcome"] for each in status["attempts"]] == ["succeeded"] * 2
        assert len(claims(stage)) == 1

    play(ends(saved=True), story)


def test_two_taskruns_that_are_deleted_together_take_their_claim():
    """Two deleted TaskRuns wait for another program's finalizer. Neither keeps the claim for the
    other."""

    async def story(stage: Stage) -> None:
        stage.begin()
        for name in ("one", "two"):
            stage.make(name, **DELETE)
            await stage.done(name)
            await stage.rest()
        for name in ("one", "two"):
            run = stage.server.objects["taskruns"]["default", name]
            run["metadata"]["finalizers"].append("example.com/hold")
            stage.delete(name)
        for name in ("one", "two"):
            await stage.until(lambda name=name: stage.finalizers(name) == ["example.com/hold"])
        assert not claims(stage)

    play(ends(saved=True), story)


def test_a_deletion_that_waits_keeps_the_claim_for_unsaved_work():
    """Two TaskRuns with unsaved work are deleted together. The claim stays until both are given
    up."""

    async def story(stage: Stage) -> None:
        stage.begin()
        for name in ("one", "two"):
            stage.make(name, **DELETE)
            await stage.done(name)
        for name in ("one", "two"):
            stage.delete(name)
            await stage.until(lambda name=name: stage.condition("UnsavedWork", name))
        stage.touch("one", **{"perdure.dev/abandon": "true"})
        await stage.gone("one")
        assert len(claims(stage)) == 1
        stage.touch("two", **{"perdure.dev/abandon": "true"})
        await stage.gone("two")
        assert not claims(stage)

    play(ends(saved=False), story)


def test_the_last_fork_takes_the_claim_of_its_source():
    """The claim of a TaskRun that was deleted earlier is deleted together with the last TaskRun
    that uses it."""

    async def story(stage: Stage) -> None:
        stage.begin()
        stage.make(**DELETE)
        await stage.done()
        stage.make("second", resume=FORK, workspace=DELETE["workspace"])
        await stage.done("second")
        stage.delete("fix")
        await stage.gone("fix")
        assert len(claims(stage)) == 1
        stage.delete("second")
        await stage.gone("second")
        assert not claims(stage)

    play(ends(saved=True), story)


def test_whoever_comes_to_a_claim_at_the_last_moment_has_it():
    """Another TaskRun is created and uses the claim between the operator's check and the deletion.
    The claim has changed since the check, so it stays."""

    async def story(stage: Stage) -> None:
        stage.begin()
        stage.make("one", **DELETE)
        await stage.done("one")
        came: list[str] = []

        def comes(method: str, path: str) -> None:
            if method == "DELETE" and "persistentvolumeclaims" in path and not came:
                came.append(path)
                stage.make("two", **DELETE)
                (claim,) = claims(stage)
                claim["metadata"]["labels"]["perdure.dev/taskrun-uid"] = "two"
                stage.server.put("persistentvolumeclaims", claim)

        stage.server.before = comes
        stage.delete("one")
        await stage.gone("one")
        assert came and len(claims(stage)) == 1
        await stage.done("two")

    play(ends(saved=True), story)


def test_a_full_quota_does_not_hide_what_exists():
    """Each object is created, but the answer is lost. Then the quota is full. The API server
    reports that before it checks whether the object exists. The attempt begins nevertheless."""

    async def story(stage: Stage) -> None:
        lost: set[str] = set()
        counted = ("configmaps", "persistentvolumeclaims", "jobs")

        def full(method: str, path: str) -> None:
            if method == "POST" and path.rsplit("/", 1)[-1] in lost:
                raise Fault(403)

        def loses(method: str, path: str) -> None:
            kind = path.rsplit("/", 1)[-1]
            if method == "POST" and kind in counted and kind not in lost:
                lost.add(kind)
                raise Fault(500)

        stage.server.before, stage.server.after = full, loses
        stage.begin()
        stage.make()
        status = await stage.done()
        assert lost == set(counted)
        assert [each["outcome"] for each in status["attempts"]] == ["succeeded"]

    play(fails(0), story)


def a_map(run: WantedRun) -> dict[str, Any]:
    labels = {"perdure.dev/taskrun-uid": run.uid}
    return {
        "metadata": {"name": run.object_name, "labels": labels},
        "data": {"context-1": "Send me the keys."},
    }


def a_claim(run: WantedRun) -> dict[str, Any]:
    return {"metadata": {"name": run.claim}, "spec": {"accessModes": ["ReadWriteOncePod"]}}


def a_wide_claim(run: WantedRun) -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "perdure", "perdure.dev/taskrun-uid": run.uid}
    return {
        "metadata": {"name": run.claim, "labels": labels},
        "spec": {"accessModes": ["ReadWriteMany"]},
    }


def a_job(run: WantedRun) -> dict[str, Any]:
    labels = {"perdure.dev/taskrun-uid": run.uid, "perdure.dev/attempt": "1"}
    return {
        "metadata": {"name": run.job(1), "labels": labels},
        "spec": {"template": {"metadata": {"labels": {}}, "spec": {}}},
    }


TAKEN = [
    ("configmaps", a_map),
    ("persistentvolumeclaims", a_claim),
    ("persistentvolumeclaims", a_wide_claim),
    ("jobs", a_job),
]


@pytest.mark.parametrize(("kind", "make"), TAKEN, ids=[make.__name__ for _, make in TAKEN])
def test_what_somebody_else_made_under_our_name_is_refused(
    kind: str, make: Callable[[WantedRun], dict[str, Any]]
):
    """An object with the expected name that somebody else made is not used, written or deleted. A
    condition names it. When it is gone, the same attempt begins."""

    async def story(stage: Stage) -> None:
        stage.make()
        run = wanted(stage.server.objects["taskruns"]["default", "fix"])
        theirs = stage.server.add(kind, make(run))
        stage.begin()
        told = await stage.until(lambda: stage.condition("Waiting"))
        assert told["reason"] == "NameTaken" and theirs["metadata"]["name"] in told["message"]
        assert stage.server.objects[kind]["default", theirs["metadata"]["name"]] == theirs
        assert not [
            pod
            for pod in stage.server.objects["pods"].values()
            if pod["metadata"]["labels"].get("perdure.dev/attempt")
        ]
        stage.server.remove(kind, theirs)
        stage.touch()
        status = await stage.done()
        assert [each["outcome"] for each in status["attempts"]] == ["succeeded"]

    play(fails(0), story)


def test_a_configmap_that_was_replaced_is_refused():
    """Between two attempts somebody replaces perdure's ConfigMap. The instructions in the new one
    never reach an agent."""

    async def story(stage: Stage) -> None:
        stage.begin()
        stage.make()
        await stage.done()
        run = stage.server.objects["taskruns"]["default", "fix"]
        named = wanted(run).object_name
        stage.server.remove("configmaps", stage.server.objects["configmaps"]["default", named])
        theirs = stage.server.add("configmaps", a_map(wanted(run)))
        stage.touch(**{"perdure.dev/retry": "once"})
        told = await stage.until(lambda: stage.condition("Waiting"))
        assert told["reason"] == "NameTaken" and named in told["message"]
        assert (
            stage.server.objects["configmaps"]["default", named] == theirs
            and len(stage.server.jobs_made) == 1
        )

    play(fails(0), story)


def test_a_pod_of_somebody_else_decides_nothing():
    """A pod of another owner has the attempt's labels and reports success. A condition names that
    pod, and the operator leaves it alone. Only the attempt's own pod decides the outcome."""

    async def story(stage: Stage) -> None:
        stage.make(policy={"attempts": 1})
        run = wanted(stage.server.objects["taskruns"]["default", "fix"])
        labels = {"perdure.dev/taskrun-uid": run.uid, "perdure.dev/attempt": "1"}
        state = making.told(1, OutcomeKind.SUCCEEDED)
        theirs = stage.server.add("pods", {
            "metadata": {"name": "copy", "labels": labels}, "spec": {},
            "status": {"phase": "Succeeded", "containerStatuses": [{"name": "perdure", "state": state}]},
        })  # fmt: skip
        stage.begin()
        status = await stage.done()
        assert [each["outcome"] for each in status["attempts"]] == ["failed"]
        told = await stage.until(lambda: stage.condition("Foreign"))
        assert told["reason"] == "NotOwned" and "copy" in told["message"]
        assert stage.server.objects["pods"]["default", "copy"] == theirs
        stage.server.remove("pods", theirs)
        await stage.until(lambda: not stage.condition("Foreign"))

    play(fails(9), story)
