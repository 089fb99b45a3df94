"""The next step for a TaskRun, one rule at a time: each test fails if its rule is removed from the
code."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.kubernetes import status_moves
from perdure.kubernetes import step as steps
from perdure.kubernetes.admission import Room
from perdure.kubernetes.events import events_between
from perdure.kubernetes.outcomes import End, Obstacle
from perdure.kubernetes.result import AttemptResult, WorkSummary
from perdure.kubernetes.snapshot import job_seen, pod_seen
from perdure.kubernetes.status import (
    MOST_RECORDS,
    AttemptStatus,
    StatusCondition,
    TaskRunStatus,
    moment,
    tally,
)
from perdure.kubernetes.wanted import FINALIZER, WantedRun, wanted
from perdure.model import Outcome, OutcomeKind
from perdure.model.work import WorkVerdict
from tests.kubernetes import making

NOW = 1_795_000_000_000
SHARED = {"workspace": {"mode": "Shared", "claimName": "team"}}
DELETE = {"workspace": {"mode": "Claim", "reclaim": "Delete"}}
STORE = {"workspace": {"mode": "Checkpoints", "checkpoints": "s3://bucket"}}
ROOM = Room()


def body(
    *attempts: dict[str, Any],
    phase: str = "",
    spec: dict[str, Any] | None = None,
    meta: dict[str, Any] | None = None,
    **more: Any,
) -> Any:
    """Return a TaskRun with these attempts, as the operator reads it. It has the finalizer if its
    spec is DELETE or STORE."""
    found = making.taskrun(**(spec or {}))
    held = [FINALIZER] if spec in (DELETE, STORE) else []
    found["metadata"] |= {"finalizers": held, **(meta or {})}
    number = max([each["number"] for each in attempts], default=0)
    found["status"] = {
        "phase": phase or ("Running" if attempts else "Pending"), "observedGeneration": 1, "contextVersion": 1, "attempt": number,
        "attemptsAllowed": 3, "attempts": list(attempts), **more,
    }  # fmt: skip
    return found


def step(
    run: dict[str, Any],
    *,
    jobs: Any = (),
    pods: Any = (),
    now: int = NOW,
    room: Room | None = ROOM,
    leaving: bool | None = False,
    **more: Any,
) -> steps.Step:
    """Return the next step for a TaskRun in a namespace that is not being deleted, with room for an
    attempt."""
    seen = steps.TaskRunFacts(
        run=wanted(run),
        recorded=more.pop("recorded", frozenset({1})),
        jobs=[job for each in jobs if (job := job_seen(each))],
        pods=[pod for each in pods if (pod := pod_seen(each))],
        room=room,
        leaving=leaving,
        **more,
    )
    return steps.next_step(seen, now)


def over(number: int, outcome: OutcomeKind = OutcomeKind.FAILED, **more: Any) -> dict[str, Any]:
    return {"number": number, "outcome": str(outcome), "jobUID": making.job_uid(number), **more}


def status_of(found: steps.Step) -> TaskRunStatus:
    assert isinstance(found, steps.WriteStatus), found
    return found.status


def write(run: dict[str, Any], status: TaskRunStatus) -> None:
    """Merge a patch into the status, as the API server does."""
    merged = run["status"] | status_moves.patch(run["status"], status)
    run["status"] = {name: value for name, value in merged.items() if value is not None}


def condition(status: TaskRunStatus, kind: str) -> StatusCondition:
    found = status.condition(kind)
    assert found is not None, status.conditions
    return found


def test_a_job_beyond_the_status_is_looked_at_first() -> None:
    """If there is a Job for an attempt that the status does not have, the status is out of date. So
    everything is read again before the Job is stopped."""
    run = body(over(1), phase="Queued", runAfter="2020-01-01T00:00:00Z")
    ahead = making.job(run, 2)
    assert step(run, jobs=[ahead]) == steps.LookAgain()
    assert isinstance(step(run, jobs=[ahead], fresh=True), steps.StopPod)


def test_a_suspended_job_that_is_left_over_is_stopped() -> None:
    """A left-over Job whose pod has ended completes by itself, and is not deleted. But if a queue
    suspended the Job, it would start another pod when it is resumed, so it is deleted."""
    run = body(over(1, exitCode=1), phase="Queued", runAfter="2020-01-01T00:00:00Z")
    left = making.job(run, 1)
    assert not isinstance(step(run, jobs=[left]), steps.StopPod)
    left["spec"]["suspend"] = True
    assert isinstance(step(run, jobs=[left]), steps.StopPod)


def test_a_job_that_is_left_over_is_stopped() -> None:
    """A running Job of an abandoned attempt is stopped. A finished Job is kept, with its log."""
    run = body(over(1, OutcomeKind.CONFIG_ERROR), phase="Failed")
    found = step(run, jobs=[making.job(run, 1)])
    assert isinstance(found, steps.StopPod) and found.job.attempt == 1
    assert not isinstance(
        step(run, jobs=[making.job(run, 1, conditions={"Failed": "BackoffLimitExceeded"})]),
        steps.StopPod,
    )


@pytest.mark.parametrize("spec", [DELETE, STORE], ids=["a claim that goes", "no claim"])
def test_the_finalizer_comes_before_an_attempt(spec: dict[str, Any]) -> None:
    """No attempt begins, and no room is reserved, before the TaskRun has the finalizer that
    protects its work."""
    run = body(spec=spec, meta={"finalizers": []})
    assert step(run) == steps.HoldFinalizer() == step(run, room=None)
    run["metadata"]["finalizers"] = [FINALIZER]
    assert status_of(step(run)).attempt == 1


@pytest.mark.parametrize("spec", [{}, SHARED], ids=["a claim that is kept", "a shared volume"])
def test_there_is_no_finalizer_where_nothing_is_lost(spec: dict[str, Any]) -> None:
    """An attempt begins without a finalizer. One that an older version set is removed, also while
    an attempt is running."""
    run = body(spec=spec, meta={"finalizers": []})
    assert status_of(step(run)).attempt == 1
    for attempts in ([], [{"number": 1, "jobUID": making.job_uid(1)}]):
        from_before = body(*attempts, spec=spec, meta={"finalizers": [FINALIZER]})
        assert step(from_before) == steps.Release()


def test_room_is_asked_for_before_an_attempt() -> None:
    """Before an attempt the operator finds out whether there is room. If there is none, no attempt
    is opened: the TaskRun is queued, says what it waits for, and checks again later."""
    run = body(phase="Pending")
    assert step(run, room=None) == steps.CheckRoom()
    full = Room(obstacle=Obstacle("QuotaExceeded", "the quota small allows 2 pods"), ahead=4)
    queued = status_of(step(run, room=full))
    assert (queued.phase, queued.attempt, queued.open) == ("Queued", 0, None)
    assert queued.reason == "the quota small allows 2 pods"
    assert condition(queued, "Waiting").reason == "QuotaExceeded"
    write(run, queued)
    years = 10**11
    assert step(run, room=full, now=NOW + years) == steps.Wait(NOW + years + full.again_ms)
    begun = status_of(step(run))
    assert (begun.phase, begun.attempt, begun.condition("Waiting")) == ("Queued", 1, None)


def test_an_attempts_number_is_beyond_every_jobs() -> None:
    """If the status was lost, the numbers of attempts continue after the existing Jobs, so that
    none of them counts as the Job of the new attempt."""
    run = body(phase="Pending")
    assert (
        status_of(
            step(run, jobs=[making.job(run, 4, conditions={"Complete": ""})], fresh=True)
        ).attempt
        == 5
    )


def test_a_pod_that_is_still_there_is_waited_for() -> None:
    """The next attempt does not begin while the previous attempt's pod exists."""
    run = body(over(1), phase="Queued", runAfter="2020-01-01T00:00:00Z")
    leaving = making.pod(run, 1, metadata={"deletionTimestamp": "2030-01-01T00:00:00Z"})
    waits = condition(status_of(step(run, pods=[leaving])), "Waiting")
    assert waits.reason == "PodLeaving" and "attempt 1" in waits.message
    assert status_of(step(run, pods=[making.pod(run, 1, phase="Failed")])).attempt == 2


@pytest.mark.parametrize("spec", [DELETE, STORE], ids=["a claim that goes", "no claim"])
def test_saved_work_lets_a_taskrun_go(spec: dict[str, Any]) -> None:
    """Work that is saved elsewhere does not delay a deletion. Unsaved work does, unless the
    namespace is deleted too, which the operator checks first."""
    run = body(
        over(1), phase="Failed", spec=spec, meta={"deletionTimestamp": "2026-11-21T10:00:00Z"}
    )
    assert condition(status_of(step(run)), "UnsavedWork").reason == "NotSaved"
    assert step(run, leaving=None) == steps.CheckNamespace()
    assert step(run, leaving=True) == steps.Release()
    run["status"]["workspace"] = {"saved": True}
    assert isinstance(step(run), steps.Release)


def _unplaced(why: str) -> dict[str, Any]:
    """Return the status of a pod for which the scheduler has no node."""
    return {"conditions": [{"type": "PodScheduled", "status": "False", "message": why}]}


FULL = "0/2 nodes are available: 2 Insufficient cpu."


def _waiting(reason: str) -> Any:
    """Return a TaskRun whose attempt has waited for years. `reason`: the reason that it had when it
    was last checked."""
    run = body({"number": 1, "jobUID": making.job_uid(1)})
    run["status"]["conditions"] = [
        {
            "type": "Waiting",
            "status": "True",
            "reason": reason,
            "message": "",
            "lastTransitionTime": "2020-01-01T00:00:00Z",
        }
    ]
    return run


def test_a_lost_node_has_no_patience() -> None:
    """An obstacle that only a person can remove ends the attempt after some time. If a node is lost,
    or there is no room for the pod, the operator waits without a limit."""
    run = _waiting("X")
    job = making.job(run, 1)
    on_lost = making.pod(run, 1, metadata={"deletionTimestamp": "2020-01-01T00:00:00Z"})
    no_image = making.pod(
        run, 1, phase="Pending", state={"waiting": {"reason": "ErrImagePull", "message": "none"}}
    )
    no_room = making.pod(run, 1, phase="Pending", **_unplaced(FULL))
    assert (
        condition(status_of(step(run, jobs=[job], pods=[on_lost])), "Waiting").reason == "NodeLost"
    )
    queued = status_of(step(run, jobs=[job], pods=[no_room]))
    assert (queued.phase, condition(queued, "Waiting").reason) == ("Queued", "NoRoom")
    assert queued.open is not None
    assert status_of(step(run, jobs=[job], pods=[no_image])).phase == "Failed"


def test_a_wait_for_room_uses_up_no_patience() -> None:
    """An obstacle that appears after years without room gets the full waiting time of a new
    obstacle."""
    run = _waiting("NoRoom")
    job = making.job(run, 1)
    no_image = making.pod(
        run, 1, phase="Pending", state={"waiting": {"reason": "ErrImagePull", "message": "none"}}
    )
    found = status_of(step(run, jobs=[job], pods=[no_image]))
    assert (found.phase, found.open is not None) == ("Pending", True)
    write(run, found)
    later = NOW + steps.PATIENCE_MS
    assert step(run, jobs=[job], pods=[no_image], now=later) == steps.Wait(
        later + steps.MOST_LOOK_AGAIN_MS
    )
    assert status_of(step(run, jobs=[job], pods=[no_image], now=later + 1_000)).phase == "Failed"


def _status(*records: AttemptStatus, **more: Any) -> TaskRunStatus:
    return TaskRunStatus(
        **{
            "context_version": 1,
            "attempt": records[-1].number,
            "attempts_allowed": 3,
            "attempts": records,
            **more,
        }
    )


def _failed(number: int) -> AttemptStatus:
    return AttemptStatus(number=number, outcome=str(OutcomeKind.FAILED))


def _run(**spec: Any) -> WantedRun:
    return wanted(making.taskrun(**spec))


def test_the_verdict_on_the_work_is_in_the_status() -> None:
    """The status has the verdict on the work that the pod reported, limited in length and cleaned.
    If the newest attempt's pod reported none, the status has none, and does not keep the verdict of
    the previous attempt."""
    work = WorkSummary(
        verdict=WorkVerdict.INCOMPLETE, reason="\x1b[31mit\nsays" + "x" * 5000, files=2**40
    )
    outcome = Outcome(kind=OutcomeKind.SUCCEEDED)
    end = End(outcome=outcome, result=AttemptResult(attempt=1, outcome=outcome, work=work))
    told = status_moves.closed(
        status_moves.begun(TaskRunStatus(), 1, _run(), NOW), end, _run(), NOW, 0.5
    )
    shown = told.attempts[-1].work
    assert told.work == "incomplete" and shown is not None
    assert shown.reason.startswith("it says") and len(shown.reason) == 1000
    assert shown.files == 2**31 - 1
    lost = End(outcome=Outcome(kind=OutcomeKind.LOST), infrastructure=True)
    silent = status_moves.closed(status_moves.begun(told, 2, _run(), NOW), lost, _run(), NOW, 0.5)
    assert (silent.work, silent.attempts[-1].work) == ("", None)
    assert status_moves.patch({"work": "incomplete"}, silent)["work"] is None


def test_what_is_no_longer_told_is_still_counted() -> None:
    """Attempts whose records no longer fit into the status still count."""
    used = _status(
        *(_failed(number) for number in range(1, MOST_RECORDS + 1)), attempts_allowed=1000
    )
    more = status_moves.begun(used, MOST_RECORDS + 1, _run(), NOW)
    assert (len(more.attempts), more.used_before) == (MOST_RECORDS, 1)
    closed = status_moves.closed(
        more, End(outcome=Outcome(kind=OutcomeKind.FAILED)), _run(), NOW, 0.5
    )
    assert tally(closed, _run().spec).counted == MOST_RECORDS + 1


def test_a_retry_allows_one_attempt_more() -> None:
    """After a retry, a run without attempts left may make one more. A run with attempts left keeps
    them."""
    assert status_moves.allowed_more(_status(_failed(1), attempts_allowed=1)).attempts_allowed == 2
    assert status_moves.allowed_more(_status(_failed(1), attempts_allowed=3)).attempts_allowed == 3
    run = body(
        over(1),
        phase="Failed",
        attemptsAllowed=1,
        meta={"annotations": {"perdure.dev/retry": "once"}},
    )
    found = status_of(step(run))
    assert (found.phase, found.attempts_allowed, found.retried) == ("Queued", 2, "once")


def test_trouble_before_an_attempt_is_waited_for() -> None:
    """If an object that the Job needs cannot be created, this is reported and the attempt stays
    open."""
    run = body({"number": 1})
    assert isinstance(step(run), steps.LaunchPod)
    found = status_of(step(run, trouble=Obstacle("NameTaken", "there is one; delete it")))
    assert condition(found, "Waiting").reason == "NameTaken" and found.open is not None


def test_an_attempt_of_which_nothing_is_known_may_have_worked() -> None:
    """If nothing is known of an attempt, its Job may have started and ended while no operator was
    watching. A state that was saved before the Job says nothing about its work."""
    deleted = {"deletionTimestamp": "2026-11-21T10:00:00Z"}
    run = body(
        over(1, OutcomeKind.SUCCEEDED),
        {"number": 2},
        spec=DELETE,
        meta=deleted,
        workspace={"saved": True},
    )
    assert step(run) == steps.LookAgain()
    closed = status_of(step(run, fresh=True))
    assert closed.attempts[-1].outcome == OutcomeKind.CANCELLED and not closed.workspace.saved
    never_told = body(
        {"number": 1, "outcome": "cancelled"}, phase="Suspended", spec=STORE, meta=deleted
    )
    assert "attempt 1" in condition(status_of(step(never_told)), "UnsavedWork").message
    assert isinstance(step(body(spec=DELETE, meta=deleted)), steps.Release)


def test_a_jobs_uid_is_told_before_it_is_stopped() -> None:
    """The Job's uid is recorded before the Job is stopped. Otherwise nothing would identify the pod
    that is still ending."""
    run = body({"number": 1}, spec={"suspend": True})
    job = making.job(run, 1)
    found = status_of(step(run, jobs=[job]))
    assert found.attempts[0].job_uid == job["metadata"]["uid"] and found.open is not None
    assert isinstance(
        step(body({"number": 1, "jobUID": making.job_uid(1)}, spec={"suspend": True}), jobs=[job]),
        steps.StopPod,
    )


def _updated(*attempts: dict[str, Any], phase: str, **more: Any) -> TaskRunStatus:
    spec = {"contextVersion": 2, "policy": {"attempts": 2}}
    run = body(*attempts, phase=phase, spec=spec, meta={"generation": 2}, attemptsAllowed=2, **more)
    seen = steps.TaskRunFacts(run=wanted(run), recorded=frozenset({1, 2}))
    return status_of(steps.next_step(seen, NOW))


@pytest.mark.parametrize("phase", ["Succeeded", "Failed", "Queued", "Suspended"])
def test_an_update_has_all_its_attempts(phase: str) -> None:
    """New instructions get as many attempts as the policy allows, whatever the earlier ones had
    used up, and no more."""
    lost = {"number": 3, "outcome": "lost", "infrastructure": True}
    assert _updated(over(1), over(2), lost, phase=phase).attempts_allowed == 4
    assert _updated(lost, phase=phase).attempts_allowed == 2


def test_an_update_of_an_attempt_at_work_counts_from_its_end() -> None:
    """An attempt that is running when new instructions come belongs to the earlier ones. The new
    instructions have all their attempts after it."""
    during = _updated(over(1), {"number": 2}, phase="Running")
    run = _run(contextVersion=2, policy={"attempts": 2})
    for kind, allowed in ((OutcomeKind.FAILED, 4), (OutcomeKind.RATE_LIMITED, 3)):
        closed = status_moves.closed(during, End(outcome=Outcome(kind=kind)), run, NOW, 0.5)
        assert (closed.phase, closed.attempts_allowed) == ("Queued", allowed)
    unrecorded = body(
        over(1),
        {"number": 2},
        spec={"contextVersion": 2, "policy": {"attempts": 2}},
        attemptsAllowed=2,
    )
    closed = status_moves.closed(
        wanted(unrecorded).status, End(outcome=Outcome(kind=OutcomeKind.FAILED)), run, NOW, 0.5
    )
    assert (closed.phase, closed.attempts_allowed) == ("Queued", 4)


def test_an_update_does_not_exceed_a_spent_budget() -> None:
    """The running attempt spends the budget. The TaskRun fails and needs a person, even if new
    instructions came in the meantime."""
    during = _updated(over(1), {"number": 2}, phase="Running")
    run = _run(contextVersion=2, policy={"attempts": 2, "budgetUSD": "1"})
    end = End(outcome=Outcome(kind=OutcomeKind.BUDGET_SPENT))
    closed = status_moves.closed(during, end, run, NOW, 0.5)
    assert (closed.phase, closed.context_version) == ("Failed", 2)
    assert "the budget is spent" in condition(closed, "NeedsPerson").message


@pytest.mark.parametrize("kind", [OutcomeKind.NEEDS_INPUT, OutcomeKind.DENIED])
def test_a_taskrun_that_asks_says_what_to_do_on_a_cluster(kind: OutcomeKind) -> None:
    """The condition and its Event say what was denied, and name commands and fields that a cluster
    has."""
    during = _status(AttemptStatus(number=1, context_version=1), phase="Running")
    end = End(outcome=Outcome(kind=kind, detail="denied: Bash(make deploy)"))
    closed = status_moves.closed(during, end, _run(), NOW, 0.5)
    assert closed.phase == "Failed"
    message = condition(closed, "NeedsPerson").message
    assert "denied: Bash(make deploy)" in message
    assert "spec.permissions" in message and "--permissions" not in message
    assert "then kubectl perdure retry NAME" in message
    told = [each for each in events_between(during, closed) if each.reason == "NeedsPerson"]
    assert [each.message for each in told] == [message]


def test_attempts_that_did_not_count_are_no_credit_for_a_retry() -> None:
    """After three lost attempts and a failure, a retry gives one more attempt, not four."""
    lost = tuple(
        AttemptStatus(number=number, outcome="lost", infrastructure=True) for number in (1, 2, 3)
    )
    assert (
        status_moves.allowed_more(_status(*lost, _failed(4), attempts_allowed=1)).attempts_allowed
        == 2
    )
    at_work = status_moves.allowed_more(_status(*lost, AttemptStatus(number=4), attempts_allowed=1))
    assert at_work.attempts_allowed == 2


def test_a_claim_that_is_being_made_is_no_trouble() -> None:
    """A volume takes some seconds to be created, so a wait for it is reported only after a longer
    time. A lack of room is reported at once, and so is a request that no node can ever fulfill."""
    run = body({"number": 1, "jobUID": making.job_uid(1)})
    job = making.job(run, 1)

    def found(why: str, after: int) -> steps.Step:
        pod = making.pod(run, 1, phase="Pending", **_unplaced(why))
        return step(run, jobs=[job], pods=[pod], now=moment("2026-11-21T10:00:00Z") + after)

    unbound = "pod has unbound immediate PersistentVolumeClaims"
    early = status_of(found(unbound, 5_000))
    assert (early.phase, early.condition("Waiting")) == ("Queued", None)
    for why, after, phase, reason in (
        (unbound, 15_001, "Pending", "ClaimPending"),
        (FULL, 5_000, "Queued", "NoRoom"),
        ("2 node(s) didn't match Pod's node selector", 5_000, "Pending", "Unschedulable"),
    ):
        waits = status_of(found(why, after))
        assert (waits.phase, condition(waits, "Waiting").reason) == (phase, reason)


def test_a_claim_that_goes_with_its_taskrun_is_held_until_then() -> None:
    """At the end of a run the finalizer is removed. If the claim is to be deleted with the TaskRun,
    the finalizer stays, whether the work is saved or not."""
    ended = over(1, OutcomeKind.SUCCEEDED)
    stored = body(ended, phase="Succeeded", spec=STORE, workspace={"saved": True})
    assert step(stored) == steps.Release()
    goes = body(ended, phase="Succeeded", spec=DELETE, workspace={"saved": True})
    assert not isinstance(step(goes), steps.Release)
    goes["metadata"]["deletionTimestamp"] = "2026-11-21T10:00:00Z"
    assert step(goes) == steps.Release(wanted(goes).claim)


def test_a_pod_that_only_looks_like_ours_is_passed_over() -> None:
    """A pod has an attempt's labels and reports success, but belongs to another Job or to none.
    After a fresh read it is reported by name, and its result is ignored. When the pod is gone, the
    report is removed."""
    run = body({"number": 1, "jobUID": making.job_uid(1)})
    job, word = making.job(run, 1), making.told(1, OutcomeKind.SUCCEEDED)
    for owners in (
        [],
        [{"kind": "Job", "uid": making.job_uid(9), "controller": True}],
        [{"kind": "Job", "uid": making.job_uid(1)}],
    ):
        copy = making.pod(
            run,
            1,
            phase="Succeeded",
            state=word,
            metadata={"name": "copy", "ownerReferences": owners},
        )
        assert step(run, jobs=[job], pods=[copy]) == steps.LookAgain()
        found = status_of(step(run, jobs=[job], pods=[copy], fresh=True))
        assert (
            condition(found, "Foreign").reason == "NotOwned"
            and "copy" in condition(found, "Foreign").message
        )
        told = body({"number": 1, "jobUID": making.job_uid(1)})
        told["status"] |= status_moves.patch(told["status"], found)
        after = step(told, jobs=[job], pods=[copy])
        assert isinstance(after, steps.Wait) or (
            isinstance(after, steps.WriteStatus) and after.status.open is not None
        )
        assert status_of(step(told, jobs=[job])).condition("Foreign") is None
    assert (
        status_of(
            step(run, jobs=[job], pods=[making.pod(run, 1, phase="Succeeded", state=word)])
        ).phase
        == "Succeeded"
    )


def test_no_attempt_begins_beside_a_pod_that_looks_like_ours() -> None:
    """A pod that has an attempt's labels but belongs to none of its Jobs may write to the volume.
    While it exists, no attempt begins, and no Job is created for an open attempt."""
    told = {
        "type": "Foreign",
        "status": "True",
        "reason": "NotOwned",
        "lastTransitionTime": "2026-11-21T10:00:00Z",
    }
    for run in (body(over(1), phase="Queued"), body({"number": 1})):
        copy = making.pod(run, 1, metadata={"name": "copy", "ownerReferences": []})
        found = status_of(step(run, pods=[copy], fresh=True))
        told["message"] = condition(found, "Foreign").message
        run["status"]["conditions"] = [told]
        waits = condition(status_of(step(run, pods=[copy])), "Waiting")
        assert waits.reason == "NotOwned" and "copy" in waits.message
        assert isinstance(step(run), steps.WriteStatus)
