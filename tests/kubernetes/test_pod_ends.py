"""How a pod ends if its agent does not end, at a second SIGTERM, and before its grace period is
over."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.model import OutcomeKind
from tests.kubernetes.pods import cluster, until

STUBBORN = "#!/bin/sh\ntrap '' TERM\necho here > here.txt\nwhile :; do sleep 0.2; done\n"


@pytest.mark.parametrize("twice", [True, False])
def test_an_agent_that_does_not_end_keeps_no_pod(tmp_path: Path, twice: bool) -> None:
    """The agent ignores SIGTERM, and perdure would wait for it longer than the pod's grace period.
    A second SIGTERM, or the last seconds of the grace period, end the pod with `lost` and exit code
    75. The next pod continues on the same volume."""
    program = tmp_path / "stubborn"
    program.write_text(STUBBORN)
    program.chmod(0o755)
    (tmp_path / "c").mkdir()
    with cluster(
        tmp_path / "c",
        "claude",
        "say Nothing.",
        extra={"PERDURE_GRACE": "10m", "PERDURE_CLAUDE": str(program)},
    ) as one:
        pod = one.start(1, grace=600.0 if twice else 6.0)
        one.file("here.txt")
        pod.terminate()
        if twice:
            until(lambda: "asked to end" in pod.heard(), "perdure has heard the first one")
            pod.terminate()
        ended = pod.end()
        assert (ended.code, ended.result.outcome.kind) == (75, OutcomeKind.LOST)
        assert "did not end within" in ended.result.outcome.detail
        del one.extra["PERDURE_CLAUDE"]
        second = one.run(2)
        assert second.result.outcome.kind is OutcomeKind.SUCCEEDED, second.log[-2000:]
        assert [each.outcome for each in second.result.earlier] == [OutcomeKind.LOST]
