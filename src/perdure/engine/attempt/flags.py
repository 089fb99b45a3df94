"""Settings that are not part of a conversation, are set again on every launch, and are stored with
the attempt so that a change can be shown.

The CLIs forget model, permissions, tools, servers and directories between two launches. These
settings are in the run's immutable spec, so a resume never widens them. `perdure why` compares the
attempts.
"""

from __future__ import annotations

from perdure.engine.attempt.accounts import mark_of_credentials
from perdure.engine.attempt.engine import Engine
from perdure.model import Claim
from perdure.protocols import AgentDriver


def flags_of(engine: Engine, claim: Claim, driver: AgentDriver) -> dict[str, str]:
    """Return the settings that are not part of a conversation and are set again on every resume."""
    spec = claim.run.spec
    return {
        "agent": spec.agent,
        "model": spec.model,
        "permissions": str(spec.permissions),
        "agent_args": " ".join(spec.agent_args),
        "account": mark_of_credentials(engine, claim.run, driver),
    }
