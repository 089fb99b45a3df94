"""Supervises a running agent: turns its output lines into journal events, and enforces its limits.
Called by `perform` and `take_over`.

The agent writes its output into files, so perdure cannot block the agent. A later supervisor reads
these files from the start; it skips as many events as the journal already has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.agents.transcripts import prompts_since
from perdure.engine.attempt.budget import Allowance, allowance
from perdure.engine.attempt.checkpoints import (
    SETTLES_S,
    Checkpointing,
    copy_conversation,
    own_prompt_fingerprint,
)
from perdure.engine.attempt.engine import Engine, leftover_policy, process_tag, redacted
from perdure.engine.attempt.event_totals import EventTotals, Joiner
from perdure.engine.attempt.heartbeat import BEATS, END_BY, UNTIL
from perdure.engine.attempt.live_attempt import LiveAttempt
from perdure.engine.attempt.messages import MessageWatch
from perdure.engine.attempt.meter import Meter
from perdure.engine.attempt.preparation import parent_of, total_of
from perdure.engine.attempt.requests import resumed_calls
from perdure.engine.attempt.turns import Turn
from perdure.errors import PerdureError
from perdure.host import process
from perdure.model import (
    NO_USAGE,
    ContinuityPolicy,
    Exit,
    OnLeftover,
    Session,
    SessionKey,
    SessionState,
    Start,
    Usage,
)
from perdure.model.events import (
    AgentEvent,
    AnyEvent,
    AttemptAdopted,
    CollisionSeen,
    CopyMissed,
    Leftover,
    LeftoversFound,
    OutputCapped,
    ReplySeen,
    RequestSeen,
    SessionConfirmed,
    SessionPinned,
    SessionSeen,
    ToolEnded,
    UsageCounted,
    is_agent_event,
)
from perdure.protocols import Archive, ContinuesSilently, ReadsDenials, RunStore

TICK_S = 0.04
RECKONED_S = 0.1
"""Minimum interval between two calculations of an attempt's usage, in seconds. It applies to
attempts without a budget."""
METERED_S = 1.0
"""Minimum interval between two writes of an attempt's usage to the store, in seconds."""
LAST_WORD_S = 1.0
"""Time in seconds that an agent gets to end by itself after its budget is spent. An agent whose
last action was a tool call is ended at once, because it would send another request."""
UNSUPERVISED_S = 10.0
"""Maximum time in seconds that an agent with a budget may continue while its supervisor does not
respond. The cost is not counted during that time, so the shim then ends the agent. If the
supervisor's process no longer exists, the shim ends the agent immediately. None of this applies if
the CLI enforces the budget itself."""
UNSUPERVISED_LEAST_S = 2.0
"""Lower limit of the time, in seconds, that an agent with a budget may continue while its
supervisor does not respond. It allows for a slow supervisor even if the budget will soon be spent.
"""
COLLISION_CHECK_S = 1.0
EXIT_GRACE_S = 1.0
"""Time in seconds that an agent gets to exit after its turn. After that time perdure searches for
processes that the agent left running."""
SILENT_AFTER_TURN_S = 3.0
"""Time without output, in seconds, after which perdure ends an agent. It applies if the agent's
turn is over and the agent left no processes running. An agent that continues shows this by a new
line, by the number of its helpers, or in its conversation (`ContinuesSilently`)."""
LEFT_EVERY_S = 0.25
"""Interval between two searches for processes that a turn left running, in seconds."""
LEFT_NAMED = 50
"""Maximum number of leftover processes that one journal event lists."""
TOOL_PATIENCE = 5
"""Factor by which the stall timeout is extended during a tool call."""


class SupervisionResult(Struct, kw_only=True):
    """How the agent ended, and the totals of its events."""

    exit: Exit
    reading: EventTotals
    session: Session | None
    other_writers: tuple[int, ...]
    meter: Meter
    collided: bool = False
    """Whether the agent was stopped because another program used its conversation and the policy is
    strict."""


def unsupervised_s(budget: float, spent: float, ran_s: float) -> float:
    """Return how long an agent may continue while its supervisor does not respond, in seconds. It
    is the time in which the agent would spend the rest of its budget at its average rate so far.
    The result is between `UNSUPERVISED_LEAST_S` and `UNSUPERVISED_S`. Pure."""
    if spent <= 0 or ran_s <= 0:
        return UNSUPERVISED_S
    enough = max(0.0, budget - spent) / (spent / ran_s)
    return min(UNSUPERVISED_S, max(UNSUPERVISED_LEAST_S, enough))


class _Watch(Struct):
    engine: Engine
    opened: LiveAttempt
    lines: process.Lines
    skip: int
    checkpoints: Checkpointing
    meter: Meter
    messages: MessageWatch
    reading: EventTotals = field(default_factory=EventTotals)
    joiner: Joiner = field(default_factory=Joiner)
    pending: list[AnyEvent] = field(default_factory=list)
    others: set[int] = field(default_factory=set)
    allowed: Allowance = field(default_factory=Allowance)
    budget: float = 0.0
    """Present cost limit of the attempt, in dollars; 0: no limit."""
    used: Usage = NO_USAGE
    """The usage that was last written to the store."""
    reckoning: Usage = NO_USAGE
    """The usage that was last calculated. The next two fields are the time of that calculation, and
    the revision of the event totals from which the usage was calculated."""
    reckoned: float = 0.0
    revision: int = 0
    metered: float = 0.0
    overspent: float = 0.0
    """Time at which the cost reached the budget; 0 before that."""
    began: float = 0.0
    """Time at which the agent printed its first line. Processes that started earlier belong to the
    agent itself and are not leftovers."""
    over: float = 0.0
    """Time at which the agent's turn ended; 0 before that."""
    surveyed: float = 0.0
    beat: float = 0.0
    renewed: float = 0.0
    """Time of the last renewal of the lease. The next field is the time at which the shim was last
    allowed to let the agent continue."""
    held: float = 0.0
    looked: float = 0.0
    heard: float = 0.0
    stopped: bool = False
    capped: bool = False
    collided: bool = False
    turn: Turn | None = None
    """The current turn of a kept agent; None if the agent will not be kept."""

    def take_lines(self) -> None:
        """Read new lines and process their events. When a conversation is first seen, its id is
        stored; at the end of a turn, the conversation is saved."""
        lines = self.lines.read()
        if lines:
            self.heard = process.boottime()
            self.began = self.began or self.heard
        for line in lines:
            if self.turn is not None:
                self.turn.hear(line)
            for event in self.opened.driver.parse(line):
                for whole in self.joiner.add(event):
                    self.absorb(whole)
        self.flush()

    def absorb(self, event: AgentEvent) -> None:
        if isinstance(event, (ReplySeen, RequestSeen)):
            self.reading.absorb(event)
            return
        known = self.reading.ends.complete(event)
        if known is None:
            return
        event = redacted(known, self.engine.redactor)
        was_over = self.reading.turn_over
        self.reading.absorb(event)
        if self.skip:
            self.skip -= 1
        else:
            self.pending.append(event)
        if isinstance(event, SessionSeen):
            self.pin(event.session_id)
        if isinstance(event, ToolEnded):
            self.checkpoints.tool_ended()
        resumes = self.opened.asked.kind is Start.RESUME
        # A resume that failed immediately has nothing to save. If the agent refuses its transcript,
        # perdure's copy will replace the transcript, so a defect that causes the refusal must not
        # get into the copy.
        saves = self.reading.answered or not resumes
        if self.reading.turn_over and not was_over and saves:
            self.save_turn()
            self.checkpoints.want("turn", in_s=SETTLES_S)

    def pin(self, session_id: str) -> None:
        """Store the id of a newly seen conversation immediately. If the agent was to resume a
        conversation and opened another one, stop the agent."""
        session, asked = self.opened.session, self.opened.asked
        if not session_id or (session is not None and session.id == session_id):
            return
        if asked.kind is Start.RESUME:
            self.stop("stopped")
            return
        now = self.engine.store.now()
        claim = self.opened.claim
        if session is not None:
            prompts = session.prompts
        else:
            prompts = (own_prompt_fingerprint(self.opened),)
        if session is not None:
            gone = replace(
                session, state=SessionState.RETIRED, cause=f"the agent opened {session_id} instead"
            )
            self.engine.store.record(claim, [], gone)
        self.opened.session = Session(
            key=SessionKey(claim.run.spec.agent, claim.run.scope),
            id=session_id,
            state=SessionState.PINNED,
            created=now,
            updated=now,
            cwd=self.opened.workspace.path,
            home=str(self.opened.home),
            parent=parent_of(asked) or (session.id if session is not None else ""),
            prompts=prompts,
            total=total_of(self.opened.driver, self.opened.attempt.before)
            if asked.kind is Start.FORK
            else Usage(),
            lifetime_s=self.opened.lifetime_s,
        ).used(now, self.engine.session_lifetime_s)
        self.pending.append(SessionPinned(session_id=session_id))
        self.flush(self.opened.session)

    def save_turn(self) -> None:
        """Update perdure's own copy at the end of a turn. If the conversation contains the
        attempt's prompt, mark the session as confirmed."""
        session = self.opened.session
        try:
            transcript = copy_conversation(self.engine.copies, self.opened)
        except PerdureError as error:
            # The copy failed, for example on a full disk. The agent can continue, and the copy is
            # tried again at the end of the attempt.
            self.pending.append(
                CopyMissed(
                    session_id=session.id if session else "",
                    reason=self.engine.redactor.text(str(error)),
                )
            )
            return
        if session is None or transcript is None:
            return
        if session.state is SessionState.PINNED and own_prompt_fingerprint(
            self.opened
        ) in prompts_since(self.opened.driver, transcript, None):
            self.opened.session = replace(
                session, state=SessionState.CONFIRMED, updated=self.engine.store.now()
            )
            self.pending.append(SessionConfirmed(session_id=session.id))
            self.flush(self.opened.session)

    def keep_budget(self, now: float) -> None:
        """Store the usage so far. End an agent that continues after it has spent its budget."""
        # With a budget, the usage is calculated without delay, because an agent that has spent the
        # budget must not send another request.
        due = self.budget or now - self.reckoned >= RECKONED_S
        if due and self.reading.revision != self.revision:
            self.reckoned, self.revision = now, self.reading.revision
            self.reckoning = self.meter.usage(self.reading)
            if self.allowed.varies:
                self.budget = self.allowed.usd(self.meter.dearest(self.reading))
        used = self.reckoning
        if used != self.used and now - self.metered >= METERED_S:
            self.metered = now
            self.store_usage(used)
        if not self.budget or used.cost_usd < self.budget:
            return
        self.overspent = self.overspent or now
        if self.reading.asks_again or now - self.overspent > LAST_WORD_S:
            self.stop("budget")

    def store_usage(self, used: Usage) -> None:
        self.used = used
        self.pending.append(UsageCounted(used))
        self.engine.store.record(self.opened.claim, self.pending, usage=used)
        self.pending = []

    def flush(self, session: Session | None = None) -> None:
        """Write the pending events to the store, in one transaction."""
        if self.pending or session is not None:
            self.engine.store.record(self.opened.claim, self.pending, session)
            self.pending = []

    def stop(self, cause: str) -> None:
        if not self.stopped and self.opened.process is not None:
            self.stopped = True
            self.opened.process.stop(cause)

    def extend_deadline(self, now: float) -> None:
        """Let an agent with a budget continue for another short period. The supervisor calls this
        repeatedly; if it stops doing so, the shim ends the agent."""
        alone = self.budget and not self.opened.driver.abilities.keeps_budget
        ran_s = now - self.began if self.began else 0.0
        period = unsupervised_s(self.budget, self.reckoning.cost_usd, ran_s)
        if not alone or now - self.held < period / 5:
            return
        self.held, until = now, now + period
        if self.engine.host.id:  # never longer than the lease allows, see `heartbeat`
            until = min(until, self.renewed + self.engine.lease_s * UNTIL)
        grace = self.engine.lease_s * (END_BY - UNTIL)
        process.hold(Path(self.opened.attempt.directory), until, until + grace, followed=True)

    def keep_limits(self) -> None:
        """Renew the lease, and enforce all limits: requests to stop, leftovers, silence, endless
        retries, collisions and budget."""
        now = process.boottime()
        if self.engine.stopping() and not self.stopped:
            self.stop("stopped")
            # A service manager that stops perdure may kill perdure before the agent has ended, so a
            # checkpoint is requested immediately.
            self.checkpoints.want("stop")
        if self.checkpoints.displaced:
            self.stop("stopped")
        if now - self.beat >= self.engine.lease_s / BEATS:
            self.beat = now
            beaten = self.engine.heartbeat(self.opened.claim).beat()
            if beaten.cancel_requested:
                self.stop("stopped")
            self.messages.hear(beaten.context_version)
            self.renewed, self.held = now, 0.0
        self.extend_deadline(now)
        self.end_over(now)
        patience = self.opened.claim.run.spec.stall_s * (
            TOOL_PATIENCE if self.reading.open_tools else 1
        )
        if (
            self.over
            and leftover_policy(self.engine.on_leftover, self.opened.claim.run) is OnLeftover.WAIT
        ):
            patience = 0.0
        if patience and now - self.heard > patience:
            self.stop("stalled")
        enough = self.opened.driver.abilities.retries_in_a_row
        if enough and max(self.reading.retries_in_a_row, self.reading.refused) >= enough:
            self.stop("retrying")
        if now - self.looked >= COLLISION_CHECK_S:
            self.looked = now
            self.look_for_others()
        self.messages.look(now)
        self.meter.look(self.reading)
        self.keep_budget(now)
        if self.lines.capped and not self.capped:
            self.capped = True
            self.pending.append(OutputCapped(stream="stdout", limit=self.lines.cap))

    def end_over(self, now: float) -> None:
        """End an agent whose turn is over but that does not exit. Also end the processes that the
        agent left running, unless the policy is to keep them or to wait for their end."""
        resting = self.turn is not None and not (self.turn.decided and self.turn.why)
        if resting or not self.reading.turn_over or self.reading.helpers or self.stopped:
            self.over = 0.0
            return
        self.over = self.over or now
        policy = leftover_policy(self.engine.on_leftover, self.opened.claim.run)
        if now - self.over < EXIT_GRACE_S or now - self.surveyed < LEFT_EVERY_S:
            return
        self.surveyed = now
        agent = self.opened.process
        assert agent is not None
        if not agent.agent_alive():
            return
        shim = agent.shim.pid if agent.shim is not None else 0
        left = process.started_since(agent.mark, self.began, (agent.agent_pid or 0, shim))
        if left and policy is OnLeftover.WAIT:
            return
        if not left and (
            now - max(self.over, self.heard) < SILENT_AFTER_TURN_S or self.will_continue()
        ):
            return
        keep = policy is OnLeftover.KEEP
        self.tell_left(*process.commands(left), keep=keep)
        self.stopped = True
        agent.release(left if keep else ())

    def will_continue(self) -> bool:
        """Return whether the conversation shows that the agent will continue, although the agent
        reported the end of its turn. If so, the wait for the agent's exit begins again."""
        driver, archive = self.opened.driver, self.opened.driver.archive
        session = self.opened.session
        if not isinstance(driver, ContinuesSilently) or archive is None or session is None:
            return False
        if driver.will_continue(archive.read(self.opened.home, session.id) or b""):
            self.over = process.boottime()
            return True
        return False

    def tell_left(self, found: Sequence[process.Left], count: int, *, keep: bool) -> None:
        """Record leftover processes in the journal, if there are any. `count`: their number.
        `keep`: whether they continue to run."""
        if not found:
            return
        became = "kept" if keep else "ended"
        told = [Leftover(each.pid, each.command, each.age_s, became) for each in found]
        event = LeftoversFound(tuple(told[:LEFT_NAMED]), max(count, len(told)))
        self.pending.append(redacted(event, self.engine.redactor))

    def foreign_processes(self, session: Session, agent: process.Process) -> set[int]:
        """Return the ids of processes that use the conversation and do not belong to this
        attempt."""
        there = set(self.opened.driver.writers(self.opened.home, session.id))
        if there:
            there.discard(agent.agent_pid or 0)
        if there:
            there.difference_update(process.survivors(agent.mark))
        return there

    def look_for_others(self) -> None:
        """Search for other live programs that use the conversation. Record each of them once, as a
        collision. Under the strict policy a collision ends the attempt."""
        session, agent = self.opened.session, self.opened.process
        if session is None or agent is None:
            return
        new = self.foreign_processes(session, agent) - self.others
        # Between fork and exec, a child of the agent looks like a second agent. So an unknown
        # process counts only if it is seen twice.
        new &= self.foreign_processes(session, agent) if new else new
        for pid in sorted(new):
            detail = f"process {pid} uses conversation {session.id} at the same time"
            self.pending.append(CollisionSeen(session_id=session.id, detail=detail))
        self.others |= new
        if new and self.opened.claim.run.spec.continuity is ContinuityPolicy.STRICT:
            self.collided = True
            self.stop("stopped")


def watch(engine: Engine, opened: LiveAttempt, checkpoints: Checkpointing) -> SupervisionResult:
    """Follow the agent until it ends, and return how it ended. Raises LostLease."""
    now = process.boottime()
    stdout = Path(opened.attempt.directory) / "stdout"
    lines, meter = process.Lines(stdout), Meter(opened)
    meter.begin()
    run = _Watch(
        engine,
        opened,
        lines,
        _already_written(engine.store, opened),
        checkpoints,
        meter,
        MessageWatch(engine, opened),
        beat=now,
        renewed=now,
        heard=now,
        metered=now,
    )
    run.messages.begin()
    run.allowed = allowance(engine.store, opened.claim.run, opened.attempt.number)
    run.budget = run.allowed.usd()
    if engine.store.get(opened.claim.run.id).cancel_requested:
        # The request came while the agent was being started, so nobody has stopped the agent yet.
        run.stop("stopped")
    if opened.idle is not None:
        run.turn = Turn(engine, opened, opened.idle)
    else:
        run.turn = None
    for call in resumed_calls(engine.store, opened):
        # The CLI prints only the result of a parked call. perdure adds the start of the call before
        # the first line of output. perdure does so each time the output is read, so that an adopted
        # attempt counts the same events.
        run.absorb(call)
    run.flush()
    if opened.adopted:
        engine.store.record(opened.claim, [AttemptAdopted(worker=engine.worker)])
        checkpoints.want("adopted")
    if opened.process is not None:
        end = None
    else:
        end = Exit(cause="lost", at=engine.store.now())
    while end is None:
        assert opened.process is not None
        end = opened.process.wait(TICK_S)
        run.take_lines()
        if end is None:
            if run.turn is not None and not run.stopped:
                run.turn.settle(run.reading)
            run.keep_limits()
            checkpoints.tick()
    if run.turn is not None:
        run.pending.append(run.turn.ended(end))
    if opened.process is not None:
        keep = leftover_policy(engine.on_leftover, opened.claim.run) is OnLeftover.KEEP
        found, count = opened.process.left_behind()
        run.tell_left(found, count, keep=keep)
    _read_to_the_end(run)
    return SupervisionResult(
        exit=end,
        reading=run.reading,
        session=opened.session,
        other_writers=tuple(sorted(run.others)),
        meter=meter,
        collided=run.collided,
    )


def _read_to_the_end(run: _Watch) -> None:
    before = -1
    while run.lines.offset != before:
        before = run.lines.offset
        run.take_lines()
    torn = run.lines.rest()
    for event in run.opened.driver.parse(torn) if torn.strip() else ():
        for whole in run.joiner.add(event):
            run.absorb(whole)
    for whole in run.joiner.rest():
        run.absorb(whole)
    _ask_the_transcript(run)
    if run.opened.driver.archive is not None:
        _ask_the_archive(run, run.opened.driver.archive)
    run.messages.look(0.0, last=True)
    run.meter.look(run.reading, last=True)
    if (used := run.meter.usage(run.reading)) != run.used:
        run.store_usage(used)
    run.flush()


def _ask_the_transcript(run: _Watch) -> None:
    """Process the denied calls and questions that are in the agent's transcript but not in its
    output."""
    opened = run.opened
    session, driver = opened.session, opened.driver
    path = opened.transcript(session.id) if session is not None else None
    if not isinstance(driver, ReadsDenials) or path is None or not run.reading.turn_over:
        return
    try:
        content = path.read_bytes()
    except OSError:
        return
    for event in driver.denials_in_transcript(content):
        run.absorb(event)


def _ask_the_archive(run: _Watch, archive: Archive) -> None:
    """Process facts from the archive that a killed agent did not report: the id of its
    conversation, the tools that it had started, and an estimate of the usage of its last answer."""
    opened = run.opened
    resumed = opened.asked.kind is Start.RESUME
    if resumed or run.reading.session_id:
        found = ""
    else:
        found = archive.find(opened.home, process_tag(opened.attempt))
    if found:
        run.absorb(SessionSeen(session_id=found))
    if opened.session is None or opened.asked.kind is Start.FORK:
        return
    content = archive.read(opened.home, opened.session.id) or b""
    before = opened.attempt.before
    since = before.size if before is not None else 0
    for event in archive.unreported_events(content[since:]):
        run.absorb(event)
    if (reply := archive.cut_off(content, since)) is not None:
        run.reading.absorb(ReplySeen(reply))


def _already_written(store: RunStore, opened: LiveAttempt) -> int:
    """Return the number of events of this attempt's agent that the journal already has."""
    if not opened.adopted:
        return 0
    records = store.attempt_history(opened.claim.run.id, opened.claim.attempt, 1_000_000)
    return sum(is_agent_event(record.event) for record in records)
