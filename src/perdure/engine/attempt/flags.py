"""Collects the settings of an attempt that its conversation does not contain. They are passed to
the agent again at every launch, and stored with the attempt. `perdure why` compares the attempts to
show changes.

The CLIs do not keep model, permissions, tools, servers and directories between two launches. The
run's immutable spec has these settings, so a resume never widens them.
"""

from __future__ import annotations

from collections.abc import Mapping

from perdure.engine.attempt.accounts import credentials_digest
from perdure.model import Claim
from perdure.protocols import AgentDriver


def flags_of(environ: Mapping[str, str], claim: Claim, driver: AgentDriver) -> dict[str, str]:
    """Return the attempt's settings by name: agent, model, permissions, arguments and account."""
    spec = claim.run.spec
    return {
        "agent": spec.agent,
        "model": spec.model,
        "permissions": str(spec.permissions),
        "agent_args": " ".join(spec.agent_args),
        "account": credentials_digest(environ, claim.run, driver),
    }
