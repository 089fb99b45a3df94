"""Makes the project map for the prompt of an attempt, if the settings ask for one: gathers the
facts, has the package `project_map` draw the map, and records it in the journal. Called by
`preparation`.

The package `project_map` is imported only when a map is drawn, because most attempts need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.engine.attempt.engine import Engine
from perdure.errors import PerdureError
from perdure.model import Claim, Context, Continuation, MapWhen, Start, TaskRun, Workspace
from perdure.model.events import MapGiven, MapMissed
from perdure.protocols import AgentDriver, RunStore
from perdure.workspace import Workspaces

if TYPE_CHECKING:
    from perdure.engine.project_map import Drawn


def is_due(when: MapWhen, asked: Continuation, *, sessions: bool) -> bool:
    """Return whether the prompt gets a project map. With `always`, every prompt gets a map; with
    `first`, every prompt that begins a conversation. With `fallback`, a map is given if the new
    conversation replaces a lost one, or if the agent cannot resume conversations. `sessions`:
    whether the agent can resume a conversation."""
    if when is MapWhen.OFF or asked.kind in (Start.WAIT, Start.REFUSE):
        return False
    anew = asked.kind in (Start.FRESH, Start.REBUILD)
    lost = anew and (asked.kind is Start.REBUILD or bool(asked.lost_session_id))
    return when is MapWhen.ALWAYS or lost or (anew and (when is MapWhen.FIRST or not sessions))


def map_for(
    engine: Engine,
    claim: Claim,
    driver: AgentDriver,
    asked: Continuation,
    contexts: Sequence[Context],
) -> str:
    """Return the project map as text. Return an empty string if the prompt needs no map or the map
    cannot be made. A failure is recorded in the journal and does not fail the attempt."""
    run = claim.run
    assert run.workspace is not None
    # For an agent whose transcripts cannot be read, nothing shows that it remembers an earlier map.
    # So it is treated as an agent that cannot resume a conversation.
    sessions = driver.abilities.sessions and driver.abilities.transcripts
    if not is_due(MapWhen(run.spec.map or engine.map_when), asked, sessions=sessions):
        return ""
    try:
        drawn = drawn_of(
            engine.workspaces,
            engine.state,
            engine.map_tokens,
            run.workspace,
            "\n".join(context.text for context in contexts),
            made_before(engine.store, engine.workspaces, run),
        )
    except (PerdureError, OSError) as error:
        engine.store.record(claim, [MapMissed(reason=engine.redactor.text(str(error)))])
        return ""
    if drawn.text:
        engine.store.record(
            claim,
            [
                MapGiven(
                    tokens=drawn.tokens, files=len(drawn.shown), full=drawn.full, left=drawn.left
                )
            ],
        )
    return engine.redactor.text(drawn.text)


def drawn_of(
    workspaces: Workspaces,
    state: Path,
    map_tokens: int,
    workspace: Workspace,
    prompt: str,
    made: dict[str, str],
    tokens: int = 0,
) -> Drawn:
    """Return the map of a workdir in its present state. `prompt`: text by which the files are
    ranked. `made`: for each file, the task that added it. `tokens`: maximum size of the map; 0: the
    configured size. Raises PerdureError and OSError."""
    from perdure.engine.project_map import ANSWER, ParserProcess, draw, rank, read

    names = workspaces.sources(workspace)
    from perdure.host.process.child_process import ChildProcess

    with ChildProcess(ANSWER) as child:
        project = read(
            Path(workspace.path), names, ParserProcess(child), state / "maps" / workspace.id
        )
    return draw(rank(project, prompt, made), tokens or map_tokens)


def made_before(store: RunStore, workspaces: Workspaces, run: TaskRun) -> dict[str, str]:
    """Return, for each file name, the name of the task whose run added the file; if the run has no
    task name, the name of the run. The result is found by comparing checkpoints of the runs in the
    same workdir or plan. For a file that several runs added, the earliest run counts."""
    assert run.workspace is not None
    made: dict[str, str] = {}
    saved: dict[str, tuple[Workspace, list[tuple[int, str, str]]]] = {}
    for other in store.placed():
        if other.workspace.id != run.workspace.id and _plan(other.scope) != (
            _plan(run.scope) or None
        ):
            continue
        if other.removed is None and (checkpoints := store.checkpoints(other.id)):
            task = store.get(other.id).spec.labels.get("task", other.name)
            found = saved.setdefault(other.workspace.id, (other.workspace, []))[1]
            found += [(each.number, each.workdir.commit, task) for each in checkpoints]
    for workspace, found in saved.values():
        # Runs may alternate in a workdir. From each uninterrupted series of one run's checkpoints,
        # only the last is compared.
        ends = [list(turn)[-1] for _, turn in groupby(sorted(found), key=lambda each: each[2])]
        try:
            added = workspaces.checkpoints.new_files(workspace, [commit for _, commit, _ in ends])
        except (PerdureError, OSError):
            # The workdir or its checkpoints were deleted, so the origin of its files is unknown.
            continue
        for names, (_, _, task) in zip(added, ends, strict=True):
            made |= {name: task for name in names if name not in made}
    return made


def _plan(scope: str) -> str:
    """Return the plan's part of a scope (`plan:ID` of `plan:ID/STRAND`); empty for a scope without
    a plan."""
    if scope.startswith("plan:"):
        return scope.partition("/")[0]
    return ""
