"""What is no part of a conversation, is set again on every launch, and is kept with the attempt so that a change can be shown.

The CLIs forget model, permissions, tools, servers and directories between two launches. They stand in the run's immutable spec, so
a resume never widens them. `perdure why` compares the attempts.
"""

from __future__ import annotations

import hashlib
import re

from perdure.attempt.engine import Engine, is_passed
from perdure.model import Claim
from perdure.protocols import AgentDriver

ACCOUNT = re.compile(r"KEY|TOKEN|BASE_URL|PROFILE|PROJECT|ORG", re.IGNORECASE)


def flags_of(engine: Engine, claim: Claim, driver: AgentDriver) -> dict[str, str]:
    """What is no part of a conversation and is set again on every resume; kept so that a change can be shown."""
    spec = claim.run.spec
    return {
        "agent": spec.agent,
        "model": spec.model,
        "permissions": str(spec.permissions),
        "agent_args": " ".join(spec.agent_args),
        "account": _account(engine, claim, driver),
    }


def _account(engine: Engine, claim: Claim, driver: AgentDriver) -> str:
    """A mark of the credentials and the service in the environment, to see a change by; it tells nothing of them."""
    given = engine.agent_environment(driver, claim.run)
    own = sorted((name, value) for name, value in given.items() if is_passed(name, driver.variables) and ACCOUNT.search(name))
    return hashlib.sha256(repr(own).encode()).hexdigest()[:8] if own else ""
