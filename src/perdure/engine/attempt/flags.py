"""What is no part of a conversation, is set again on every launch, and is kept with the attempt so
that a change can be shown.

The CLIs forget model, permissions, tools, servers and directories between two launches. They stand
in the run's immutable spec, so a resume never widens them. `perdure why` compares the attempts.
"""

from __future__ import annotations

from perdure.engine.attempt.accounts import mark_of_credentials
from perdure.engine.attempt.engine import Engine
from perdure.model import Claim
from perdure.protocols import AgentDriver


def flags_of(engine: Engine, claim: Claim, driver: AgentDriver) -> dict[str, str]:
    """What is no part of a conversation and is set again on every resume; kept so that a change can
    be shown."""
    spec = claim.run.spec
    return {
        "agent": spec.agent,
        "model": spec.model,
        "permissions": str(spec.permissions),
        "agent_args": " ".join(spec.agent_args),
        "account": mark_of_credentials(engine, claim.run, driver),
    }
