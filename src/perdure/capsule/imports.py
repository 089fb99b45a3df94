"""`perdure import`: stores a run from a capsule or a checkpoint store on this machine. The run
continues here when a person retries it.

Everything is verified (`verification`, `story`) before anything is used. Then the workdir is made,
and the conversations become perdure's own copies. Last, the run is stored in a final state, so it
is not dispatched before `perdure retry`. After a failed import, a workdir that it made is moved to
the trash, and its other files are deleted.

The agents' homes are not changed. When the next attempt needs a conversation, the ladder restores
its copy into the home, for the run's directory on this machine.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from perdure.agents.transcripts import Copies, snapshot
from perdure.capsule import story as stories
from perdure.capsule.container import CapsuleContents
from perdure.capsule.manifest import CapsuleConversation, CapsuleWorkdir, Manifest
from perdure.capsule.verification import VerifiedCapsule, left_behind, limit_spec, verified
from perdure.engine.attempt import Engine
from perdure.engine.service import NAME
from perdure.errors import (
    CapsuleError,
    Conflict,
    NotFound,
    PerdureError,
    UsageError,
    WorkspaceError,
)
from perdure.model import (
    Attempt,
    Backend,
    Checkpoint,
    CopyPart,
    Decision,
    Permissions,
    RunState,
    Saved,
    Session,
    SessionState,
    TaskRun,
    TaskSpec,
    Workspace,
)
from perdure.model.checkpoints import IMPORTED
from perdure.model.events import RunTakenIn
from perdure.model.requests import AgentRequest, RequestState
from perdure.protocols import AgentDriver, Arrival, RunStore
from perdure.rules.lifecycle import FINAL
from perdure.rules.requests import waiting
from perdure.workspace import PackedFacts, Workspaces
from perdure.workspace.identity import check_branch
from perdure.workspace.task_files import LARGEST
from perdure.workspace.task_files import Contents as GivenContents


class ImportRequest(Struct, frozen=True, kw_only=True):
    """The options of an import. `into` is the directory to create as the workdir. `repo` is a local
    repository that has the run's base commit; if it is given, the workdir becomes a worktree of it.
    """

    source: str
    into: Path | None = None
    repo: Path | None = None
    name: str = ""
    trusted: bool = False
    permissions: Permissions = Permissions.EDIT
    """The widest permissions that the imported run may have on this machine."""
    verify: str | None = None
    """The check command that the run has on this machine, instead of the one in the capsule."""
    spec: TaskSpec | None = None
    """The spec to use for the run on this machine, if the caller owns the run on all machines. Only
    prompt and scope are then taken from the capsule. If None, the spec in the capsule may come from
    a stranger, and `verification.limit_spec` decides which parts of it apply."""


class ImportResult(Struct, frozen=True, kw_only=True):
    """The result of an import. `dropped` lists the parts of the run's spec that this machine does
    not allow."""

    run: TaskRun
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def import_run(
    engine: Engine, manifest: Manifest, contents: CapsuleContents, wish: ImportRequest
) -> ImportResult:
    """Verify the run, store it on this machine, and return it. Raises CapsuleError, Conflict if the
    name or the directory is in use, NotFound, WorkspaceError."""
    name = _name(engine.store, wish.name or manifest.name)
    engine.driver(manifest.agent)
    engine.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with verified(manifest, contents, engine.state) as files:
        if finish := getattr(contents, "end", None):
            finish()
        story = stories.read(files.path(manifest.story).read_bytes(), manifest)
        if _is_free(engine.store, manifest.run):
            run_id = manifest.run
        else:
            run_id = uuid.uuid4().hex
        if wish.spec is not None:
            scope = replace(story.run, id=run_id).scope
        else:
            scope = f"run:{run_id}"
        attempts, sessions = stories.import_story(story, run_id, engine.store.now(), scope)
        with files.path(manifest.journal).open("rb") as lines:
            records = stories.records(lines, attempts)
        if wish.spec is not None:
            dropped: tuple[str, ...] = ()
            shared: tuple[str, ...] = ()
            spec = replace(wish.spec, prompt=story.run.spec.prompt, scope=story.run.spec.scope)
            place = plan_on_this_host(
                engine.workspaces, engine.state, replace(story.run, id=run_id, name=name, spec=spec)
            )
        else:
            spec, dropped = limit_spec(
                story.run.spec,
                name,
                wish.permissions,
                trusted=wish.trusted,
                verify=wish.verify,
            )
            shared = left_behind(story.run.spec)
            spec, place = _planned(engine.workspaces, manifest, spec, name, wish)
        fd = engine.workspaces.lock(place, f"perdure import {name}")
        brought: list[Path] = []
        try:
            number, saved, notes = make_workdir(
                engine.store, engine.workspaces, manifest, files, place, spec.agent, run_id
            )
            parts = all_copies_of(
                engine.driver, engine.copies, manifest, files, Path(place.path), brought
            )
            requests = stories.import_requests(
                story, run_id, engine.store.now(), int(engine.request_expiry_s * 1000)
            )
            run = _run(story.run, run_id, name, spec, place, manifest.run)
            checkpoint = checkpoint_of(engine.store, manifest, run, parts, number, saved)
            copied = []
            for session in sessions:
                copied.append(
                    _with_snapshot(engine.driver, engine.copies, session, manifest, parts)
                )
            arrival = Arrival(
                run=run,
                contexts=story.contexts,
                attempts=attempts,
                sessions=tuple(copied),
                records=records,
                checkpoint=checkpoint,
                event=RunTakenIn(
                    origin=manifest.run, number=manifest.number, source=wish.source, dropped=dropped
                ),
                requests=requests,
                waits=_waits(run, attempts, requests, engine.store.now()),
            )
            keep_given(engine.state, manifest, files)
            run = engine.store.take_in(arrival)
            return ImportResult(run=run, dropped=dropped, notes=(*notes, *shared))
        except BaseException:
            for copy in brought:
                copy.unlink(missing_ok=True)
            with suppress(PerdureError, OSError):
                engine.workspaces.discard_new(place, f"the import of {name} could not be made")
            raise
        finally:
            os.close(fd)


def _name(store: RunStore, name: str) -> str:
    if not NAME.fullmatch(name):
        raise CapsuleError(
            f"{name[:60]!r} is not a valid name of a run",
            "use up to 63 lower-case letters, digits and hyphens",
        )
    if any(row.name == name for row in store.find(limit=100_000)):
        raise Conflict(f"the name {name!r} is taken by another run", "choose another --name")
    return name


def _is_free(store: RunStore, run_id: str) -> bool:
    """Return whether this id is free on this machine. The id of a removed run is not free."""
    if store.contexts(run_id):
        return False
    try:
        return store.get(run_id).id != run_id
    except NotFound:
        return True


def _planned(
    workspaces: Workspaces, manifest: Manifest, spec: TaskSpec, name: str, wish: ImportRequest
) -> tuple[TaskSpec, Workspace]:
    """Return the run's spec, changed for this machine, and the planned workspace. Raises Conflict,
    NotFound, CapsuleError."""
    workdir = _workdir(manifest)
    if wish.repo is not None:
        if not workdir.base:
            raise CapsuleError(
                f"the run {manifest.name} has no repository",
                "leave --repo out, and use --into DIR",
            )
        branch = _own_branch(workdir.branch, name)
        spec = replace(
            spec, repo=str(wish.repo), base=workdir.base, branch=branch, backend=Backend.WORKTREE
        )
        try:
            place = workspaces.plan(spec, name, wish.repo)
        except NotFound as error:
            if workdir.base not in str(error):
                raise
            hint = f"Try: git -C {wish.repo} fetch --all, or leave --repo out"
            raise NotFound(str(error), hint) from None
        if os.path.lexists(place.path):
            raise Conflict(
                f"the branch {branch} already has a workdir: {place.path}",
                "import it with --into DIR instead",
            )
        return spec, place
    path = (wish.into or Path.cwd() / name).absolute()
    if os.path.lexists(path):
        raise Conflict(f"{path} is already there", "choose another --into DIR")
    if not path.parent.is_dir():
        raise NotFound(f"there is no directory {path.parent}", "create it first")
    spec = replace(spec, here=str(path), backend="")
    return spec, workspaces.plan_new(path)


def _own_branch(branch: str, name: str) -> str:
    """Return the branch with which the run's new worktree is made: the run's own `branch`, or
    `perdure/NAME` if perdure makes no branch of that name (such as `fix/#12`). In that case, the
    restore of the checkpoint switches to the run's own branch later."""
    try:
        return check_branch(branch)
    except UsageError:
        return f"perdure/{name}"


def plan_on_this_host(workspaces: Workspaces, state: Path, run: TaskRun) -> Workspace:
    """Return the planned workspace on this host for a run that began on another host. It is the
    workspace that a new run with this spec would get. If that cannot be used on this host, it is a
    new directory below `state`."""
    base = run.workspace.base if run.workspace is not None else ""
    try:
        return replace(workspaces.plan(run.spec, run.name, Path("/")), base=base)
    except (NotFound, WorkspaceError):
        # NotFound: only the other host has the repository. WorkspaceError: both hosts share it, and
        # the other host has the branch checked out.
        place = state / "workdirs" / run.id
        place.parent.mkdir(mode=0o700, exist_ok=True)
        return workspaces.plan_new(place)


def _workdir(manifest: Manifest) -> CapsuleWorkdir:
    if manifest.workdir is None:
        raise CapsuleError("the capsule has no workdir", "ask for the capsule again")
    return manifest.workdir


def make_workdir(
    store: RunStore,
    workspaces: Workspaces,
    manifest: Manifest,
    files: VerifiedCapsule,
    place: Workspace,
    agent: str,
    run_id: str,
) -> tuple[int, Saved, tuple[str, ...]]:
    """Restore the workdir of the checkpoint exactly. Return the checkpoint's new number on this
    machine, the saved workdir for the checkpoint's record, and notes for a person. Raises
    CapsuleError if a file differs after the restore."""
    workdir = _workdir(manifest)
    if place.backend is not Backend.HERE:
        workspaces.prepare(place, agent)
    form = "sha256" if len(workdir.commit) == 64 else "sha1"
    number = store.next_checkpoint(place.id, run_id)
    saved = Saved(commit="", ref="", git_dir="")
    for pack, tip in zip(workdir.packs, workdir.tips, strict=True):
        facts = PackedFacts(
            commit=tip, shallow=workdir.shallow, head=workdir.head, branch=workdir.branch, form=form
        )
        with files.path(pack).open("rb") as stream:
            saved = workspaces.checkpoints.unpack(place, stream, facts, number)
    restored = workspaces.checkpoints.restore(place, workdir.commit, ignored="small")
    if restored.differs:
        raise CapsuleError(
            f"{restored.differs[0]!r} could not be restored",
            "check whether another program uses the directory",
        )
    return number, saved, restored.notes


def copies_of(
    driver: Callable[[str], AgentDriver],
    copies: Copies,
    carried: CapsuleConversation,
    files: VerifiedCapsule,
    cwd: Path,
    brought: list[Path],
) -> list[CopyPart]:
    """Store the files of a conversation as perdure's own copies. Return a CopyPart for each. If an
    own copy with other content exists, it is moved aside and kept. The paths of new files are added
    to `brought`."""
    archive = driver(carried.agent).archive
    found = []
    for file in (carried.main, *carried.beside):
        part, source = CopyPart(carried.id, file.name, file.size, file.sha256), files.path(file)
        if archive is not None and file is carried.main:
            content = archive.relocated(source.read_bytes(), cwd)
            source.write_bytes(content)
            part = replace(part, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        if new := copies.import_part(carried.agent, part, source):
            brought.append(new)
        found.append(part)
    return found


def all_copies_of(
    driver: Callable[[str], AgentDriver],
    copies: Copies,
    manifest: Manifest,
    files: VerifiedCapsule,
    cwd: Path,
    brought: list[Path],
) -> tuple[CopyPart, ...]:
    """Store the files of all conversations, as `copies_of` does for one."""
    parts: list[CopyPart] = []
    for carried in manifest.conversations:
        parts += copies_of(driver, copies, carried, files, cwd, brought)
    return tuple(parts)


def keep_given(state: Path, manifest: Manifest, files: VerifiedCapsule) -> None:
    """Store the contents of task files under the digests that are computed here. The names in the
    capsule are not trusted."""
    kept = GivenContents(state)
    for file in manifest.given:
        if file.size <= LARGEST:
            kept.put(files.path(file).read_bytes())


def _with_snapshot(
    driver: Callable[[str], AgentDriver],
    copies: Copies,
    session: Session,
    manifest: Manifest,
    parts: tuple[CopyPart, ...],
) -> Session:
    """Return the session with a snapshot of the transcript's copy on this machine. If the session
    is retired or there is no copy, return the session unchanged."""
    path = None
    for part in parts:
        if part.session_id == session.id and part.name == "main":
            path = copies.find(session.key.agent, part)
            break
    if session.state is SessionState.RETIRED or path is None:
        return session
    seen = snapshot(driver(session.key.agent), path)
    # The story was written when the checkpoint was sent, so it may be newer than the checkpoint.
    # Only the checkpoint says what the copy contains.
    return replace(session, snapshot=seen, context_version=manifest.context_version)


def _run(
    was: TaskRun, run_id: str, name: str, spec: TaskSpec, place: Workspace, origin: str
) -> TaskRun:
    """Return the run as this machine stores it, in a final state. A state that was not final
    becomes `cancelled`. `perdure retry` then continues the run."""
    over = was.state in FINAL
    return replace(
        was,
        id=run_id,
        name=name,
        spec=spec,
        workspace=place,
        origin=origin,
        conditions=(),
        worker="",
        lease_until=0,
        run_after=0,
        cancel_requested=False,
        state=was.state if over else RunState.CANCELLED,
        reason=was.reason if over else "imported from another machine; perdure retry continues it",
    )


def _waits(
    run: TaskRun, attempts: Sequence[Attempt], requests: Sequence[AgentRequest], now: int
) -> Decision | None:
    """Return the decision that the imported run waits for a person's answer to its agent's open
    requests. The run is then not dispatched before the answer.

    Return None if the agent has no open request, or if the run was already over when it was
    exported.
    """
    asked = [each for each in requests if each.state is RequestState.OPEN]
    outcome = attempts[-1].outcome if attempts else None
    if not asked or outcome is None or run.state is not RunState.CANCELLED:
        return None
    return waiting(outcome, asked, run.name, now)


def checkpoint_of(
    store: RunStore,
    manifest: Manifest,
    run: TaskRun,
    parts: tuple[CopyPart, ...],
    number: int,
    saved: Saved,
) -> Checkpoint:
    """Return the imported checkpoint, which is the run's first one on this machine."""
    return Checkpoint(
        run=run.id,
        number=number,
        attempt=manifest.attempt,
        at=store.now(),
        why=IMPORTED,
        workdir=saved,
        session_id=parts[0].session_id if parts else "",
        conversation=parts,
        context_version=manifest.context_version,
        agent=run.spec.agent,
        agent_version=manifest.agent_version,
    )
