"""Opens a run's conversation for a person, who continues it in the agent's own program, and takes
it back.

While the run is open, no attempt starts in it or in another run with the same workdir or
conversation. When it is taken back, perdure checks what changed. Turns that were added to the
conversation are accepted. The person may also have started other conversations, because the agents'
programs can fork or clear a conversation. These other conversations are reported and recorded in
the lineage. The run continues in one of them only if a person asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from perdure.agents.transcripts import begins_with, locate, prompts_since, snapshot
from perdure.engine.attempt import Engine
from perdure.engine.attempt.baseline import fingerprints_of, load
from perdure.engine.attempt.engine import EngineStore, require_here
from perdure.engine.attempt.workdir import reopen
from perdure.engine.worker import rescue
from perdure.errors import Conflict, NotFound, UsageError, WorkspaceError
from perdure.host.homes.linked_homes import LinkedHomes
from perdure.host.redaction import Redactor
from perdure.model import (
    Condition,
    Continuation,
    Conversation,
    ItemKind,
    Launch,
    Relation,
    RunState,
    Session,
    SessionKey,
    SessionState,
    Start,
    TaskRun,
    Workspace,
    compare,
)
from perdure.model.events import RunTakenBack
from perdure.protocols import AgentDriver, RunStore, SessionStore

if TYPE_CHECKING:
    from perdure.model.session_reports import TakeBackReport

BY_HAND = "started manually while the run was open"
LOOKED_THROUGH = 200


class InteractiveCommand(Struct, frozen=True, kw_only=True):
    """The command with which a person continues a conversation: its arguments, its directory, and
    the variables to add to the person's environment."""

    run: TaskRun
    session_id: str
    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str]


class TakeBackResult(Struct, frozen=True, kw_only=True):
    """The result of taking back an open run."""

    run: TaskRun
    session_id: str
    """Id of the conversation with which the run continues."""
    turns: int
    """Number of prompts that the person added to the conversation."""
    kept: bool
    """Whether the conversation still has everything that it had when perdure last read it."""
    rewound: bool = False
    """Whether the person rewound the conversation, which removes its newest part."""
    others: tuple[Conversation, ...] = ()
    """Other conversations that the person started while the run was open."""
    forks: tuple[str, ...] = ()
    """Ids of those conversations in `others` that are forks of the run's conversation."""

    def report(self) -> TakeBackReport:
        """Return the object that `perdure take-back --json` prints."""
        from perdure.model.session_reports import OtherConversation, TakeBackReport

        others = []
        for each in self.others:
            others.append(
                OtherConversation(
                    id=each.id, fork=each.id in self.forks, turns=each.turns, path=each.path
                )
            )
        return TakeBackReport(
            schema_version=1,
            run=self.run.name,
            state=self.run.state,
            session_id=self.session_id,
            turns=self.turns,
            history_kept=self.kept,
            rewound=self.rewound,
            others=others,
        )


def open_for_person(engine: Engine, ref: str) -> InteractiveCommand:
    """Mark the run as open, and return the command with which a person continues it. If the run is
    already open, only return the command. Raises NotFound, Conflict, WorkspaceError."""
    run = engine.store.get(ref)
    require_here(engine.host, run, "it cannot be opened")
    if run.state is RunState.RUNNING:
        run = rescue(engine, run) or run
    driver = engine.driver(run.spec.agent)
    session, home, place = _parts(engine.store, engine.homes, engine.environ, driver, run)
    reopen(engine.store, engine.workspaces, engine.state, run, f"perdure open {run.name}")
    if not Path(place.path).is_dir():
        raise WorkspaceError(
            f"The workdir {place.path} is not there", f"perdure retry {run.name} recreates it"
        )
    if locate(driver, home, session.id, _directory(engine.state, run)) is None:
        raise NotFound(
            f"The transcript of the conversation {session.id} is not on disk",
            f"perdure retry {run.name} restores perdure's copy",
        )
    launch = Launch(
        spec=run.spec,
        continuation=Continuation(kind=Start.RESUME, session_id=session.id),
        prompt="",
        cwd=place.path,
        home=str(home),
        program=driver.locate(engine.environ),
    )
    command = driver.interactive_command(launch)
    env = {}
    for name, value in command.env.items():
        if not _is_default_home(engine.environ, driver, name, home):
            env[name] = value
    if not _is_open(run):
        message = (
            "a person has it open in the agent's own program; perdure take-back "
            f"{run.name} returns it"
        )
        run = engine.store.open_run(
            run.id, Condition(type="open", message=message, at=engine.store.now()), session
        )
    engine.writers(driver, home, session.id)
    return InteractiveCommand(
        run=run,
        session_id=session.id,
        argv=command.argv,
        cwd=place.path,
        env={**env, **run.spec.env},
    )


def take_back(engine: Engine, ref: str, adopt: str = "") -> TakeBackResult:
    """Check what a person did with an open conversation, mark the run as no longer open, and return
    the result. `adopt`: id of a conversation that was started while the run was open; the run
    continues with it.

    Raises Conflict while the agent's program has the conversation open, while the run is running,
    or if the run is not open and `adopt` is empty. Raises NotFound, UsageError.
    """
    run = engine.store.get(ref)
    require_here(engine.host, run, "it cannot be taken back")
    driver = engine.driver(run.spec.agent)
    session, home, place = _parts(engine.store, engine.homes, engine.environ, driver, run)
    opened = next((condition for condition in run.conditions if condition.type == "open"), None)
    if opened is None and not adopt:
        raise Conflict(
            f"{run.name} is not open in the agent's own program", f"perdure open {run.name}"
        )
    if others := engine.writers(driver, home, session.id):
        raise Conflict(
            f"{run.name} is still open in process {', '.join(map(str, others))}",
            "quit the agent's program first",
        )
    own, turns, kept = _as_it_is_now(engine.store, engine.state, driver, run, session, home)
    rewound = False
    if not adopt:
        path = locate(driver, home, session.id, _directory(engine.state, run))
        copy = engine.copies.of(driver.name, session.id)
        rewound = _rewound(engine.redactor, driver, home, path, copy)
    if opened is not None:
        beside = _beside(engine.store, driver, run, session, place, home, opened.at)
    else:
        beside = []
    made = [_made_beside(engine, driver, run, own, each, home) for each in beside]
    live = own
    if adopt:
        live = _adopted(engine.store, driver, run, own, adopt, made, home)
        own = replace(own, state=SessionState.RETIRED, cause=f"a person continued in {live.id}")
        made = [each for each in made if each.id != live.id]
    for each in {live.id} - {own.id if adopt else ""}:
        if rewound and not kept:
            # After a rewind, Codex continues in another file, and OpenCode deletes rows. perdure's
            # copy is then no longer the beginning of the transcript, so it is replaced.
            path = locate(driver, home, each, _directory(engine.state, run))
            engine.copies.take(driver, each, path or Path(), replace=True)
        engine.copies.take_with_ancestors(driver, home, each, _directory(engine.state, run))
    told = RunTakenBack(
        session_id=live.id,
        turns=turns,
        others=tuple(each.id for each in beside),
        rewound=rewound,
    )
    sessions = (*made, own, live) if adopt else (*made, own)
    run = engine.store.take_back(run.id, sessions, told)
    forks = tuple(each.id for each in made if each.parent == session.id)
    return TakeBackResult(
        run=run,
        session_id=live.id,
        turns=turns,
        kept=kept,
        rewound=rewound,
        others=tuple(beside),
        forks=forks,
    )


def _parts(
    store: SessionStore,
    homes: LinkedHomes,
    environ: Mapping[str, str],
    driver: AgentDriver,
    run: TaskRun,
) -> tuple[Session, Path, Workspace]:
    assert run.workspace is not None
    session = store.session(SessionKey(run.spec.agent, run.scope))
    if session is None:
        raise NotFound(f"{run.name} has no conversation yet", f"perdure show {run.name}")
    homes.check(driver.name)
    return session, driver.home({**environ, **run.spec.env}), run.workspace


def _directory(state: Path, run: TaskRun) -> Path:
    return state / "runs" / run.id / "open"


def _is_open(run: TaskRun) -> bool:
    return any(condition.type == "open" for condition in run.conditions)


def _is_default_home(
    environ: Mapping[str, str], driver: AgentDriver, name: str, home: Path
) -> bool:
    """Return whether the agent finds its home without this environment variable. If it does, the
    command for the person need not set the variable."""
    own = {}
    for key, value in environ.items():
        if key != name:
            own[key] = value
    return driver.home({**own, name: "/nowhere"}) != driver.home(own) and driver.home(own) == home


def _as_it_is_now(
    store: RunStore, state: Path, driver: AgentDriver, run: TaskRun, session: Session, home: Path
) -> tuple[Session, int, bool]:
    """Read the transcript. Return three values: the session updated from the transcript, the number
    of prompts that a person added, and whether the transcript still has everything that it had when
    perdure last read it."""
    path = locate(driver, home, session.id, _directory(state, run))
    now = snapshot(driver, path)
    if path is None or now is None:
        return replace(session, updated=store.now()), 0, False
    kept = session.snapshot is None or begins_with(driver, path, session.snapshot)
    came = prompts_since(driver, path, session.snapshot if kept else None)
    marks = tuple(mark for mark in came if mark not in session.prompts)
    taken = replace(
        session,
        state=SessionState.CONFIRMED,
        updated=store.now(),
        total=driver.total(path.read_bytes()),
        snapshot=now,
        prompts=(*session.prompts, *marks),
    )
    return taken, len(marks), kept


def _rewound(
    redactor: Redactor, driver: AgentDriver, home: Path, path: Path | None, copy: Path
) -> bool:
    """Return whether a person rewound the conversation. It was rewound if one of the known prompts
    and all known prompts after it are no longer loaded, while items before them still are. `path`:
    the transcript. `copy`: perdure's own copy of it.

    A power failure can shorten a transcript in the same way, but no new prompt follows then. So if
    the items are missing from the file itself, a new prompt must have been added for this to count
    as a rewind.
    """
    if path is None or not copy.is_file():
        return False
    base = load(redactor, driver, home, copy.read_bytes())
    now = load(redactor, driver, home, path.read_bytes())
    if base is None or now is None:
        return False
    seen = compare(base.items, now)
    if seen.relation not in (Relation.SHORTENED, Relation.GAPS):
        return False
    first = base.items.index(seen.missing[0])
    later = [each for each in base.items[first:] if each.kind is ItemKind.PROMPT]
    gone = [each for each in seen.missing if each.kind is ItemKind.PROMPT]
    if first == 0 or later != gone or gone[:1] != [seen.missing[0]]:
        return False
    return seen.off_branch == len(seen.missing) or bool(seen.prompts_added)


def _beside(
    store: SessionStore,
    driver: AgentDriver,
    run: TaskRun,
    session: Session,
    place: Workspace,
    home: Path,
    since: int,
) -> list[Conversation]:
    """Return the conversations that were written since the run was opened and that have no session
    record. Each took place in the run's workdir, or was forked from the run's conversation."""
    found = []
    for each in driver.conversations(home, LOOKED_THROUGH):
        if (
            each.id != session.id
            and each.updated >= since
            and (
                each.parent == session.id
                or (each.cwd and Path(each.cwd).resolve() == Path(place.path).resolve())
            )
            and not store.sessions(each.id)
        ):
            found.append(each)
    return found


def _made_beside(
    engine: Engine, driver: AgentDriver, run: TaskRun, own: Session, each: Conversation, home: Path
) -> Session:
    """Return a session record for a conversation that a person started while the run was open. The
    record is retired, and is added to the run's lineage."""
    path = locate(driver, home, each.id, _directory(engine.state, run))
    content = path.read_bytes() if path is not None else b""
    history = fingerprints_of(driver, content)
    begins = each.parent == own.id or _shares_a_beginning(driver, run, engine, own, history, home)
    now = engine.store.now()
    return Session(
        key=own.key,
        id=each.id,
        state=SessionState.RETIRED,
        cause=BY_HAND,
        created=now,
        updated=now,
        cwd=each.cwd,
        home=str(home),
        parent=own.id if begins else "",
        context_version=own.context_version if begins else 0,
        total=driver.total(content),
        snapshot=snapshot(driver, path),
        prompts=tuple(history),
    )


def _shares_a_beginning(
    driver: AgentDriver,
    run: TaskRun,
    engine: Engine,
    own: Session,
    history: Sequence[str],
    home: Path,
) -> bool:
    """Return whether `history` begins with the same prompt as the run's conversation. Only the
    first prompt is compared, because a fork may branch off after any turn."""
    path = locate(driver, home, own.id, _directory(engine.state, run))
    if path is not None:
        first = prompts_since(driver, path, None)[:1]
    else:
        first = []
    return bool(first) and list(history[:1]) == first


def _adopted(
    store: EngineStore,
    driver: AgentDriver,
    run: TaskRun,
    own: Session,
    adopt: str,
    made: Sequence[Session],
    home: Path,
) -> Session:
    """Return the session of the conversation `adopt`, as confirmed. The run continues with it.
    Raises NotFound, UsageError."""
    if adopt == own.id:
        raise UsageError(
            f"{adopt} is the conversation of {run.name} already: --adopt is not needed",
            f"perdure take-back {run.name}",
        )
    there = []
    for each in (*made, *store.lineage(own.key)):
        if each.id == adopt and each.cause == BY_HAND:
            there.append(each)
    if not there:
        raise NotFound(
            f"{adopt} was not started while {run.name} was open",
            f"perdure sessions; perdure resume {adopt} makes a run of it",
        )
    return replace(there[0], state=SessionState.CONFIRMED, cause="", updated=store.now())
