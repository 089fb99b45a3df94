"""The conformance suite for drivers. It starts the real CLI as the driver requests, against the
rehearsal (a scripted model server).

It is used for perdure's own drivers and for external ones. Subclass it in a test module and supply
its only fixture:

    class TestMyAgent(DriverConformance):
        @pytest.fixture
        def bench(self, tmp_path):
            def make(script, **options):
                rehearsal = Rehearsal(script).start()
                return Bench(driver=load("mine"), environ={...}, rehearsal=rehearsal, cwd=tmp_path)
            yield make

The environment must name scratch directories (HOME, TMPDIR) and direct the CLI to the rehearsal.
The fixture must stop everything that it starts. Features that the agent does not have (see
`Abilities`) are not tested. Needs pytest, and an agent that can use a scripted model server.
"""

from __future__ import annotations

from perdure.testing.drivers.bench import Bench
from perdure.testing.drivers.conversations import Failing, GoingOn, StartSuite, Transcripts

__all__ = ["Bench", "DriverConformance"]


class DriverConformance(StartSuite, GoingOn, Transcripts, Failing):
    """Tests all promises of `AgentDriver` that can be checked with the real CLI."""
