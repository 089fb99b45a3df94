"""Everything that can happen, one struct each, and `Record`: an event with its address.

Two families. `AgentEvent`: what a driver read in an agent's output. `RunEvent`: what perdure did.
Both end up as Records in the one journal that every surface reads. Names are past participles; all
fields are small (`MAX_TEXT`), because the raw output is kept whole in the attempt's directory.
"""

from __future__ import annotations

import msgspec

from perdure.model import Continuation, FileChange, Outcome, Receipt, Reply, Usage
from perdure.model.work import CommitOfWork, FileOfWork

MAX_TEXT = 16 * 1024
"""Characters of agent text that one event carries; the rest is cut and said so."""


class Event(msgspec.Struct, frozen=True, tag_field="kind"):
    """The root of all events."""


class Leftover(msgspec.Struct, frozen=True):
    """A process that the agent left running when its turn was over."""

    pid: int
    command: str
    """Its command line, at most 500 characters."""
    age_s: float
    """How long it had run by then."""
    became: str = "ended"
    """`ended` or `kept`."""


# --- what an agent said or did
# -------------------------------------------------------------------------------------


class SessionSeen(Event, frozen=True, tag="session_seen"):
    """The agent named its conversation. The last one seen counts."""

    session_id: str
    version: str = ""
    model: str = ""
    opened: str = ""
    """`new`, `loaded` or `resumed`: the agent's own word, where its transcript cannot be read."""
    replayed: int | None = None
    """Number of known prompts, answers and tool calls that it replayed, which is all of them; null
    if it replays nothing."""


class ItemsMarked(Event, frozen=True, tag="items_marked"):
    """Marks of what was said in a conversation whose transcript cannot be read: `prompt:`, `said:`
    or `tool:` and a hash. A later replay has to hold them."""

    session_id: str
    marks: tuple[str, ...]
    ended: bool = False
    """The turn came to its end, and these are all marks of it."""


class TurnStarted(Event, frozen=True, tag="turn_started"):
    """The agent began to work on a prompt."""


class Said(Event, frozen=True, tag="said"):
    """Text of the agent for a person."""

    text: str
    aside: bool = False
    """Said by a helper that the agent started: the conversation itself does not have it."""


class SaidPart(Event, frozen=True, tag="said_part"):
    """A piece of a text that is still being said. The watcher joins the pieces to one `Said`; the
    journal never holds one."""

    text: str


class ToolStarted(Event, frozen=True, tag="tool_started"):
    """The agent called a tool; `summary` is its command or main argument."""

    tool_id: str
    name: str
    summary: str = ""
    aside: bool = False
    """Called by a helper that the agent started: the conversation itself does not have it."""
    hint: str = ""
    """`reads`, `edits` (files), `runs` (a shell command) or `destroys`, where the agent says so of
    the tool, or passes on the word of its server."""


class ToolEnded(Event, frozen=True, tag="tool_ended"):
    """A tool came back."""

    tool_id: str
    ok: bool
    summary: str = ""
    aside: bool = False
    """As in `ToolStarted`."""
    code: int | None = None
    """The exit code of a command, where the agent tells it."""


class ToolDenied(Event, frozen=True, tag="tool_denied"):
    """A call of a tool was denied, and did not run. It comes after the call's `ToolStarted`."""

    tool_id: str
    name: str
    summary: str = ""
    """Its command or main argument, as in `ToolStarted`."""
    by: str = "permissions"
    """What denied it: `permissions`, `hook` or `sandbox`."""
    reason: str = ""
    """What the agent was told."""
    deferred: bool = False
    """It was put off rather than denied: the turn ended before it could run."""
    aside: bool = False
    """As in `ToolStarted`."""


class QuestionAsked(Event, frozen=True, tag="question_asked"):
    """The agent asked a person by a tool, and nobody was there to answer."""

    tool_id: str
    text: str
    options: tuple[str, ...] = ()
    """The answers that it offered."""
    settled: bool = False
    """The agent decided by itself, and went on working."""


class ReplyCut(Event, frozen=True, tag="reply_cut"):
    """An answer of the model did not come to its own end."""

    reason: str
    """`max_tokens`, `refusal`, `empty`, or the agent's own word."""
    text: str = ""


class LastWordGiven(Event, frozen=True, tag="last_word_given"):
    """The agent's last word in the form that it was asked for (`last_word`). It is what the agent
    says of itself, and never makes an attempt a success."""

    status: str
    """`done`, `nothing_to_do`, `incomplete` or `blocked`."""
    summary: str
    questions: tuple[str, ...] = ()
    follow_ups: tuple[str, ...] = ()


class HelpersSeen(Event, frozen=True, tag="helpers_seen"):
    """Number of helpers at work in the background: the agent goes on when they have ended."""

    running: int


class UsageSeen(Event, frozen=True, tag="usage_seen"):
    """Tokens and cost. `cumulative`: counted since the conversation began, not since this
    launch."""

    usage: Usage
    cumulative: bool = False


class ReplySeen(Event, frozen=True, tag="reply_seen"):
    """What one answer of the model has used so far, as the agent tells it while it works. The
    journal never holds one: what they add up to stands in `UsageCounted`, until the agent tells its
    final figure (`UsageSeen`)."""

    reply: Reply


class ContextSeen(Event, frozen=True, tag="context_seen"):
    """What a request carried, in tokens (0: only the window is told), and what the model can take
    (0: not told)."""

    tokens: int = 0
    window: int = 0
    model: str = ""
    compacted: bool = False
    """The conversation was just made shorter; `tokens` is what is left."""


class RetrySeen(Event, frozen=True, tag="retry_seen"):
    """The agent itself tries a request again."""

    status: int | None = None
    detail: str = ""


class LimitSeen(Event, frozen=True, tag="limit_seen"):
    """A usage limit was hit; `until` is in ms where the agent named a time."""

    detail: str
    until: int | None = None


class WritesLost(Event, frozen=True, tag="writes_lost"):
    """The agent could not save its conversation."""

    detail: str


class TurnEnded(Event, frozen=True, tag="turn_ended"):
    """The agent's own word on the turn. `facts` are the fields that the driver's classifier reads,
    as text."""

    ok: bool
    text: str = ""
    turns: int = 0
    facts: dict[str, str] = {}


class Unrecognised(Event, frozen=True, tag="unrecognised"):
    """A line that the driver does not know: kept, never fatal."""

    text: str


AgentEvent = (
    SessionSeen
    | ItemsMarked
    | TurnStarted
    | Said
    | SaidPart
    | ToolStarted
    | ToolEnded
    | ToolDenied
    | QuestionAsked
    | ReplyCut
    | LastWordGiven
    | HelpersSeen
    | UsageSeen
    | ReplySeen
    | ContextSeen
    | RetrySeen
    | LimitSeen
    | WritesLost
    | TurnEnded
    | Unrecognised
)


# --- what perdure did
# ----------------------------------------------------------------------------------------------


class RunSubmitted(Event, frozen=True, tag="run_submitted"):
    """A run was accepted."""


class ContextAdded(Event, frozen=True, tag="context_added"):
    """New instructions were given."""

    version: int


class AttemptClaimed(Event, frozen=True, tag="attempt_claimed"):
    """A worker took the next attempt."""

    worker: str


class AttemptStarted(Event, frozen=True, tag="attempt_started"):
    """It was decided how the attempt starts; nothing was launched before this was stored."""

    continuation: Continuation


class AgentLaunched(Event, frozen=True, tag="agent_launched"):
    """The agent's process runs. `turn`: from the second on it was kept from an earlier attempt, and
    had this one as its next turn."""

    pid: int
    turn: int = 1
    notes: tuple[str, ...] = ()
    """What was changed in the user's arguments for the agent."""


class AgentKeptWarm(Event, frozen=True, tag="agent_kept_warm"):
    """The agent's process was kept after the attempt, for the next one. `memory`: bytes that it and
    all below it have resident."""

    pid: int
    turn: int
    memory: int = 0


class AgentLetGo(Event, frozen=True, tag="agent_let_go"):
    """The agent's process was to be kept, and was not."""

    pid: int
    turn: int
    reason: str


class AttemptAdopted(Event, frozen=True, tag="attempt_adopted"):
    """Another supervisor took over a live attempt."""

    worker: str


class UsageCounted(Event, frozen=True, tag="usage_counted"):
    """What the attempt has used so far, all its answers together; told again whenever it has
    grown."""

    usage: Usage


class SessionPinned(Event, frozen=True, tag="session_pinned"):
    """The conversation's id is known and stored."""

    session_id: str


class SessionConfirmed(Event, frozen=True, tag="session_confirmed"):
    """The conversation stands on disk with this attempt's prompt in it."""

    session_id: str


class SessionRetired(Event, frozen=True, tag="session_retired"):
    """A conversation will never be chosen again."""

    session_id: str
    cause: str


class Compacted(Event, frozen=True, tag="compacted"):
    """The agent made its conversation shorter. `before` and `after` are what it held, in tokens;
    `asked`: perdure had told it to."""

    session_id: str
    before: int
    after: int
    times: int = 1
    asked: bool = False


class NotCompacted(Event, frozen=True, tag="not_compacted"):
    """The agent was told to make its conversation shorter and did not, or not enough."""

    session_id: str
    tokens: int


class Summarised(Event, frozen=True, tag="summarised"):
    """The agent was asked, in the last turn of a conversation, what the next one has to know. An
    empty text: it did not say."""

    session_id: str
    text: str
    usage: Usage = Usage()
    reason: str = ""
    """Why there is no text."""


class RolledOver(Event, frozen=True, tag="rolled_over"):
    """A conversation that is too long gave way to a new one; it stays as it is, and can be forked
    and restored."""

    session_id: str
    tokens: int
    window: int
    cause: str


class SessionExpired(Event, frozen=True, tag="session_expired"):
    """A session's lifetime had passed when the attempt began; `continuation` is what followed."""

    session_id: str
    expired: int
    continuation: str


class SessionsRebuilt(Event, frozen=True, tag="sessions_rebuilt"):
    """Records of conversations were missing in the store and were made again from the attempts and
    the own copies."""

    sessions: tuple[str, ...]


class WorkdirNoted(Event, frozen=True, tag="workdir_noted"):
    """Something that a person should know of the workdir that was made or taken up again, as a
    sentence."""

    note: str


class CopyRestored(Event, frozen=True, tag="copy_restored"):
    """perdure's own copy of a transcript was put back in place."""

    session_id: str
    path: str


class MapGiven(Event, frozen=True, tag="map_given"):
    """The prompt holds a project map. `tokens` is an estimate (UTF-8 bytes / 3); `files` are in it,
    `full` of them with their exports, `left` had no room."""

    tokens: int
    files: int
    full: int
    left: int = 0


class MapMissed(Event, frozen=True, tag="map_missed"):
    """The prompt was to hold a project map, and none could be made; the attempt goes on without."""

    reason: str


class FilesPlanned(Event, frozen=True, tag="files_planned"):
    """Task files of a version are about to be put into the workdir. With many files several of
    these come at once, and a kill before `FilesPlaced` leaves them to be completed."""

    version: int
    files: tuple[FileChange, ...]


class FilesPlaced(Event, frozen=True, tag="files_placed"):
    """All that was planned is in the workdir. `left`: names that were changed meanwhile and stay as
    they are."""

    version: int
    left: tuple[str, ...] = ()


class CheckpointTaken(Event, frozen=True, tag="checkpoint_taken"):
    """Workdir and conversation were saved together. `why`: see `model.Checkpoint`."""

    number: int
    why: str
    commit: str
    changed: int = 0
    untracked: int = 0
    left_out: int = 0


PUBLISH = "publish"
"""`why` of a checkpoint that was taken, but could not be uploaded."""


class CheckpointMissed(Event, frozen=True, tag="checkpoint_missed"):
    """A checkpoint was due and could not be taken, or uploaded; the attempt goes on."""

    why: str
    reason: str


class CopyMissed(Event, frozen=True, tag="copy_missed"):
    """perdure's own copy of the conversation could not be brought up to it; the attempt goes on."""

    session_id: str
    reason: str


class CheckpointRestored(Event, frozen=True, tag="checkpoint_restored"):
    """A person took workdir and conversation back to a checkpoint, or a run went on from it on
    another host."""

    number: int
    attempt: int
    """The attempt that it was taken in."""
    attempts: int
    """How many there had been when it was restored."""
    undo: int = 0
    """The checkpoint of what was there before; 0 where nothing was."""
    files_only: bool = False
    """The conversation stayed where it was."""
    moved_from: str = ""
    """The host that had the files until then; empty where a person took them back."""
    retired: tuple[int, ...] = ()
    """Versions of the instructions that do not count any more, because they came after the
    checkpoint."""


class RunTakenIn(Event, frozen=True, tag="run_taken_in"):
    """A run came from another machine, with its conversation and its files as a checkpoint had
    them."""

    origin: str
    """The run's id there."""
    number: int
    """The checkpoint's number there."""
    source: str
    dropped: tuple[str, ...] = ()
    """What its spec asked for and this machine does not grant."""


class PlaceLost(Event, frozen=True, tag="place_lost"):
    """Another machine took the run up from the checkpoint store; what is done here is published no
    more."""

    owner: str
    term: int


class DriftSeen(Event, frozen=True, tag="drift_seen"):
    """The workdir was not as the checkpoint has it when the attempt started: somebody else was at
    work there."""

    number: int
    paths: tuple[str, ...] = ()
    """The first of the names that differ."""
    count: int = 0
    head_before: str = ""
    head_now: str = ""
    """Empty, both, where HEAD stands where it stood."""


class TranscriptMended(Event, frozen=True, tag="transcript_mended"):
    """A transcript was mended on a copy, proven, and put in place; what lay there was moved
    aside."""

    session_id: str
    path: str
    aside: list[str]
    edits: list[str]


class CollisionSeen(Event, frozen=True, tag="collision_seen"):
    """Somebody else wrote into, or runs on, the same conversation."""

    session_id: str
    detail: str


class OutputCapped(Event, frozen=True, tag="output_capped"):
    """Output beyond the cap was counted and not read."""

    stream: str
    limit: int


class LeftoversFound(Event, frozen=True, tag="leftovers_found"):
    """Processes of the agent still ran when its turn was over. `count`: of all of them; the first
    are in `processes`."""

    processes: tuple[Leftover, ...]
    count: int = 0


class VerifyStarted(Event, frozen=True, tag="verify_started"):
    """The agent ended its turn, and its work is checked. One without a `VerifyEnded` was
    interrupted, and counts for nothing."""

    command: str
    log: str
    """The file that has all of its output."""


class VerifyEnded(Event, frozen=True, tag="verify_ended"):
    """The verify command ended. `output` is the most telling part of what it said."""

    code: int
    """124: it took too long; 125: it wrote more than is kept."""
    output: str
    command: str = ""
    round: int = 0
    """How many checks of these instructions have failed, this one included."""
    rounds: int = 0
    """How many of them go back to the agent."""
    seconds: float = 0.0
    log: str = ""


class WorkSeen(Event, frozen=True, tag="work_seen"):
    """The workdir was looked at after the attempt, once: what is different from what it began with.
    See `model.work.WorkReport` for the fields."""

    against: str
    files: tuple[FileOfWork, ...] = ()
    file_count: int = 0
    lines_added: int = 0
    lines_removed: int = 0
    commits: tuple[CommitOfWork, ...] = ()
    commit_count: int = 0
    pushed: bool | None = None
    uncommitted: int = 0


class AttemptEnded(Event, frozen=True, tag="attempt_ended"):
    """The attempt's one outcome, and its receipt."""

    outcome: Outcome
    receipt: Receipt | None = None


class RunQueued(Event, frozen=True, tag="run_queued"):
    """The run will be tried again."""

    reason: str
    run_after: int


class RunReassigned(Event, frozen=True, tag="run_reassigned"):
    """A run was handed over to another agent."""

    before: str
    after: str


class SettingsChanged(Event, frozen=True, tag="settings_changed"):
    """What was asked of a run was changed by a person, beside its prompt: limits, its check, its
    model."""

    names: tuple[str, ...]


class CancelRequested(Event, frozen=True, tag="cancel_requested"):
    """Somebody asked for the run to stop."""


class RunReset(Event, frozen=True, tag="run_reset"):
    """A person had the run begin anew: these conversations were retired, and its workdir went to
    the trash."""

    sessions: tuple[str, ...]
    cause: str


class RunResetUndone(Event, frozen=True, tag="run_reset_undone"):
    """The reset was undone: these conversations are live again."""

    sessions: tuple[str, ...]


class RunPutBack(Event, frozen=True, tag="run_put_back"):
    """A run that was off the list is on it again."""


class RunOpened(Event, frozen=True, tag="run_opened"):
    """A person took the run's conversation over, to go on in the agent's own program."""

    session_id: str


class RunTakenBack(Event, frozen=True, tag="run_taken_back"):
    """The person gave it back. `turns`: prompts that came in; `others`: conversations that were
    begun beside it."""

    session_id: str
    turns: int = 0
    others: tuple[str, ...] = ()


class ToldForge(Event, frozen=True, tag="told_forge"):
    """What became of the run stands on the forge: `url` is the comment."""

    url: str


class Published(Event, frozen=True, tag="published"):
    """The run's branch was pushed. `pull` is the pull request for it, 0 where none was asked
    for."""

    branch: str
    commit: str
    pull: int = 0
    url: str = ""


class NotPublished(Event, frozen=True, tag="not_published"):
    """The run's branch was to be pushed and was not; a person is needed."""

    branch: str
    reason: str


class BaseMoved(Event, frozen=True, tag="base_moved"):
    """The agent was told that so many commits came to the branch that its work is based on;
    `commit` is where that stands."""

    branch: str
    commit: str
    commits: int


class ChecksFailed(Event, frozen=True, tag="checks_failed"):
    """The agent was told that checks of a commit of its branch have failed. `rollup`: all that a
    suite, a workflow or a pipeline sums up, whatever its checks are called."""

    commit: str
    checks: tuple[str, ...] = ()
    rollup: bool = False


class Withdrawn(Event, frozen=True, tag="withdrawn"):
    """The work was taken back on the forge: unassigned, a label taken off, or a word to stop."""

    why: str


class CleanedUp(Event, frozen=True, tag="cleaned_up"):
    """The run's work is over and its workdir goes to the trash. `checkpoint`: the one that was
    taken of it; 0 where nothing was there. `needed`: it holds what is in no repository."""

    why: str
    checkpoint: int = 0
    capsule: str = ""
    needed: bool = False


class WorkdirSwept(Event, frozen=True, tag="workdir_swept"):
    """The workdir of a finished run goes to the trash because of its age. `checkpoint`: the one
    that was taken of it; 0 if there is none. `needed`: it holds what is in no repository."""

    why: str
    checkpoint: int = 0
    needed: bool = False


class BroughtBack(Event, frozen=True, tag="brought_back"):
    """What was cleaned up is there again: from the trash, or from a checkpoint."""

    place: str
    checkpoint: int = 0


class WorkdirLost(Event, frozen=True, tag="workdir_lost"):
    """The workdir was gone when an attempt began, and nobody had cleaned it up. `checkpoint`: whose
    files were put back (0: there was none that could be)."""

    place: str
    checkpoint: int = 0
    taken: int = 0
    """When the checkpoint was taken, in ms."""


class RunFinished(Event, frozen=True, tag="run_finished"):
    """The run reached a final state."""

    state: str
    reason: str = ""


RunEvent = (
    RunSubmitted
    | ContextAdded
    | AttemptClaimed
    | AttemptStarted
    | AgentLaunched
    | AgentKeptWarm
    | AgentLetGo
    | AttemptAdopted
    | UsageCounted
    | SessionPinned
    | SessionConfirmed
    | SessionRetired
    | Compacted
    | NotCompacted
    | Summarised
    | RolledOver
    | SessionExpired
    | SessionsRebuilt
    | CopyRestored
    | TranscriptMended
    | MapGiven
    | MapMissed
    | FilesPlanned
    | FilesPlaced
    | CheckpointTaken
    | CheckpointMissed
    | WorkdirNoted
    | CopyMissed
    | CheckpointRestored
    | DriftSeen
    | RunTakenIn
    | PlaceLost
    | CollisionSeen
    | OutputCapped
    | LeftoversFound
    | VerifyStarted
    | VerifyEnded
    | WorkSeen
    | AttemptEnded
    | RunQueued
    | RunReassigned
    | SettingsChanged
    | CancelRequested
    | RunReset
    | RunResetUndone
    | RunPutBack
    | RunOpened
    | RunTakenBack
    | ToldForge
    | Published
    | NotPublished
    | BaseMoved
    | ChecksFailed
    | Withdrawn
    | CleanedUp
    | WorkdirSwept
    | BroughtBack
    | WorkdirLost
    | RunFinished
)

AnyEvent = AgentEvent | RunEvent


class Record(msgspec.Struct, frozen=True):
    """One line of the journal. `seq` grows by one with each record of a store; `attempt` 0 means
    the run itself."""

    run: str
    seq: int
    attempt: int
    at: int
    event: AnyEvent
