"""The conformance suite for drivers: the real CLI, started as the driver says, against the
rehearsal.

For perdure's own drivers and for those from outside. Make a class in a test module and give it the
one fixture:

    class TestMyAgent(DriverConformance):
        @pytest.fixture
        def bench(self, tmp_path):
            def make(script, **options):
                rehearsal = Rehearsal(script).start()
                return Bench(driver=load("mine"), environ={...}, rehearsal=rehearsal, cwd=tmp_path)
            yield make

The environment must name scratch directories (HOME, TMPDIR) and lead the CLI to the rehearsal; the
fixture stops what it made. An agent is not tested for what it cannot do (`Abilities`). Needs
pytest, and an agent that speaks to a scripted model server.
"""

from __future__ import annotations

from perdure.testing.drivers.bench import Bench
from perdure.testing.drivers.continuations import GoingOn
from perdure.testing.drivers.failures import Failing
from perdure.testing.drivers.starts import StartSuite
from perdure.testing.drivers.transcripts import Transcripts

__all__ = ["Bench", "DriverConformance"]


class DriverConformance(StartSuite, GoingOn, Transcripts, Failing):
    """All promises of `AgentDriver` that can be checked with the real CLI."""
