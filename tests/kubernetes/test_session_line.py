"""The line of a pod's log that names the conversation: when it is written, and how often it is
looked for."""

from __future__ import annotations

import pytest

from perdure.kubernetes import status_moves
from perdure.kubernetes import step as steps
from perdure.kubernetes.snapshot import SessionAsked, pod_seen
from perdure.kubernetes.termination import session_in, session_line
from perdure.kubernetes.wanted import wanted
from tests.kubernetes import making

ID = "5f0c1c52-8d6e-4f5e-9a55-3b1f4d9c7e21"
NOW = 1_795_000_000_000


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (f"attempt 2: fresh\n{session_line(2, ID)}\n", ID),
        (f"{session_line(2, ID)}\n{session_line(2, 'forged')}\n", ID),
        (f"the agent says {session_line(2, ID)}\n", ""),
        (f"{session_line(1, ID)}\n{session_line(2, 'forged')}\n", ""),
        ("attempt 2: conversation --last\n", ""),
        ("attempt 2: conversation \x1b[31mred\n", ""),
        (f"attempt 2: conversation {'x' * 201}\n", ""),
        ("", ""),
    ],
)
def test_only_the_first_line_of_the_attempt_itself_counts(log: str, found: str) -> None:
    assert session_in(log, 2) == found


def test_a_log_without_a_conversation_is_read_seldomer_and_seldomer() -> None:
    """If the log names no conversation for an hour, it is read only a few times. When it names one,
    that is written to the status once, and the log is not read again."""
    attempt = {"number": 1, "jobUID": making.job_uid(1), "started": "2026-11-18T00:00:00Z"}
    status = {
        "phase": "Running",
        "attempt": 1,
        "contextVersion": 1,
        "observedGeneration": 1,
        "attempts": [attempt],
    }
    run = making.taskrun() | {"status": status}
    pod = pod_seen(
        making.pod(
            run, 1, phase="Running", state={"running": {"startedAt": "2026-11-18T00:00:01Z"}}
        )
    )
    assert pod is not None
    asked: dict[str, SessionAsked] = {}
    now, reads = NOW, 0

    def step() -> steps.Step:
        seen = steps.TaskRunFacts(
            run=wanted(run), pods=[pod], recorded=frozenset({1}), sessions=asked, fresh=True
        )
        return steps.next_step(seen, now)

    while now < NOW + 3_600_000:
        match step():
            case steps.ReadSession(pod=pod, now=at, wait=wait):
                reads += 1
                asked[pod.uid] = SessionAsked(again=at + wait, wait=wait)
            case steps.WriteStatus(status=told):
                run["status"] |= status_moves.patch(run["status"], told)
                assert told.session_id == "" and not told.attempts[0].outcome, told
            case steps.Wait(until=until):
                assert until is not None
                now = until
            case other:
                raise AssertionError(other)
    assert 8 < reads < 25
    asked[pod.uid] = SessionAsked(id=ID, again=now, wait=2000)
    found = step()
    assert isinstance(found, steps.WriteStatus)
    assert found.status.session_id == found.status.attempts[0].session_id == ID
