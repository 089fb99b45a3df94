"""Reads a plan file. Fields that the file does not set get their values from the settings. Called
by the command and by the library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from perdure.config import Settings
from perdure.engine.plan_file import read
from perdure.model import TaskSpec
from perdure.rules.plan import Plan


def read_plan(file: Path, chosen: Settings) -> Plan:
    """Return the plan in the file. Fields that the file does not set have the values of the
    settings. Raises NotFound, UsageError, PlanError."""
    return read(file, plan_defaults(chosen))


def plan_defaults(chosen: Settings) -> Mapping[str, object]:
    """Return the values that a plan's fields have if the file does not set them, taken from the
    settings."""
    names = ("agent", "model", "permissions", "timeout", "attempts", "continuity")
    return {name: getattr(chosen, name) for name in names}


def seed_of(chosen: Settings, cwd: Path) -> TaskSpec:
    """Return the spec that contains the fields that all tasks share: the repository at `cwd`, and
    the limits of the settings."""
    return TaskSpec(
        prompt="",
        repo=str(cwd),
        base=chosen.base,
        backend=str(chosen.backend or ""),
        stall_s=chosen.stall,
        budget_usd=chosen.budget_usd,
        verify_rounds=chosen.verify_rounds,
        verify_timeout_s=chosen.verify_timeout,
    )


def name_of(ref: str, chosen: Settings) -> str:
    """Return the name of a plan. `ref`: that name, or the path of the plan's file."""
    if is_file(ref):
        return read_plan(Path(ref), chosen).name
    return ref


def is_file(ref: str) -> bool:
    """Return whether `ref` is the path of a plan's file. If not, it is the name of a plan."""
    return Path(ref).suffix in (".toml", ".yaml", ".yml")
