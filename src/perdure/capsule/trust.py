"""Decides which parts of an imported spec apply on this machine.

A capsule may come from a stranger. Without `--trust`, nothing in it may extend the rights of an
agent or of perdure itself on this machine:

- Permissions are lowered to this machine's own setting, and never raised.
- Arguments and variables for the agent are dropped.
- The check command is dropped, because perdure would run it in a shell. The importer may give its
  own.
- Time limits are raised or lowered to the permitted range.
- The name of a forge rule is dropped, because commits would get the git identity of that rule.
- Labels that name a forge's issue are dropped, because the run would count as a run about this
  issue.
- The policy `fresh-ok` is replaced by `disclose`, so the loss of a conversation is always reported.

These changes are reported, and recorded in the journal. A key or scope that the run shares with
other runs elsewhere is always dropped, which is reported too (`left_behind`).
"""

from __future__ import annotations

from msgspec.structs import replace

from perdure.model import ContinuityPolicy, Permissions, TaskSpec
from perdure.model.forge.postings import OWN_LABELS
from perdure.rules.run_titles import LONGEST, link_to
from perdure.rules.text import one_line

_WIDTH = list(Permissions)
MOST_S = 86_400.0


def limit_spec(
    spec: TaskSpec,
    name: str,
    ours: Permissions,
    *,
    trusted: bool,
    verify: str | None = None,
) -> tuple[TaskSpec, tuple[str, ...]]:
    """Return the spec with only those parts that apply on this machine. Also return a description
    of each part that was dropped or reduced. `verify`: the importer's own check command, which
    replaces the one in the capsule; None: the importer gave none."""
    spec = replace(
        spec,
        name=name,
        key="",
        scope="",
        forks="",
        fork_at=0,
        repo="",
        base="",
        branch="",
        here="",
        service="",
        task="",
        backend="",
        title=one_line(spec.title, LONGEST),
        link=link_to(spec.link),
    )
    if verify is not None:
        spec = replace(spec, verify="")
    if trusted:
        return replace(spec, verify=verify or spec.verify), ()
    dropped: list[str] = []
    if _WIDTH.index(spec.permissions) > _WIDTH.index(ours):
        dropped.append(f"permissions `{spec.permissions}`: this machine's setting is `{ours}`")
        spec = replace(spec, permissions=ours)
    for what, value in (
        ("arguments for the agent", spec.agent_args),
        ("variables for the agent", spec.env),
        ("variables passed on from the user's environment", spec.pass_env),
        ("the check command", spec.verify),
        ("the rule of a forge", spec.rule),
        ("labels of a forge's issue", tuple(sorted(OWN_LABELS & spec.labels.keys()))),
    ):
        if value:
            dropped.append(f"{what}: {_display_value(value)}")
    policy = spec.continuity
    if policy is ContinuityPolicy.FRESH_OK:
        policy = ContinuityPolicy.DISCLOSE
        dropped.append(f"continuity `{spec.continuity}`: set to `{policy}`")
    labels = {name: each for name, each in spec.labels.items() if name not in OWN_LABELS}
    timeout_s, stall_s = _limit(spec.timeout_s), _limit(spec.stall_s)
    for what, asked, limit in (
        ("timeout", spec.timeout_s, timeout_s),
        ("stall limit", spec.stall_s, stall_s),
    ):
        if asked != limit:
            dropped.append(f"{what} of {asked:.10g} seconds: set to {limit:.10g}")
    spec = replace(
        spec,
        agent_args=(),
        env={},
        pass_env=(),
        verify=verify or "",
        rule="",
        labels=labels,
        continuity=policy,
        timeout_s=timeout_s,
        stall_s=stall_s,
    )
    return spec, tuple(dropped)


def left_behind(spec: TaskSpec) -> tuple[str, ...]:
    """Return a note for each thing that the run shared with other runs on its former machine: its
    key and its scope. An import never restores them."""
    notes = []
    if spec.key:
        notes.append(
            f"the key `{spec.key}` was not imported: a run with this key here is a new one"
        )
    if spec.scope:
        notes.append(
            f"the scope `{spec.scope}` was not imported: the run here shares no conversation"
        )
    return tuple(notes)


def _limit(seconds: float) -> float:
    """Return a time limit in seconds, raised or lowered to the permitted range. 0 means no limit
    and is not changed."""
    if seconds:
        return min(max(seconds, 1.0), MOST_S)
    return 0.0


def _display_value(value: object) -> str:
    """Return the value of a dropped field as text. For environment variables, only the names are
    included."""
    if isinstance(value, dict | tuple):
        return ", ".join(value)
    return str(value)[:200]
