"""Everything that can happen, one struct each, and `Record`: an event with its address.

There are two families. An `AgentEvent` is something that a driver read in an agent's output. A
`RunEvent` is something that perdure did. Both are kept as Records in the one journal that every
surface reads. Names are past participles. All fields are small (`MAX_TEXT`), because the raw output
is kept whole in the attempt's directory.
"""

from __future__ import annotations

import msgspec

from perdure.model import Continuation, FileChange, Outcome, Receipt, Reply, Usage
from perdure.model.work import CommitOfWork, FileOfWork

MAX_TEXT = 16 * 1024
"""Maximum number of characters of agent text in one event. Longer text is cut, and says so."""


class Event(msgspec.Struct, frozen=True, tag_field="kind"):
    """The base class of all events."""


class Leftover(msgspec.Struct, frozen=True):
    """A process that the agent left running when its turn was over."""

    pid: int
    command: str
    """Its command line, at most 500 characters."""
    age_s: float
    """Time that the process had been running by then, in seconds."""
    became: str = "ended"
    """Its fate: `ended` or `kept`."""


# --- what an agent said or did
# -------------------------------------------------------------------------------------


class SessionSeen(Event, frozen=True, tag="session_seen"):
    """The agent named its conversation. The last one seen counts."""

    session_id: str
    version: str = ""
    model: str = ""
    opened: str = ""
    """How the agent says that it opened the conversation: `new`, `loaded` or `resumed`. Set only
    for agents whose transcript cannot be read."""
    replayed: int | None = None
    """Number of known prompts, answers and tool calls that the agent replayed, which is all of
    them; null if it replays nothing."""


class ItemsMarked(Event, frozen=True, tag="items_marked"):
    """Marks of the items in a conversation whose transcript cannot be read. A mark is `prompt:`,
    `said:` or `tool:`, followed by a hash. A later replay of the conversation must contain them."""

    session_id: str
    marks: tuple[str, ...]
    ended: bool = False
    """Whether the turn ended, so that these are all of its marks."""


class TurnStarted(Event, frozen=True, tag="turn_started"):
    """The agent started working on a prompt."""


class Said(Event, frozen=True, tag="said"):
    """The agent said something to a person."""

    text: str
    aside: bool = False
    """Whether a helper that the agent started said this. Such text is not part of the conversation
    itself."""


class SaidPart(Event, frozen=True, tag="said_part"):
    """A piece of a text that the agent is still writing. The watcher joins the pieces into one
    `Said`. The journal never contains this event."""

    text: str


class ToolStarted(Event, frozen=True, tag="tool_started"):
    """The agent called a tool; `summary` is its command or main argument."""

    tool_id: str
    name: str
    summary: str = ""
    aside: bool = False
    """Whether a helper that the agent started made the call. Such a call is not part of the
    conversation itself."""
    hint: str = ""
    """The tool's effect: `reads`, `edits` (files), `runs` (a shell command) or `destroys`. It is
    reported by the agent, or by the tool's server through the agent. Empty: not reported."""


class ToolEnded(Event, frozen=True, tag="tool_ended"):
    """A tool call ended."""

    tool_id: str
    ok: bool
    summary: str = ""
    aside: bool = False
    """As in `ToolStarted`."""
    code: int | None = None
    """The exit code of a command, where the agent reports it."""


class ToolDenied(Event, frozen=True, tag="tool_denied"):
    """A tool call was denied and did not run. This event follows the call's `ToolStarted`."""

    tool_id: str
    name: str
    summary: str = ""
    """Its command or main argument, as in `ToolStarted`."""
    by: str = "permissions"
    """The cause of the denial: `permissions`, `hook` or `sandbox`."""
    reason: str = ""
    """The explanation that the agent was given."""
    deferred: bool = False
    """Whether a hook put the call off rather than denied it. The turn then ended before the call
    could run."""
    aside: bool = False
    """As in `ToolStarted`."""


class QuestionAsked(Event, frozen=True, tag="question_asked"):
    """The agent used a tool to ask a person a question, and nobody was there to answer."""

    tool_id: str
    text: str
    options: tuple[str, ...] = ()
    """The answers that the agent offered."""
    settled: bool = False
    """Whether the agent decided by itself and went on working."""


class ReplyCut(Event, frozen=True, tag="reply_cut"):
    """An answer of the model ended early."""

    reason: str
    """`max_tokens`, `refusal`, `empty`, or the agent's own word for the reason."""
    text: str = ""


class LastWordGiven(Event, frozen=True, tag="last_word_given"):
    """The agent gave its last word in the form that was requested (`last_word`). This is the
    agent's own account, and never makes an attempt a success."""

    status: str
    """`done`, `nothing_to_do`, `incomplete` or `blocked`."""
    summary: str
    questions: tuple[str, ...] = ()
    follow_ups: tuple[str, ...] = ()


class HelpersSeen(Event, frozen=True, tag="helpers_seen"):
    """The number of helpers that are running in the background. The agent goes on when they have
    ended."""

    running: int


class UsageSeen(Event, frozen=True, tag="usage_seen"):
    """Tokens and cost that the agent reported. `cumulative`: counted since the conversation began,
    not since this launch."""

    usage: Usage
    cumulative: bool = False


class ReplySeen(Event, frozen=True, tag="reply_seen"):
    """The usage of one answer of the model so far, as the agent reports it during the turn.

    The journal never contains this event. Instead, `UsageCounted` holds the sum until the agent
    reports its final figure (`UsageSeen`).
    """

    reply: Reply


class RequestSeen(Event, frozen=True, tag="request_seen"):
    """The agent has asked its model. The journal never contains this event. If the agent is killed
    before it reports anything of the answer, the usage of the request is estimated."""


class ContextSeen(Event, frozen=True, tag="context_seen"):
    """The fill of the conversation. `tokens` is the size of a request (0: only the window is
    reported). `window` is the size of the model's window (0: not reported)."""

    tokens: int = 0
    window: int = 0
    model: str = ""
    compacted: bool = False
    """Whether the conversation was just compacted; `tokens` is then what is left."""


class RetrySeen(Event, frozen=True, tag="retry_seen"):
    """The agent is repeating a request by itself."""

    status: int | None = None
    detail: str = ""


class LimitSeen(Event, frozen=True, tag="limit_seen"):
    """The agent hit a usage limit. `until` is when it ends, in ms, if the agent named a time."""

    detail: str
    until: int | None = None


class WritesLost(Event, frozen=True, tag="writes_lost"):
    """The agent could not save its conversation."""

    detail: str


class TurnEnded(Event, frozen=True, tag="turn_ended"):
    """The agent reported the end of its turn. `facts` are the fields that the driver's classifier
    reads, as text."""

    ok: bool
    text: str = ""
    turns: int = 0
    facts: dict[str, str] = {}


class Unrecognised(Event, frozen=True, tag="unrecognised"):
    """The driver does not know this line of the agent's output. It is kept, and is never fatal."""

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
    | RequestSeen
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
    """The run got new instructions. `message`: they were told to the running attempt."""

    version: int
    message: bool = False


class MessageDelivered(Event, frozen=True, tag="message_delivered"):
    """The agent's CLI was given a message. `how`: `turn`, `boundary` or `prompt`."""

    version: int
    how: str


class MessageReceived(Event, frozen=True, tag="message_received"):
    """A message is in the conversation, so the model has it."""

    version: int


class AttemptClaimed(Event, frozen=True, tag="attempt_claimed"):
    """A worker took the next attempt."""

    worker: str


class AttemptStarted(Event, frozen=True, tag="attempt_started"):
    """perdure decided how the attempt starts. Nothing is launched before this is stored."""

    continuation: Continuation


class AgentLaunched(Event, frozen=True, tag="agent_launched"):
    """The agent's process is running. `turn` counts the turns of a process: from 2 on it was kept
    from an earlier attempt, and this attempt is its next turn."""

    pid: int
    turn: int = 1
    notes: tuple[str, ...] = ()
    """Changes that perdure made to the user's arguments for the agent."""


class AgentKeptWarm(Event, frozen=True, tag="agent_kept_warm"):
    """The agent's process was kept after the attempt, for the next attempt. `memory` is the
    resident memory of the process and its descendants, in bytes."""

    pid: int
    turn: int
    memory: int = 0


class AgentLetGo(Event, frozen=True, tag="agent_let_go"):
    """The agent's process should have been kept for the next attempt, but was not."""

    pid: int
    turn: int
    reason: str


class AttemptAdopted(Event, frozen=True, tag="attempt_adopted"):
    """Another supervisor took over a running attempt."""

    worker: str


class UsageCounted(Event, frozen=True, tag="usage_counted"):
    """The usage of all answers of the attempt so far. Written again whenever it has grown."""

    usage: Usage


class SessionPinned(Event, frozen=True, tag="session_pinned"):
    """The conversation's id is known and stored."""

    session_id: str


class SessionConfirmed(Event, frozen=True, tag="session_confirmed"):
    """The transcript on disk contains this attempt's prompt."""

    session_id: str


class SessionRetired(Event, frozen=True, tag="session_retired"):
    """A conversation will never be chosen again."""

    session_id: str
    cause: str


class Compacted(Event, frozen=True, tag="compacted"):
    """The agent compacted its conversation: `before` and `after` are its length in tokens. `asked`:
    whether perdure had requested that."""

    session_id: str
    before: int
    after: int
    times: int = 1
    asked: bool = False


class NotCompacted(Event, frozen=True, tag="not_compacted"):
    """The agent was told to compact its conversation, and did not, or not enough."""

    session_id: str
    tokens: int


class Summarised(Event, frozen=True, tag="summarised"):
    """In the last turn of a conversation, the agent was asked for a summary for the next
    conversation. An empty text means that it gave none."""

    session_id: str
    text: str
    usage: Usage = Usage()
    reason: str = ""
    """The reason if there is no text."""


class RolledOver(Event, frozen=True, tag="rolled_over"):
    """A conversation became too long and was replaced by a new one. The old one is unchanged, and
    can be forked and restored."""

    session_id: str
    tokens: int
    window: int
    cause: str


class SessionExpired(Event, frozen=True, tag="session_expired"):
    """A session's lifetime had passed when the attempt began. `continuation` is how the attempt
    started."""

    session_id: str
    expired: int
    continuation: str


class SessionsRebuilt(Event, frozen=True, tag="sessions_rebuilt"):
    """Session records were missing in the store. They were rebuilt from the attempts and perdure's
    own copies of the transcripts."""

    sessions: tuple[str, ...]


class WorkdirNoted(Event, frozen=True, tag="workdir_noted"):
    """Something that a person should know about the workdir that was made or reused, as a
    sentence."""

    note: str


class CopyRestored(Event, frozen=True, tag="copy_restored"):
    """perdure's own copy of a transcript was put back in place."""

    session_id: str
    path: str


class MapGiven(Event, frozen=True, tag="map_given"):
    """The prompt contains a project map. `tokens` is an estimate (UTF-8 bytes / 3). `files` is the
    number of files in the map, `full` the number of those with their exports, and `left` the number
    of files that did not fit."""

    tokens: int
    files: int
    full: int
    left: int = 0


class MapMissed(Event, frozen=True, tag="map_missed"):
    """The prompt was to contain a project map, but none could be made. The attempt goes on without
    it."""

    reason: str


class FilesPlanned(Event, frozen=True, tag="files_planned"):
    """Task files of one version of the instructions are about to be put into the workdir. Many
    files are split over several of these events. If a kill comes before `FilesPlaced`, the next
    attempt completes the plan."""

    version: int
    files: tuple[FileChange, ...]


class FilesPlaced(Event, frozen=True, tag="files_placed"):
    """All planned task files are in the workdir. `left` names the files that were changed meanwhile
    and were left as they are."""

    version: int
    left: tuple[str, ...] = ()


class CheckpointTaken(Event, frozen=True, tag="checkpoint_taken"):
    """Workdir and conversation were saved together. `why` is explained at `model.Checkpoint`."""

    number: int
    why: str
    commit: str
    changed: int = 0
    untracked: int = 0
    left_out: int = 0


PUBLISH = "publish"
"""`why` of a checkpoint that was taken, but could not be uploaded."""


class CheckpointMissed(Event, frozen=True, tag="checkpoint_missed"):
    """A checkpoint was due, but could not be taken or uploaded. The attempt goes on."""

    why: str
    reason: str


class CopyMissed(Event, frozen=True, tag="copy_missed"):
    """perdure's own copy of the conversation could not be updated. The attempt goes on."""

    session_id: str
    reason: str


class CheckpointRestored(Event, frozen=True, tag="checkpoint_restored"):
    """A person restored workdir and conversation from a checkpoint, or a run continued from the
    checkpoint on another host."""

    number: int
    attempt: int
    """The attempt during which the checkpoint was taken."""
    attempts: int
    """The number of attempts of the run when it was restored."""
    undo: int = 0
    """The number of the checkpoint that holds the state before the restore; 0 if there was nothing
    to save."""
    files_only: bool = False
    """Whether only files were restored and the conversation was left as it was."""
    moved_from: str = ""
    """The host that had the files until then; empty if a person restored them."""
    retired: tuple[int, ...] = ()
    """Versions of the instructions that no longer count, because they came after the checkpoint."""


class RunTakenIn(Event, frozen=True, tag="run_taken_in"):
    """A run was taken up from another machine, with the conversation and files of a checkpoint."""

    origin: str
    """The run's id on the other machine."""
    number: int
    """The checkpoint's number on the other machine."""
    source: str
    dropped: tuple[str, ...] = ()
    """Parts of the run's spec that this machine does not allow."""


class PlaceLost(Event, frozen=True, tag="place_lost"):
    """Another machine took up the run from the checkpoint store. Work on this machine is no longer
    published."""

    owner: str
    term: int


class DriftSeen(Event, frozen=True, tag="drift_seen"):
    """When the attempt started, the workdir differed from the last checkpoint: something else had
    changed it."""

    number: int
    paths: tuple[str, ...] = ()
    """The first of the files that differ."""
    count: int = 0
    head_before: str = ""
    head_now: str = ""
    """HEAD at the checkpoint and now. Both are empty if HEAD is unchanged."""


class TranscriptMended(Event, frozen=True, tag="transcript_mended"):
    """A broken transcript was repaired: a repaired copy was proven to work, and was put in its
    place. The files that were there before were moved aside."""

    session_id: str
    path: str
    aside: list[str]
    edits: list[str]


class CollisionSeen(Event, frozen=True, tag="collision_seen"):
    """Something else wrote into the same conversation, or is running on it."""

    session_id: str
    detail: str


class OutputCapped(Event, frozen=True, tag="output_capped"):
    """The agent wrote more output than the cap allows. The rest was counted and not read."""

    stream: str
    limit: int


class LeftoversFound(Event, frozen=True, tag="leftovers_found"):
    """Processes of the agent were still running when its turn was over. `count` is the number of
    all of them; `processes` has the first ones."""

    processes: tuple[Leftover, ...]
    count: int = 0


class VerifyStarted(Event, frozen=True, tag="verify_started"):
    """The agent ended its turn, and the verify command started. Without a `VerifyEnded` the check
    was interrupted, and does not count."""

    command: str
    log: str
    """The file with all output of the check."""


class VerifyEnded(Event, frozen=True, tag="verify_ended"):
    """The verify command ended. `output` is the most telling part of its output."""

    code: int
    """The exit code. 124: the check took too long; 125: its output exceeded the limit."""
    output: str
    command: str = ""
    round: int = 0
    """Number of checks that failed for this version of the instructions, including this one."""
    rounds: int = 0
    """Maximum number of failed checks that go back to the agent."""
    seconds: float = 0.0
    log: str = ""


class WorkSeen(Event, frozen=True, tag="work_seen"):
    """After the attempt, perdure compared the workdir with the state that the attempt began with.
    This happens once in each attempt. The fields are those of `model.work.WorkReport`."""

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
    """The attempt ended, with this outcome and this receipt."""

    outcome: Outcome
    receipt: Receipt | None = None


class RunQueued(Event, frozen=True, tag="run_queued"):
    """The run is queued for another attempt, at `run_after` (ms) at the earliest."""

    reason: str
    run_after: int


class RunReassigned(Event, frozen=True, tag="run_reassigned"):
    """A run was handed over to another agent."""

    before: str
    after: str


class SettingsChanged(Event, frozen=True, tag="settings_changed"):
    """A person changed settings of the run other than its prompt: limits, the check, the model."""

    names: tuple[str, ...]


class CancelRequested(Event, frozen=True, tag="cancel_requested"):
    """A person or a program requested that the run be cancelled."""


class RunReset(Event, frozen=True, tag="run_reset"):
    """A person reset the run: these conversations were retired, and the workdir was moved to the
    trash."""

    sessions: tuple[str, ...]
    cause: str


class RunResetUndone(Event, frozen=True, tag="run_reset_undone"):
    """The reset was undone: these conversations are live again."""

    sessions: tuple[str, ...]


class RunPutBack(Event, frozen=True, tag="run_put_back"):
    """A run that had been removed from the list is on it again."""


class RequestMade(Event, frozen=True, tag="request_made"):
    """The agent asks a person, and the run waits. `request` is `approval` or `question`."""

    number: int
    request: str
    tool: str


class RequestAnswered(Event, frozen=True, tag="request_answered"):
    """A person answered a request: `allow`, `deny` or `text`; or a saved rule did."""

    number: int
    answer: str
    by: str = ""
    words: str = ""
    rule: str = ""
    """The rule that answered, in words; empty: a person did."""


class RequestGiven(Event, frozen=True, tag="request_given"):
    """An attempt was given the answer to a request. `parked`: the call itself waits in the
    conversation and is run or refused there; otherwise the prompt reports the answer."""

    number: int
    answer: str
    parked: bool = False


class RequestSuperseded(Event, frozen=True, tag="request_superseded"):
    """A request is not open any more, because something else happened to the run."""

    number: int
    reason: str


class RunOpened(Event, frozen=True, tag="run_opened"):
    """A person took over the run's conversation, to continue it in the agent's own program."""

    session_id: str


class RunTakenBack(Event, frozen=True, tag="run_taken_back"):
    """The person gave the conversation back. `turns` is the number of prompts that were added.
    `others` are the conversations that were begun beside it. `rewound`: the person removed the
    newest part of the conversation."""

    session_id: str
    turns: int = 0
    others: tuple[str, ...] = ()
    rewound: bool = False


class ToldForge(Event, frozen=True, tag="told_forge"):
    """The forge shows the result of the run: `url` is the comment."""

    url: str


class Published(Event, frozen=True, tag="published"):
    """The run's branch was pushed. `pull` is the number of its pull request, 0 if none was
    requested."""

    branch: str
    commit: str
    pull: int = 0
    url: str = ""


class NotPublished(Event, frozen=True, tag="not_published"):
    """The run's branch should have been pushed, but was not. A person is needed."""

    branch: str
    reason: str


class BaseMoved(Event, frozen=True, tag="base_moved"):
    """The agent was told that the branch that its work is based on has new commits: their number,
    and the newest one (`commit`)."""

    branch: str
    commit: str
    commits: int


class ChecksFailed(Event, frozen=True, tag="checks_failed"):
    """The agent was told that checks of a commit of its branch have failed. `rollup`: whether this
    is the failure of a whole suite, workflow or pipeline, instead of a single check."""

    commit: str
    checks: tuple[str, ...] = ()
    rollup: bool = False


class Withdrawn(Event, frozen=True, tag="withdrawn"):
    """The work was taken back on the forge: unassigned, a label removed, or a command to stop."""

    why: str


class CleanedUp(Event, frozen=True, tag="cleaned_up"):
    """The run's work is over, and its workdir is moved to the trash. `checkpoint` is the one that
    saves the workdir; 0 if there is none. `needed`: the workdir holds work that is in no
    repository."""

    why: str
    checkpoint: int = 0
    capsule: str = ""
    needed: bool = False


class WorkdirSwept(Event, frozen=True, tag="workdir_swept"):
    """The workdir of a finished run is moved to the trash because of its age. `checkpoint` is the
    one that saves the workdir; 0 if there is none. `needed`: the workdir holds work that is in no
    repository."""

    why: str
    checkpoint: int = 0
    needed: bool = False


class BroughtBack(Event, frozen=True, tag="brought_back"):
    """A workdir that had been cleaned up was restored from the trash or from a checkpoint."""

    place: str
    checkpoint: int = 0


class WorkdirLost(Event, frozen=True, tag="workdir_lost"):
    """The workdir was gone when an attempt began, though perdure had not cleaned it up.
    `checkpoint` is the one whose files were restored (0: none could be)."""

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
    | MessageDelivered
    | MessageReceived
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
    | RequestMade
    | RequestAnswered
    | RequestGiven
    | RequestSuperseded
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
    that the event belongs to the run itself."""

    run: str
    seq: int
    attempt: int
    at: int
    event: AnyEvent
    actor: str = ""
    """The actor: `perdure` itself, `local:USER@HOST`, `token:NAME`, `forge:SOURCE/LOGIN`,
    `operator:NAME`. Empty in records of older versions, and of runs from other machines."""
