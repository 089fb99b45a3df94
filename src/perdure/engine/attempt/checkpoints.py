"""Takes the checkpoints of an attempt. A checkpoint has the workdir and the conversation, and is
published when both are durably saved.

While the agent runs, checkpoints are taken in a separate thread, so that reading the agent's output
never stops. Only the supervising thread writes to the store. The conversation is saved first, so
that the saved files are never older than the saved conversation. A checkpoint that fails (a full
disk, a workdir that is gone) is recorded in the journal and never fails the attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.agents.transcripts import Copies, begins_with, prompts_since
from perdure.engine.attempt.engine import Engine
from perdure.engine.attempt.live_attempt import LiveAttempt
from perdure.engine.prompt_file import prompt_fingerprint, prompt_path
from perdure.errors import LostLease, PerdureError, StoreError
from perdure.host import process
from perdure.model import (
    CLEAN_UP,
    PUT_BACK,
    SAFETY_REASONS,
    Checkpoint,
    Saved,
    Session,
    Snapshot,
    Start,
    TaskRun,
    Workspace,
)
from perdure.model.events import (
    CheckpointMissed,
    CheckpointRestored,
    CheckpointTaken,
    DriftSeen,
    FilesPlanned,
    PlaceLost,
    WorkSeen,
)
from perdure.protocols import RunStore
from perdure.workspace import Workspaces

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from perdure.workspace import AttemptBaseline

SETTLES_S = 0.3
"""Delay before a checkpoint, in seconds. An agent writes its transcript slightly later than its
output. Most agents also exit within this time after a turn, and then only the final checkpoint is
taken."""
SHARE = 10
"""Minimum ratio of the agent's running time to the time spent on checkpoints. A large workdir,
which takes long to save, is therefore saved less often."""
KEPT = 10
"""Number of a run's newest checkpoints that are kept. The last one of each attempt, and those saved
before a restore or clean-up, are kept in addition."""


class Checkpointing(Struct):
    """Takes the checkpoints of one attempt, one at a time. Used by the supervising thread only."""

    engine: Engine
    opened: LiveAttempt
    begun: float = field(default_factory=process.boottime)
    """Start of the last checkpoint, in seconds on the boot clock."""
    took: float = 0.0
    """Duration of the last checkpoint, in seconds."""
    displaced: bool = False
    """Whether another machine has taken over the run, so that this attempt must end."""
    work: WorkSeen | None = None
    """The attempt's changes, as found by its last checkpoint. None if no checkpoint has been taken
    yet, or if the changes could not be determined."""
    _pool: ThreadPoolExecutor | None = None
    _taking: Future[Checkpoint] | None = None
    _why: str = ""
    _wanted: str = ""
    _not_before: float = 0.0
    _settled: float = 0.0
    """Time at which the newest tool result is expected to be in the transcript, in seconds on the
    boot clock."""

    def tool_ended(self) -> None:
        """Request a checkpoint that is taken when the minimum interval since the last one has
        passed. The next tool may run for hours, and the machine may be lost meanwhile."""
        # Claude Code 2.1.329 writes a result to its transcript about 0.1 s after printing it.
        self._settled = process.boottime() + SETTLES_S
        self._want_newest_result()

    def _want_newest_result(self) -> None:
        every, now = self.engine.checkpoint_every_s, process.boottime()
        due_in = self.begun + max(every, SHARE * self.took) - now
        if every and not self._wanted:
            self.want("tool", in_s=max(self._settled - now, due_in))

    def want(self, why: str, in_s: float = 0.0) -> None:
        """Request a checkpoint after `in_s` seconds. A later call of `tick` begins it when no other
        checkpoint is being taken. `why`: the reason for the checkpoint, such as `turn` or `tool`.
        """
        self._wanted, self._not_before = why, process.boottime() + in_s

    def tick(self) -> None:
        """Publish a checkpoint that is complete, and begin a requested one. Return without waiting
        for either. Raises LostLease."""
        if self._taking is not None and self._taking.done():
            self.took = process.boottime() - self.begun
            self._publish(self._taking.result)
            self._taking = None
            if self._settled > self.begun:
                # A tool ended so late that the checkpoint may lack its result, so another
                # checkpoint is needed.
                self._want_newest_result()
        if self._wanted and self._taking is None and process.boottime() >= self._not_before:
            self._begin(self._wanted)
            self._wanted = ""
        self._record_uploads()

    def _record_uploads(self) -> None:
        """Record in the journal which uploads to the checkpoint store succeeded or failed."""
        publisher = self.engine.publisher
        if publisher is None or not (told := publisher.take_events(self.opened.claim.run.id)):
            return
        self.displaced = self.displaced or any(isinstance(event, PlaceLost) for event in told)
        self.engine.store.record(self.opened.claim, told)

    def end(self, why: str) -> None:
        """Wait for the checkpoint that is being taken, then take the last one of the attempt.
        Raises LostLease."""
        self._wanted = ""
        if self._taking is not None:
            self._publish(self._taking.result)
            self._taking = None
        if self._pool is not None:
            self._pool.shutdown()
        self._why = why
        self._publish(lambda: self._last(why))
        with suppress(PerdureError, OSError):
            prune(self.engine.store, self.engine.workspaces, self.opened.claim.run)

    def _last(self, why: str) -> Checkpoint:
        engine, opened = self.engine, self.opened
        against = comparison_base(engine.store, opened)

        def save(number: int) -> Saved:
            saved, self.work = engine.workspaces.checkpoints.save_last(
                opened.workspace, number, against
            )
            return saved

        return self.take(why, self._number(), copied=True, save=save)

    def _begin(self, why: str) -> None:
        # Imported late, because the start of the agent does not need it.
        from concurrent.futures import ThreadPoolExecutor

        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.begun, self._why = process.boottime(), why
        self._taking = self._pool.submit(self.take, why, self._number())

    def _number(self) -> int:
        return self.engine.store.next_checkpoint(self.opened.workspace.id, self.opened.claim.run.id)

    def take(
        self,
        why: str,
        number: int,
        *,
        copied: bool = False,
        save: Callable[[int], Saved] | None = None,
    ) -> Checkpoint:
        """Save workdir and conversation and return the checkpoint, without publishing it. `copied`:
        whether perdure's copy of the transcript is already up to date. `save`: a function that
        saves the workdir; by default its current state is saved.

        Raises PerdureError and OSError.
        """
        engine, opened = self.engine, self.opened
        session, attempt = opened.session, opened.attempt
        if not copied:
            transcript = copy_conversation(engine.copies, opened)
        elif session is not None:
            transcript = opened.transcript(session.id)
        else:
            transcript = None
        if session is not None:
            parts = engine.copies.parts(opened.driver, session.id)
        else:
            parts = ()
        at = engine.store.now()
        return Checkpoint(
            run=attempt.run,
            number=number,
            attempt=attempt.number,
            at=at,
            why=why,
            workdir=(save or _save(engine.workspaces, opened))(number),
            session_id=session.id if session is not None and parts else "",
            conversation=parts,
            context_version=_newest_context(opened, session, transcript),
            agent=opened.claim.run.spec.agent,
            agent_version=attempt.agent_version,
            flags=dict(attempt.flags),
        )

    def _publish(self, taken: Callable[[], Checkpoint]) -> None:
        try:
            checkpoint = taken()
            self.engine.store.add_checkpoint(checkpoint, self.opened.claim)
            if self.engine.publisher is not None:
                self.engine.publisher.published(checkpoint)
        except LostLease:
            raise
        except Exception as error:
            reason = self.engine.redactor.text(str(error) or type(error).__name__)
            with suppress(StoreError):
                self.engine.store.record(
                    self.opened.claim, [CheckpointMissed(why=self._why, reason=reason)]
                )


def _save(workspaces: Workspaces, opened: LiveAttempt) -> Callable[[int], Saved]:
    return lambda number: workspaces.checkpoints.save(opened.workspace, number)


def comparison_base(store: RunStore, opened: LiveAttempt) -> AttemptBaseline:
    """Return the state with which the attempt's changes are compared. It is the newest checkpoint
    of an earlier attempt, or the checkpoint that was restored after that attempt. If there is
    neither, but the run's oldest checkpoint has a number above 1, other runs have used the workdir.
    The state is then the newest checkpoint that another run took there before this attempt."""
    from perdure.workspace import AttemptBaseline

    run, number = opened.claim.run, opened.attempt.number
    records = store.run_events(run.id)
    left, foreign = 0, set[str]()
    for record in records:
        event = record.event
        if isinstance(event, CheckpointTaken | CheckpointRestored) and record.attempt < number:
            kept = isinstance(event, CheckpointRestored) or event.why not in SAFETY_REASONS
            left = event.number if kept else left
        if record.attempt == number and isinstance(event, FilesPlanned):
            foreign |= {change.name for change in event.files}
        if record.attempt == number and isinstance(event, DriftSeen):
            foreign |= set(event.paths)
    own = store.checkpoints(run.id)
    found = next((each for each in own if each.number == left), None)
    # The checkpoints of a workdir have one row of numbers. So without a checkpoint 1 of its own,
    # and with one in the workdir, the run is not the first one there.
    numbers = [each.number for each in own]
    first = min(numbers, default=store.next_checkpoint(opened.workspace.id, run.id))
    if found is None and first > 1:
        found = _of_others(store, opened)
    return AttemptBaseline(
        number=found.number if found is not None else 0,
        commit=found.workdir.commit if found is not None else "",
        head=found.workdir.head if found is not None else "",
        since=prompt_path(opened.directory),
        foreign=frozenset(foreign),
    )


def _of_others(store: RunStore, opened: LiveAttempt) -> Checkpoint | None:
    """Return the newest checkpoint that another run in the same workdir took before this attempt;
    None if there is none."""
    own = {opened.attempt.run}
    runs = []
    for run in store.placed():
        if run.workspace.id == opened.workspace.id:
            runs.append(run.id)
    found: list[Checkpoint] = []
    for run_id in runs:
        if run_id not in own:
            found += store.checkpoints(run_id)
    found = [each for each in found if each.at <= opened.attempt.started]
    return max(found, key=lambda each: each.number, default=None)


def copy_conversation(copies: Copies, opened: LiveAttempt) -> Path | None:
    """Update perdure's own copy from the agent's transcript, and return the transcript's path. If
    there is no transcript, or it lacks content that perdure knows, keep the copy as it is and
    return None."""
    session = opened.session
    if session is not None:
        transcript = opened.transcript(session.id)
    else:
        transcript = None
    if session is None or transcript is None:
        return None
    known = known_before(opened, session)
    if known is not None and not begins_with(opened.driver, transcript, known):
        return None
    if opened.adopted and opened.asked.kind is Start.FRESH:
        # While no supervisor followed the agent, another conversation may have replaced this one.
        # So the transcript must contain this attempt's prompt.
        there = prompts_since(opened.driver, transcript, None)
        if there and own_prompt_fingerprint(opened) not in there:
            return None
    if copies.take(opened.driver, session.id, transcript):
        return transcript
    return None


def known_before(opened: LiveAttempt, session: Session) -> Snapshot | None:
    """Return the recorded state with which the agent's transcript must begin.

    If perdure put a transcript in place for this attempt, return the state of that transcript.
    Otherwise return the last state that perdure saw; None if perdure saw none.
    """
    put_back = opened.asked.kind is Start.RESUME and opened.asked.rung in PUT_BACK
    if put_back:
        return opened.attempt.before
    return session.snapshot


def own_prompt_fingerprint(opened: LiveAttempt) -> str:
    """Return the fingerprint of this attempt's prompt."""
    return prompt_fingerprint(opened.directory)


def _newest_context(opened: LiveAttempt, session: Session | None, transcript: Path | None) -> int:
    """Return the number of the newest version of the instructions that the conversation
    contains."""
    if session is None or transcript is None:
        if session is not None:
            return session.context_version
        return 0
    if opened.asked.kind is Start.RESUME:
        before = opened.attempt.before
    else:
        before = None
    new = prompts_since(opened.driver, transcript, before)
    if own_prompt_fingerprint(opened) in new:
        return opened.attempt.context_version
    return session.context_version


def last_of(store: RunStore, workspace: Workspace) -> Checkpoint | None:
    """Return the newest checkpoint of a workdir; None if there is none. Removed runs are ignored,
    because their checkpoints expire by age."""
    runs = []
    for run in store.placed():
        if run.removed is None and run.workspace.id == workspace.id:
            runs.append(run.id)
    found = list(chain.from_iterable(map(store.checkpoints, runs)))
    return max(found, key=lambda each: each.number, default=None)


def save_before_cleanup(
    store: RunStore,
    workspaces: Workspaces,
    workspace: Workspace,
    last: Checkpoint,
) -> Checkpoint:
    """Save the present workdir, with the conversation of its last checkpoint, as an additional
    checkpoint. Return the new checkpoint, which is not deleted when later ones are taken. The
    caller holds the workdir's lock. Raises PerdureError and OSError; in that case nothing is
    published."""
    number = store.next_checkpoint(workspace.id, last.run)
    saved = workspaces.checkpoints.save(workspace, number)
    kept = replace(last, number=number, at=store.now(), why=CLEAN_UP, workdir=saved)
    store.add_checkpoint(kept)
    return kept


def prune(store: RunStore, workspaces: Workspaces, run: TaskRun) -> None:
    """Delete the checkpoints that the run does not need. The newest ones and the last of each
    attempt are kept. So are those saved before a restore or clean-up: they hold content that exists
    nowhere else, and expire only by age. Raises PerdureError."""
    checkpoints = store.checkpoints(run.id)
    safety_checkpoints = [each for each in checkpoints if each.why in SAFETY_REASONS]
    taken = [each for each in checkpoints if each.why not in SAFETY_REASONS]
    last_of_attempt = {each.attempt: each for each in taken}
    needed = (*safety_checkpoints, *taken[-KEPT:], *last_of_attempt.values())
    kept = {each.number for each in needed}
    assert run.workspace is not None
    forget(
        store,
        workspaces,
        run.id,
        run.workspace,
        [checkpoint for checkpoint in checkpoints if checkpoint.number not in kept],
    )


def forget(
    store: RunStore,
    workspaces: Workspaces,
    run_id: str,
    workspace: Workspace,
    checkpoints: Sequence[Checkpoint],
) -> None:
    """Delete checkpoints of a run, which may be a removed run. Database rows are deleted before the
    files, so that no row refers to missing files. perdure's copies of the conversation are kept.
    Raises PerdureError."""
    store.forget_checkpoints(run_id, [checkpoint.number for checkpoint in checkpoints])
    if checkpoints:
        workspaces.checkpoints.delete(workspace, *(checkpoint.number for checkpoint in checkpoints))
