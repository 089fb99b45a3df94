"""The settings as a task's default values. Each entry point combines them with the given fields in
`rules.specification.with_defaults`."""

from __future__ import annotations

from perdure.config import Settings
from perdure.model import TaskSpec


def task_defaults(chosen: Settings) -> TaskSpec:
    """Return a spec without a prompt and a place, with the settings in all other fields."""
    return TaskSpec(
        prompt="",
        agent=chosen.agent,
        base=chosen.base,
        backend=str(chosen.backend or ""),
        model=chosen.model,
        permissions=chosen.permissions,
        timeout_s=chosen.timeout,
        stall_s=chosen.stall,
        attempts=chosen.attempts,
        budget_usd=chosen.budget_usd,
        continuity=chosen.continuity,
        verify=chosen.verify,
        verify_rounds=chosen.verify_rounds,
        verify_timeout_s=chosen.verify_timeout,
    )
