"""All kinds of events, one struct each, and `Record`: an event with its run, attempt and time.

There are two families. An `AgentEvent` is something that a driver read in an agent's output. A
`RunEvent` is something that perdure did. Both are stored as Records in one journal, from which all
commands, the API and the dashboard read. Names are past participles. Text fields are limited
(`MAX_TEXT`), because the complete raw output is kept in the attempt's directory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import msgspec

from perdure.model import Continuation, FileChange, Outcome, Receipt, Reply, Usage
from perdure.model.work import CommitOfWork, FileOfWork

MAX_TEXT = 16 * 1024
"""Maximum number of characters of agent text in one event. Longer text is cut, and ends with the
number of missing characters."""


class Event(msgspec.Struct, frozen=True, tag_field="kind"):
    """The base class of all events."""


class Leftover(msgspec.Struct, frozen=True):
    """A process that the agent left running when its turn was over."""

    pid: int
    command: str
    """Command line of the process, at most 500 characters."""
    age_s: float
    """Age of the process at the end of the turn, in seconds."""
    became: str = "ended"
    """State of the process after the turn: `ended` or `kept`."""


# --- what an agent said or did ---


class SessionSeen(Event, frozen=True, tag="session_seen"):
    """The agent reported the id of its conversation. If there are several such events, the last one
    counts."""

    session_id: str
    version: str = ""
    model: str = ""
    opened: str = ""
    """How the agent opened the conversation, by its own report: `new`, `loaded` or `resumed`. Set
    only for agents whose transcript cannot be read."""
    replayed: int | None = None
    """Number of prompts, answers and tool calls that perdure knows. The agent replayed all of
    these. Null: there was no replay."""


class ItemsMarked(Event, frozen=True, tag="items_marked"):
    """Hashes of the items of a conversation whose transcript cannot be read. Each is `prompt:`,
    `said:` or `tool:` followed by a hash. A later replay of the conversation must contain all of
    them."""

    session_id: str
    marks: tuple[str, ...]
    ended: bool = False
    """Whether the turn has ended, so that no more hashes of it follow."""


class TurnStarted(Event, frozen=True, tag="turn_started"):
    """The agent started working on a prompt."""


class Said(Event, frozen=True, tag="said"):
    """The agent wrote text for a person."""

    text: str
    aside: bool = False
    """Whether a subagent wrote this text. Such text is not part of the conversation itself."""


class SaidPart(Event, frozen=True, tag="said_part"):
    """A piece of a text that the agent is still writing. The pieces are joined into one `Said`
    event, so the journal never contains this event."""

    text: str


class ToolStarted(Event, frozen=True, tag="tool_started"):
    """The agent called a tool; `summary` is its command or main argument."""

    tool_id: str
    name: str
    summary: str = ""
    aside: bool = False
    """Whether a subagent made the call. Such a call is not part of the conversation itself."""
    hint: str = ""
    """Effect of the tool: `reads`, `edits` (files), `runs` (a shell command) or `destroys`.
    Reported by the agent, or by the tool's server through the agent. Empty: not reported."""


class ToolEnded(Event, frozen=True, tag="tool_ended"):
    """A tool call ended, with a result or an error."""

    tool_id: str
    ok: bool
    summary: str = ""
    aside: bool = False
    """Whether a subagent made the call."""
    code: int | None = None
    """Exit code of a command, if the agent reports it."""


class ToolDenied(Event, frozen=True, tag="tool_denied"):
    """A tool call was denied and did not run. This event follows the call's `ToolStarted`."""

    tool_id: str
    name: str
    summary: str = ""
    """Command or main argument of the call, as in `ToolStarted`."""
    by: str = "permissions"
    """The cause of the denial: `permissions`, `hook` or `sandbox`."""
    reason: str = ""
    """Explanation that the agent got."""
    deferred: bool = False
    """Whether a hook postponed the call instead of denying it. The turn then ended before the call
    could run."""
    aside: bool = False
    """Whether a subagent made the call."""


class QuestionAsked(Event, frozen=True, tag="question_asked"):
    """The agent asked a person a question through a tool, and nobody was there to answer."""

    tool_id: str
    text: str
    options: tuple[str, ...] = ()
    """Answers that the agent offered."""
    settled: bool = False
    """Whether the agent chose an answer by itself and continued."""


class ReplyCut(Event, frozen=True, tag="reply_cut"):
    """An answer of the model ended early."""

    reason: str
    """`max_tokens`, `refusal` or `empty`; for other reasons, the word that the agent used."""
    text: str = ""


class LastWordGiven(Event, frozen=True, tag="last_word_given"):
    """The agent gave its final report in the fixed form that was requested (`last_word`). It is
    only the agent's own account, so it never makes an attempt a success."""

    status: str
    """The agent's status of its work: `done`, `nothing_to_do`, `incomplete` or `blocked`."""
    summary: str
    questions: tuple[str, ...] = ()
    follow_ups: tuple[str, ...] = ()


class HelpersSeen(Event, frozen=True, tag="helpers_seen"):
    """The agent reported how many subagents are running in the background. The agent continues when
    they have ended."""

    running: int


class UsageSeen(Event, frozen=True, tag="usage_seen"):
    """The agent reported its tokens and cost. `cumulative`: the numbers are totals of the whole
    conversation, not of this launch."""

    usage: Usage
    cumulative: bool = False


class ReplySeen(Event, frozen=True, tag="reply_seen"):
    """The usage of one answer of the model so far, as the agent reports it during the turn.

    The journal never contains this event. Instead, it contains the sum of all answers
    (`UsageCounted`), until the agent reports its final numbers (`UsageSeen`).
    """

    reply: Reply


class RequestSeen(Event, frozen=True, tag="request_seen"):
    """The agent sent a request to its model. The journal never contains this event. If the agent is
    killed before it reports anything of the answer, the usage of the request is estimated."""


class ContextSeen(Event, frozen=True, tag="context_seen"):
    """The agent reported how full the conversation is. `tokens` is the size of a request (0: not
    reported). `window` is the size of the model's window (0: not reported)."""

    tokens: int = 0
    window: int = 0
    model: str = ""
    compacted: bool = False
    """Whether the agent has just compacted the conversation. `tokens` is then the size after the
    compaction."""


class RetrySeen(Event, frozen=True, tag="retry_seen"):
    """The agent repeats a failed request by itself."""

    status: int | None = None
    detail: str = ""


class LimitSeen(Event, frozen=True, tag="limit_seen"):
    """The agent reached a usage limit. `until` is the time (ms) at which the limit ends, if the
    agent reported one."""

    detail: str
    until: int | None = None


class WritesLost(Event, frozen=True, tag="writes_lost"):
    """The agent reported that it could not save its conversation."""

    detail: str


class TurnEnded(Event, frozen=True, tag="turn_ended"):
    """The agent reported the end of its turn. `facts` are the fields that the driver's classifier
    reads, as text."""

    ok: bool
    text: str = ""
    turns: int = 0
    facts: dict[str, str] = {}


class Unrecognised(Event, frozen=True, tag="unrecognised"):
    """A line of the agent's output that the driver does not know. It is kept and has no other
    effect."""

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


# --- what perdure did ---


class RunSubmitted(Event, frozen=True, tag="run_submitted"):
    """A run was accepted."""


class ContextAdded(Event, frozen=True, tag="context_added"):
    """The run got new instructions. `message`: they were sent to the running attempt."""

    version: int
    message: bool = False


class MessageDelivered(Event, frozen=True, tag="message_delivered"):
    """A message was given to the agent's CLI. `how`: into the running `turn`, at the `boundary`
    where the turn was about to end, or with the `prompt` of the next attempt."""

    version: int
    how: str


class MessageReceived(Event, frozen=True, tag="message_received"):
    """A message was found in the conversation, so the model has received it."""

    version: int


class AttemptClaimed(Event, frozen=True, tag="attempt_claimed"):
    """A worker claimed the next attempt."""

    worker: str


class AttemptStarted(Event, frozen=True, tag="attempt_started"):
    """perdure decided how the attempt starts. This is stored before anything is launched."""

    continuation: Continuation


class AgentLaunched(Event, frozen=True, tag="agent_launched"):
    """The agent's process is running. `turn` is the number of the turn in this process. If it is 2
    or more, the process was kept from an earlier attempt."""

    pid: int
    turn: int = 1
    notes: tuple[str, ...] = ()
    """Changes that perdure made to the user's arguments for the agent."""


class AgentKeptWarm(Event, frozen=True, tag="agent_kept_warm"):
    """The agent's process was kept for the next attempt. `memory` is the resident memory of the
    process and its descendants, in bytes."""

    pid: int
    turn: int
    memory: int = 0


class AgentLetGo(Event, frozen=True, tag="agent_let_go"):
    """The agent's process was not kept for the next attempt, although it should have been."""

    pid: int
    turn: int
    reason: str


class AttemptAdopted(Event, frozen=True, tag="attempt_adopted"):
    """Another supervisor took over a running attempt."""

    worker: str


class UsageCounted(Event, frozen=True, tag="usage_counted"):
    """The total usage of all answers in the attempt so far. This event is written again whenever
    the total has grown."""

    usage: Usage


class SessionPinned(Event, frozen=True, tag="session_pinned"):
    """The conversation's id became known and was stored."""

    session_id: str


class SessionConfirmed(Event, frozen=True, tag="session_confirmed"):
    """The transcript on disk contains this attempt's prompt."""

    session_id: str


class SessionRetired(Event, frozen=True, tag="session_retired"):
    """A conversation was retired: it will never be used again."""

    session_id: str
    cause: str


class Compacted(Event, frozen=True, tag="compacted"):
    """The agent compacted its conversation. `before` and `after` are its length in tokens. `asked`:
    perdure had requested the compaction."""

    session_id: str
    before: int
    after: int
    times: int = 1
    asked: bool = False


class NotCompacted(Event, frozen=True, tag="not_compacted"):
    """The agent was told to compact its conversation, but it did not, or not enough."""

    session_id: str
    tokens: int


class Summarised(Event, frozen=True, tag="summarised"):
    """In the last turn of a conversation, the agent was asked for a summary for the next
    conversation. If `text` is empty, it gave none."""

    session_id: str
    text: str
    usage: Usage = Usage()
    reason: str = ""
    """Reason why there is no text; empty if there is one."""


class RolledOver(Event, frozen=True, tag="rolled_over"):
    """A conversation became too long, and a new one replaced it. The old one is unchanged, and can
    be forked and restored."""

    session_id: str
    tokens: int
    window: int
    cause: str


class SessionExpired(Event, frozen=True, tag="session_expired"):
    """A session's lifetime had passed when the attempt began. `continuation` says how the attempt
    started."""

    session_id: str
    expired: int
    continuation: str


class SessionsRebuilt(Event, frozen=True, tag="sessions_rebuilt"):
    """The store lacked session records. They were rebuilt from the attempts and from perdure's own
    copies of the transcripts."""

    sessions: tuple[str, ...]


class WorkdirNoted(Event, frozen=True, tag="workdir_noted"):
    """A note for people about the workdir that was made or reused. `note` is one sentence."""

    note: str


class CopyRestored(Event, frozen=True, tag="copy_restored"):
    """The agent's transcript was replaced with perdure's own copy of it."""

    session_id: str
    path: str


class MapGiven(Event, frozen=True, tag="map_given"):
    """The prompt contains a project map. `tokens` is the map's estimated size (UTF-8 bytes / 3).
    `files` is the number of files in the map. `full` of them are listed with their exports. `left`
    is the number of files that did not fit into the map."""

    tokens: int
    files: int
    full: int
    left: int = 0


class MapMissed(Event, frozen=True, tag="map_missed"):
    """The prompt should have contained a project map, but the map could not be made. The attempt
    continues without it."""

    reason: str


class FilesPlanned(Event, frozen=True, tag="files_planned"):
    """Task files of one version of the instructions are about to be written to the workdir. A long
    list is split over several events. If perdure is killed before `FilesPlaced`, the next attempt
    completes the plan."""

    version: int
    files: tuple[FileChange, ...]


class FilesPlaced(Event, frozen=True, tag="files_placed"):
    """All planned task files are in the workdir. `left` names files that changed after the plan was
    made, so perdure did not write them."""

    version: int
    left: tuple[str, ...] = ()


class CheckpointTaken(Event, frozen=True, tag="checkpoint_taken"):
    """Workdir and conversation were saved together. `model.Checkpoint` explains the values of
    `why`."""

    number: int
    why: str
    commit: str
    changed: int = 0
    untracked: int = 0
    left_out: int = 0


PUBLISH = "publish"
"""`why` of a `CheckpointMissed` event for a checkpoint that was taken but could not be uploaded."""


class CheckpointMissed(Event, frozen=True, tag="checkpoint_missed"):
    """A checkpoint was due, but could not be taken or uploaded. The attempt continues."""

    why: str
    reason: str


class CopyMissed(Event, frozen=True, tag="copy_missed"):
    """perdure's own copy of the conversation could not be updated. The attempt continues."""

    session_id: str
    reason: str


class CheckpointRestored(Event, frozen=True, tag="checkpoint_restored"):
    """Workdir and conversation were restored from a checkpoint: by a person, or because the run
    continued on another host."""

    number: int
    attempt: int
    """The attempt during which the checkpoint was taken."""
    attempts: int
    """The number of attempts that the run had at the time of the restore."""
    undo: int = 0
    """Number of the checkpoint with the state before the restore; 0 if there was nothing to
    save."""
    files_only: bool = False
    """Whether the conversation was left unchanged and only files were restored."""
    moved_from: str = ""
    """Host that had the files before; empty if a person restored them."""
    retired: tuple[int, ...] = ()
    """Versions of the instructions that are newer than the checkpoint and no longer count."""


class RunTakenIn(Event, frozen=True, tag="run_taken_in"):
    """This machine took over a run from another machine, with the conversation and files of a
    checkpoint."""

    origin: str
    """The run's id on the other machine."""
    number: int
    """The checkpoint's number on the other machine."""
    source: str
    dropped: tuple[str, ...] = ()
    """Parts of the run's spec that were removed, because this machine does not allow them."""


class PlaceLost(Event, frozen=True, tag="place_lost"):
    """Another machine took over the run from the checkpoint store. Work on this machine is no
    longer published."""

    owner: str
    term: int


class DriftSeen(Event, frozen=True, tag="drift_seen"):
    """When the attempt started, the workdir differed from the last checkpoint. Something other than
    perdure's agents had changed it."""

    number: int
    paths: tuple[str, ...] = ()
    """Names of the first files that differ."""
    count: int = 0
    head_before: str = ""
    head_now: str = ""
    """Commit of HEAD when the attempt started. `head_before` is the commit of HEAD at the
    checkpoint. Both are empty if HEAD is unchanged."""


class TranscriptMended(Event, frozen=True, tag="transcript_mended"):
    """A broken transcript was repaired. The repaired copy was tested with the agent and then
    replaced the transcript. The replaced files were moved aside."""

    session_id: str
    path: str
    aside: list[str]
    edits: list[str]


class CollisionSeen(Event, frozen=True, tag="collision_seen"):
    """Another program wrote into the same conversation, or is running with it."""

    session_id: str
    detail: str


class OutputCapped(Event, frozen=True, tag="output_capped"):
    """The agent wrote a longer line of output than the cap allows. The rest was counted but not
    read."""

    stream: str
    limit: int


class LeftoversFound(Event, frozen=True, tag="leftovers_found"):
    """Processes that the agent had started were still running when its turn was over. `count` is
    their number; `processes` describes the first ones."""

    processes: tuple[Leftover, ...]
    count: int = 0


class VerifyStarted(Event, frozen=True, tag="verify_started"):
    """The agent ended its turn, and the verify command started. If no `VerifyEnded` follows, the
    check was interrupted and does not count."""

    command: str
    log: str
    """Path of the file with the complete output of the check."""


class VerifyEnded(Event, frozen=True, tag="verify_ended"):
    """The verify command ended. `output` is an excerpt of its output."""

    code: int
    """Exit code. 124: the check took too long; 125: its output exceeded the limit."""
    output: str
    command: str = ""
    round: int = 0
    """Number of failed checks for this version of the instructions, including this one."""
    rounds: int = 0
    """Maximum number of failed checks that are sent back to the agent, for each version of the
    instructions."""
    seconds: float = 0.0
    log: str = ""


class WorkSeen(Event, frozen=True, tag="work_seen"):
    """After the attempt, perdure compared the workdir with its state at the beginning of the
    attempt. This happens once per attempt. The fields are those of `model.work.WorkReport`."""

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
    """The attempt ended. The event has its outcome and its receipt."""

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
    """A person or a program requested to cancel the run."""


class RunReset(Event, frozen=True, tag="run_reset"):
    """A person reset the run. The conversations `sessions` were retired, and the workdir was moved
    to the trash."""

    sessions: tuple[str, ...]
    cause: str


class RunResetUndone(Event, frozen=True, tag="run_reset_undone"):
    """The reset was undone. The conversations `sessions` can be used again."""

    sessions: tuple[str, ...]


class RunPutBack(Event, frozen=True, tag="run_put_back"):
    """A run that had been removed from the list of runs was restored."""


class RequestMade(Event, frozen=True, tag="request_made"):
    """The agent made a request to a person, and the run waits for the answer. `request` is
    `approval` or `question`."""

    number: int
    request: str
    tool: str


class RequestAnswered(Event, frozen=True, tag="request_answered"):
    """A request was answered with `allow`, `deny` or `text`, by a person or by a saved rule."""

    number: int
    answer: str
    by: str = ""
    words: str = ""
    rule: str = ""
    """Description of the saved rule that answered; empty if a person answered."""


class RequestGiven(Event, frozen=True, tag="request_given"):
    """An attempt got the answer to a request. If `parked`, the call itself still waits in the
    conversation, and is run or refused there. If not, the prompt contains the answer."""

    number: int
    answer: str
    parked: bool = False


class RequestSuperseded(Event, frozen=True, tag="request_superseded"):
    """An open request was closed, or an answer that may not have been used was canceled, because
    something else happened to the run."""

    number: int
    reason: str


class RunOpened(Event, frozen=True, tag="run_opened"):
    """A person took over the run's conversation, to continue it in the agent's own program."""

    session_id: str


class RunTakenBack(Event, frozen=True, tag="run_taken_back"):
    """The person gave the conversation back to perdure. `turns` is the number of prompts that were
    added. `others` are conversations that the person began in addition. `rewound`: the person
    removed the newest part of the conversation."""

    session_id: str
    turns: int = 0
    others: tuple[str, ...] = ()
    rewound: bool = False


class ToldForge(Event, frozen=True, tag="told_forge"):
    """The result of the run was reported to the forge. `url` is the address of the comment."""

    url: str


class Published(Event, frozen=True, tag="published"):
    """The run's branch was pushed. `pull` is the number of its pull request; 0 if none was
    requested."""

    branch: str
    commit: str
    pull: int = 0
    url: str = ""


class NotPublished(Event, frozen=True, tag="not_published"):
    """The run's branch was not pushed although it should have been. A person has to decide."""

    branch: str
    reason: str


class BaseMoved(Event, frozen=True, tag="base_moved"):
    """The agent was told that the base branch of its work has new commits. `commits` is their
    number, `commit` the newest one."""

    branch: str
    commit: str
    commits: int


class ChecksFailed(Event, frozen=True, tag="checks_failed"):
    """The agent was told that checks of a commit on its branch have failed. `rollup`: the failure
    is that of a whole suite, workflow or pipeline, not of a single check."""

    commit: str
    checks: tuple[str, ...] = ()
    rollup: bool = False


class Withdrawn(Event, frozen=True, tag="withdrawn"):
    """The work was withdrawn on the forge: the agent was unassigned, a label was removed, or a
    comment told it to stop."""

    why: str


class CleanedUp(Event, frozen=True, tag="cleaned_up"):
    """The run's work is over, and its workdir is about to be moved to the trash. `checkpoint` is
    the number of the checkpoint that saves the workdir; 0 if there is none. `needed`: the workdir
    contains work that is in no repository."""

    why: str
    checkpoint: int = 0
    capsule: str = ""
    needed: bool = False


class WorkdirSwept(Event, frozen=True, tag="workdir_swept"):
    """The workdir of a finished run is about to be moved to the trash because of its age.
    `checkpoint` is the number of the checkpoint that saves the workdir; 0 if there is none.
    `needed`: the workdir contains work that is in no repository."""

    why: str
    checkpoint: int = 0
    needed: bool = False


class BroughtBack(Event, frozen=True, tag="brought_back"):
    """A workdir that had been cleaned up was restored from the trash or from a checkpoint."""

    place: str
    checkpoint: int = 0


class WorkdirLost(Event, frozen=True, tag="workdir_lost"):
    """The workdir was missing when an attempt began, although perdure had not removed it.
    `checkpoint` is the number of the checkpoint whose files were restored; 0 if none could be
    restored."""

    place: str
    checkpoint: int = 0
    taken: int = 0
    """Time at which the checkpoint was taken, in ms."""


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
_AGENT_EVENTS: tuple[type, ...] = get_args(AgentEvent)


def is_agent_event(event: AnyEvent) -> bool:
    """Return whether an event came from the agent's output and not from perdure."""
    return isinstance(event, _AGENT_EVENTS)


class Record(msgspec.Struct, frozen=True):
    """One line of the journal. `seq` grows by one with each record in a store. `attempt` is 0 if
    the event belongs to the run itself."""

    run: str
    seq: int
    attempt: int
    at: int
    event: AnyEvent
    actor: str = ""
    """The actor: `perdure` itself, `local:USER@HOST`, `token:NAME`, `forge:SOURCE/LOGIN`,
    `operator:NAME`. Empty in records of older versions, and of runs from other machines."""


def events_of(records: Iterable[Record], attempt: int) -> list[AnyEvent]:
    """Return the events of one attempt, in the order of the records."""
    return [record.event for record in records if record.attempt == attempt]
