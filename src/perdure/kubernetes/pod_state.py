"""Brings a run's state into a pod whose database does not have the run. Either the state is
downloaded from the checkpoint store, or the run is added as a new one. Called by `pod` before the
attempt starts.

Every pod that uses the checkpoint store first begins a new term of the run. A term is a number in
the store that names the one pod that may publish the run. The pod of the previous term can no
longer publish; it notices this and stops. A term begins even if the store has no checkpoint of the
run yet, because another pod may be about to publish the first one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from perdure.agents.transcripts import Copies, snapshot
from perdure.capsule.imports import ImportRequest, copies_of
from perdure.capsule.move import find, move_from
from perdure.capsule.objects import CheckpointStore, Term, open_store
from perdure.capsule.publication import machine
from perdure.capsule.verification import verified
from perdure.engine import service
from perdure.engine.attempt import Engine
from perdure.engine.conversations import ForkRequest, fork
from perdure.engine.conversations.search import ConversationIndex
from perdure.errors import Conflict, NotFound, UsageError
from perdure.kubernetes.order import Order
from perdure.model import (
    NOTHING_GIVEN,
    RESET,
    Given,
    Session,
    SessionKey,
    SessionState,
    TaskRun,
    TaskSpec,
    Workspace,
)
from perdure.protocols import AgentDriver, RunStore
from perdure.rules.text import write_stderr


def known(store: RunStore, run_id: str) -> TaskRun | None:
    """Return the run with exactly this id; None if there is none. (`RunStore.get` also accepts
    names and the beginning of an id.)"""
    try:
        run = store.get(run_id)
    except NotFound:
        return None
    if run.id == run_id:
        return run
    return None


def spec_of(order: Order, text: str, variables: Sequence[str]) -> TaskSpec:
    """Return the spec of the order, completed with the prompt `text` and with additional
    environment variables for the agent. If the spec names no branch, the branch is named after the
    run, so that it is the same in every pod."""
    spec = order.spec
    branch = spec.branch or (f"perdure/{order.name}" if spec.repo else "")
    passed = tuple(dict.fromkeys((*spec.pass_env, *variables)))
    return replace(
        spec, prompt=text, name="", branch=branch, pass_env=passed, attempts=order.attempts_allowed
    )


def downloaded(engine: Engine, order: Order, spec: TaskSpec) -> TaskRun | None:
    """Download the run from the checkpoint store into this pod. Return None if the store has no
    checkpoint of the run.

    Raises StoreAway if the store cannot be read, and Conflict if another pod has begun a newer
    term.
    """
    store = open_store(order.checkpoints)
    _begin_term(engine.store, engine.state, store, order.run_id)
    try:
        manifest = store.newest(order.run_id)[1]
    except NotFound:
        return None
    if manifest.left_out:
        write_stderr(f"perdure: left out where it was saved: {', '.join(manifest.left_out[:20])}")
    wish = ImportRequest(source=order.checkpoints, name=_free_name(engine.store, order), spec=spec)
    return move_from(engine, order.run_id, order.checkpoints, wish, over=True).run


def _begin_term(runs: RunStore, state: Path, store: CheckpointStore, run_id: str) -> None:
    """Begin a term for this pod, unless it already has the newest one. After that, no other pod can
    publish the run.

    The term must begin before the search for checkpoints. Otherwise an older pod could publish a
    checkpoint after the search, and that checkpoint would be lost unnoticed.
    """
    term, mine = store.term(run_id), machine(state)
    if term is None or term.owner != mine:
        number = term.number + 1 if term is not None else 1
        store.begin(
            run_id,
            Term(number=number, owner=mine, host=socket.gethostname(), at=runs.now()),
        )


def added(engine: Engine, order: Order, spec: TaskSpec, given: Given = NOTHING_GIVEN) -> TaskRun:
    """Add the run to this pod's database, with its first task files, and return it. The order says
    with which conversation the run begins. Raises the same errors as `service.submit`."""
    if order.resume.mode == "Fork":
        return _forked(engine, order, spec, given)
    service.check_task(engine.driver, engine.environ, engine.homes, engine.volumes, spec, Path("/"))
    place = engine.workspaces.plan(spec, order.name, Path("/"))
    if order.resume.mode == "Session":
        spec = replace(spec, scope=_session(engine, order, spec, place))
    run = engine.store.add(spec, order.run_id, _free_name(engine.store, order), place, given)
    if order.resume.mode == "Fresh":
        engine.store.reset([run.id], RESET)
    return engine.store.get(run.id)


def _forked(engine: Engine, order: Order, spec: TaskSpec, given: Given) -> TaskRun:
    """Add the run as a copy of another run on this volume, with that run's conversation and files.
    Return the new run. Raises the same errors as `fork`."""
    source = order.resume.from_
    wanted = ForkRequest(
        prompt=spec.prompt,
        name=_free_name(engine.store, order),
        branch=spec.branch if spec.repo else "",
        id=order.run_id,
        task=spec.task,
        pass_env=spec.pass_env,
        given=given,
    )
    try:
        return fork(engine, source, wanted)
    except NotFound as error:
        raise NotFound(
            f"{source} cannot be forked: {error}", f"kubectl perdure sessions {source}"
        ) from error


def _free_name(store: RunStore, order: Order) -> str:
    """Return a free name for the run. The usual name may be taken by the run of a deleted TaskRun,
    if the volume outlived that TaskRun."""
    taken = {row.name for row in store.find(limit=100_000)}
    usual, other = order.run_names
    return other if usual in taken else usual


def _session(engine: Engine, order: Order, spec: TaskSpec, place: Workspace) -> str:
    """Return the scope of the conversation that the order names. If perdure has no session for the
    conversation yet, store one. Raises NotFound if the conversation does not exist, and Conflict if
    its session is retired."""
    wanted, agent = order.resume.session_id, spec.agent
    driver = engine.driver(agent)
    home = driver.home({**engine.environ, **spec.env})
    entry = None
    with suppress(NotFound, UsageError):
        entry = ConversationIndex(
            engine.store, {agent: driver}, engine.environ, only=frozenset({agent})
        ).find(wanted)
    entry = entry if entry is not None and entry.id == wanted else None
    if entry is not None and entry.session is not None:
        if entry.session.state is SessionState.RETIRED:
            raise Conflict(
                f"the conversation {wanted} is retired: {entry.session.cause}",
                "name another session, or leave resume.mode at Auto",
            )
        return entry.session.key.scope
    now, scope = engine.store.now(), f"session:{wanted}"
    if entry is not None and entry.conversation is not None:
        engine.copies.take_with_ancestors(driver, home, wanted, engine.state / "taken-in" / wanted)
        path, cwd, parent = Path(entry.conversation.path), entry.cwd, entry.parent
        found, total = (
            snapshot(driver, path),
            driver.total(path.read_bytes() if path.is_file() else b""),
        )
    elif order.checkpoints and order.resume.from_:
        _fetch_conversation(engine.driver, engine.copies, engine.state, order, place)
        path, cwd, parent = engine.copies.of(agent, wanted), "", ""
        found, total = snapshot(driver, path), driver.total(path.read_bytes())
    else:
        if order.resume.from_:
            where = f"of {order.resume.from_}"
        else:
            where = "of this task"
        raise NotFound(
            f"the state {where} of this pod has no conversation {wanted}",
            "kubectl perdure show NAME lists its sessions",
        )
    engine.store.put_session(
        Session(
            key=SessionKey(agent, scope),
            id=wanted,
            state=SessionState.CONFIRMED,
            created=now,
            updated=now,
            cwd=cwd,
            home=str(home),
            parent=parent,
            total=total,
            snapshot=found,
            attempts=1,
        )
    )
    return scope


def _fetch_conversation(
    driver_of: Callable[[str], AgentDriver],
    copies: Copies,
    state: Path,
    order: Order,
    place: Workspace,
) -> None:
    """Download another run's conversation from the checkpoint store into perdure's own copies. From
    there it is copied into the agent's home later. Raises NotFound, CapsuleError."""
    store, wanted = open_store(order.checkpoints), order.resume.session_id
    manifest = store.newest(find(store, order.resume.from_))[1]
    carried = {(each.id, each.agent): each for each in reversed(manifest.conversations)}
    conversation = carried.get((wanted, order.spec.agent))
    if conversation is None:
        raise NotFound(
            f"the saved state of {manifest.name} has no conversation {wanted}",
            "kubectl perdure show NAME lists its sessions",
        )
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with verified(manifest, store, state) as files:
        copies_of(driver_of, copies, conversation, files, Path(place.path), [])
