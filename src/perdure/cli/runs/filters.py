"""The slow way to read the runs for `perdure ls`, for databases that `store.fast_list` cannot read.
This module also has the filters on data that is not in a column of the database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.cli.compose import open_to_read, settings
from perdure.cli.runs.newest import repository_of
from perdure.model import RunState
from perdure.model.codec import builtins
from perdure.protocols import RunRow, RunStore
from perdure.workspace.identity import local_path

if TYPE_CHECKING:
    from perdure.cli.runs.ls import Row


def read_rows_from_store(
    states: Sequence[str], limit: int, agents: Sequence[str], since: int, columns: Sequence[str]
) -> list[Row]:
    """Return the rows that `store.fast_list.newest` would return for the same arguments. `columns`
    names the columns to include. Raises the errors of `open_to_read` and `settings`."""
    store = open_to_read(settings())
    read = limit if not agents and not since else 1_000_000
    chosen = []
    for row in store.last_changed(list(map(RunState, states)), read):
        if row.updated >= since and (not agents or {row.agent, row.role} & set(agents)):
            chosen.append(row)
    return [_row(store, row, columns) for row in chosen[: max(limit, 0)]]


def _row(store: RunStore, row: RunRow, columns: Sequence[str]) -> Row:
    from perdure.engine.report import row_of

    return {**{key: getattr(row, key) for key in columns}, **builtins(row_of(store, row))}


def wanted(row: Row, repo: str | None, labels: Sequence[str], plan: str | None) -> bool:
    """Return whether a row matches the repository, all of the labels, and the plan. A filter that
    is None or empty matches every row."""
    found = row["labels"]
    assert isinstance(found, dict)
    if plan is not None and found.get("plan") != plan:
        return False
    for label in labels:
        name, equals, value = label.partition("=")
        if name not in found or (equals and found[name] != value):
            return False
    return repo is None or _is_repository(str(row["repo"] or ""), repo)


def _is_repository(repo: str, asked: str) -> bool:
    """Return whether `asked` names the repository `repo`. `asked` may be the repository's whole
    path or URL, the last part of the path or URL, or a directory in the repository."""
    asked = local_path(asked)
    here = Path(asked).expanduser()
    top = repository_of(here.resolve()) if here.is_dir() else None
    last = repo.rstrip("/").rpartition("/")[2].removesuffix(".git")
    return bool(repo) and (repo == asked or last == asked or (top is not None and repo == str(top)))
