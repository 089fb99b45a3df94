"""The interface of a driver, which translates between perdure and one agent CLI and declares what
the CLI can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from msgspec import Struct

from perdure.model import (
    Command,
    Conversation,
    Exit,
    Fill,
    Launch,
    Loaded,
    Outcome,
    Permissions,
    Program,
    Reply,
    TaskSpec,
    Usage,
)

if TYPE_CHECKING:
    from perdure.model.events import AgentEvent, TurnEnded
    from perdure.model.requests import OpenCall
    from perdure.rules.transcript_repair import RepairResult


class Abilities(Struct, frozen=True, kw_only=True):
    """The abilities of a CLI. perdure relies on an ability only if it is declared here."""

    choose_id: bool
    """Whether the caller may choose the id of a new conversation before the launch."""
    fork: bool
    name_fork: bool = False
    """Whether the caller may choose the id of a fork before the launch."""
    fork_at: bool = False
    """Whether a fork can begin at an earlier turn of its parent, and leave out the later turns."""
    fork_bound: bool = False
    """Whether a fork can only be made in its parent's directory."""
    resume_by_path: bool
    """Whether a conversation can be resumed by the path of its transcript."""
    cwd_bound: bool
    """Whether a conversation can only be resumed from the directory in which it began."""
    cumulative_usage: bool
    """Whether the reported token counts are running totals of the whole conversation."""
    max_prompt_bytes: int
    """Maximum size of a prompt, in bytes; 0 if no limit is known. perdure refuses a longer prompt
    before the launch."""
    retries_in_a_row: int = 0
    """Number of times in a row that the CLI may retry an unanswered request before perdure ends the
    attempt; 0 if the CLI gives up by itself."""
    keeps_budget: bool = False
    """Whether the CLI is given the budget, and itself ends a turn that has spent the budget, even
    without a supervisor."""
    compacts: bool = False
    """Whether a launch can set the number of tokens at which the CLI compacts the conversation (see
    `perdure.rules.context_window`)."""
    rewinds: bool = False
    """Whether a record in the transcript can undo earlier ones. The conversation may then continue
    from an earlier point although the later records are still in the file. So `prompts` must be
    given the file from its beginning."""
    saves_prompt_first: bool = False
    """Whether the CLI saves the prompt before it reads the history. If so, a saved prompt does not
    prove that the CLI could continue the conversation."""
    tells_call_ids: bool = True
    """Whether the CLI's output and its transcripts use the same ids for tool calls."""
    temporary_files: tuple[Permissions, ...] = ()
    """Permission levels at which the CLI needs a writable directory for temporary files (TMPDIR, or
    /tmp) to run commands."""
    private_directory: str = ""
    """Another directory that the CLI needs at the levels in `temporary_files`, even if TMPDIR is
    set. It must belong to the user with mode 0700; the CLI creates it. `{uid}` stands for the
    user's number. Empty: the CLI needs none."""
    sessions: bool = True
    """Whether a later process can continue a conversation. If not, each attempt begins a new
    conversation and gets the project map."""
    transcripts: bool = True
    """Whether perdure can read the conversations. If not, only the agent's own report and its
    replay of earlier messages show whether a conversation continued."""


class Folder(Struct, frozen=True, kw_only=True):
    """One directory of an agent's home. If the environment variable `variable` is set, the
    directory is `inner` below its value. Otherwise the directory is `inner` below `usual` in
    HOME."""

    name: str
    """Name of the directory below `homes/` on a volume. If the home is on a volume, `variable` is
    set to that directory's path."""
    variable: str
    usual: str
    """Path below HOME that is used if `variable` is not set."""
    inner: str = ""
    own: bool = True
    """Whether only this agent uses `variable`, so that perdure may set it."""
    extra_files: tuple[str, ...] = ()
    """Names of files in HOME that belong to this directory of the home. If `variable` is set, the
    agent keeps these files inside the directory instead."""
    excluded: tuple[str, ...] = ()
    """Patterns (fnmatch, of paths below the directory) of files that are never moved, such as locks
    and sockets."""
    index: tuple[str, ...] = ()
    """Patterns of files in which the agent stores the directory's own path. Such a file is useless
    after a move. The agent recreates it if it is missing."""

    def root(self, environ: Mapping[str, str]) -> Path:
        """Return the value of `variable` in this environment, or the default path if the variable
        is not set."""
        return Path(environ.get(self.variable) or Path(environ.get("HOME") or "/", self.usual))

    def at(self, environ: Mapping[str, str]) -> Path:
        """Return the path of the directory that a program with this environment uses."""
        return self.root(environ) / self.inner


class Home(Struct, frozen=True, kw_only=True):
    """The directories of an agent's home, listed so that the home can be kept on a volume."""

    folders: tuple[Folder, ...]
    programs: tuple[str, ...]
    """Names by which the agent's process is recognized: the file name of the program, or of its
    script."""


class Prompt(Struct, frozen=True):
    """One prompt from a person or from perdure in a transcript."""

    text: str


class SpokenMessage(Struct, frozen=True):
    """One message of a conversation. It comes from the agent or, as a prompt, from a person or
    perdure."""

    by_agent: bool
    text: str


class Retention(Struct, frozen=True):
    """The rule by which a CLI deletes old conversations when it is started without perdure."""

    days: float
    """Number of days without a write after which the CLI deletes a conversation."""
    setting: str
    """Name of the setting that turns the deletion off, and the place where to set it."""


class Archive(Protocol):
    """The database in which a CLI keeps all conversations, for CLIs that do not write a file for
    each. This interface only reads the database; it is changed only by commands of the CLI."""

    def read(self, home: Path, session_id: str) -> bytes | None:
        """Return one conversation as lines, or None if there is none. While the conversation only
        grows, an earlier result is a prefix of a later one. `AgentDriver.prompts` can parse the
        result, and `restore` can restore the conversation from it."""
        ...

    def find(self, home: Path, mark: str) -> str:
        """Return the id of the conversation that a launch began; empty if there is none. `mark` is
        that launch's `Launch.mark`. Used for an agent that was killed before it reported the id."""
        ...

    def unreported_events(self, piece: bytes) -> Sequence[AgentEvent]:
        """Return the events that are in the conversation but not in the agent's output: tool calls
        that began and never ended. `piece` is a part of the conversation, read after the agent's
        end."""
        ...

    def cut_off(self, content: bytes, since: int) -> Reply | None:
        """Estimate the usage of the last reply if the agent ended before it wrote that usage.
        Otherwise return None. `content` is the whole conversation; only a reply after its first
        `since` bytes counts."""
        ...

    def relocated(self, copy: bytes, directory: Path) -> bytes:
        """Return the bytes that `read` will return after this copy of a conversation has been
        restored in `directory`. The copy may be from another directory or another machine."""
        ...

    def settled(self, row: Mapping[str, Any]) -> str:
        """Return the part of a row from `read` that the CLI will not change any more; empty if
        there is none. As long as a message can get more parts, the result for its row is empty."""
        ...

    def removal(self, program: Program, home: Path, session_id: str) -> Command | None:
        """Return the command that deletes the conversation, so that `restore` can replace it.
        Returns None if the deletion would destroy something else too."""
        ...

    def restore(self, program: Program, session_id: str, copy: bytes) -> Command:
        """Return the command that restores a conversation from perdure's own copy, to be run in the
        workdir. The command changes no other conversation. Raises ValueError for an invalid id, and
        for bytes that are no copy of this conversation."""
        ...


class TurnStatus(Struct, frozen=True, kw_only=True):
    """The state of a kept agent in its current turn, as read from the lines of its output."""

    over: bool = False
    """Whether the turn has ended."""
    busy: bool = False
    """Whether a background task of the agent is running. Such a task may begin a turn by itself."""
    mark: str = ""
    """A text that appears in the transcript once the turn is completely written. Empty if the
    output has not contained such a text; the turn is then treated as not saved."""


class Warm(Protocol):
    """An interface for drivers of CLIs whose process can serve several attempts. Pure."""

    def command(self, launch: Launch) -> Command | None:
        """Return the command whose process carries out the launch and then waits for further
        prompts. The process ends when its input is closed and its turn is over. The command's
        `stdin` is the first prompt. A later turn gets the `stdin` of its own launch. Returns None
        if this launch needs a process of its own. Raises ValueError for an invalid id."""
        ...

    def update_status(self, line: bytes, so_far: TurnStatus) -> TurnStatus:
        """Return the state after one more line of stdout; `so_far` is the state before it. Never
        raises."""
        ...


@runtime_checkable
class ReadsDenials(Protocol):
    """An optional interface, for drivers whose agent's output omits denied calls and questions.
    These are then read from the transcript."""

    def denials_in_transcript(self, content: bytes) -> Sequence[AgentEvent]:
        """Return the denied calls and the questions since the newest prompt of a transcript.
        Pure."""
        ...


class OpenRequest(Struct, frozen=True, kw_only=True):
    """A request to the model that was sent, and whose answer is not in the transcript."""

    added: int = 0
    """Estimated number of tokens that were added to the conversation since the last recorded
    answer."""
    model: str = ""
    """Name of the model; empty if unknown."""


@runtime_checkable
class TellsRequests(Protocol):
    """An optional interface, for drivers whose agent's output does not show when a request is sent
    to the model. Open requests are then read from the transcript."""

    def open_request(self, content: bytes) -> OpenRequest | None:
        """Find in a part of a transcript the model request that was still open when the agent
        ended, and return it. Return None if there was none. Pure."""
        ...


@runtime_checkable
class CountsSubagents(Protocol):
    """An optional interface, for drivers whose agent leaves its subagents out of its own usage
    figures, and stores their conversations."""

    def subagent_replies(self, home: Path, session_id: str, since: int) -> Sequence[Reply]:
        """Return the usage of each reply to the subagents of a conversation, and to their own
        subagents. `since`: return only replies from this time on, in ms. Reads the file system.
        Raises OSError."""
        ...


@runtime_checkable
class TellsRefusals(Protocol):
    """An optional interface, for drivers whose conversations cannot be read, and whose agent
    reports which step of a turn it refused."""

    def refused_to_open(self, ended: TurnEnded) -> bool:
        """Return whether the agent answered with an error when it was asked to open its
        conversation. Pure."""
        ...


@runtime_checkable
class ContinuesSilently(Protocol):
    """An optional interface, for drivers whose agent may continue without output after it reported
    the end of a turn. The agent's conversations are in an archive."""

    def will_continue(self, content: bytes) -> bool:
        """Return whether a conversation ends with a message that the agent will still answer.
        Pure."""
        ...


@runtime_checkable
class Asks(Protocol):
    """An optional interface, for drivers of agents that let a person allow a single call. If a
    launch has `answers`, each approved call may run one time."""

    def may_ask(self, spec: TaskSpec, version: str) -> bool:
        """Return whether a person can allow a call of this run later, with this version of the CLI.
        Pure."""
        ...

    def open_calls(self, output: bytes, directory: Path, transcript: bytes) -> Sequence[OpenCall]:
        """Return the calls that did not run because a permission or an answer was missing. They are
        read from the end of the agent's output and from `directory`, the run's directory of
        requests. A driver that is a `ReadsDenials` also reads such calls from `transcript`, which
        is empty for other drivers."""
        ...


@runtime_checkable
class Parks(Asks, Protocol):
    """An optional interface, for drivers whose CLI can end a turn with a call that waits for a
    person, and run the same call in a later process."""

    def answered(self, content: bytes, calls: Sequence[str]) -> bool:
        """Return whether a part of a transcript contains the results of these calls. Pure."""
        ...


@runtime_checkable
class TakesMessages(Protocol):
    """An optional interface, for drivers whose CLI accepts messages while its turn runs. A launch
    with `messages` reads the messages from that directory, in order and each once (see
    `perdure.engine.attempt.messages`)."""

    def messages(self, content: bytes) -> Sequence[str]:
        """Return the texts that the agent received while its turns ran, in order. `content` is a
        part of a transcript. One text may contain several messages. Pure."""
        ...


class AgentDriver(Protocol):
    """Translates between perdure and one agent CLI. It starts no process, makes no decision and
    stores nothing.

    A method may read the file system only if its docstring says so. Otherwise it is a pure function
    of its arguments.
    """

    name: str
    abilities: Abilities
    variables: tuple[str, ...]
    """Patterns (fnmatch) of the user's environment variables that are passed on to this agent."""
    archive: Archive | None
    """The database of conversations; None if each conversation is a file. If it is set,
    `transcript` and `place` find nothing."""
    warm: Warm | None
    """The interface to the CLI's kept processes; None if a process of the CLI serves only one turn.
    """

    def locate(self, environ: Mapping[str, str]) -> Program:
        """Return the native program, never a wrapper script. Reads PATH. Raises AgentMissing, with
        a hint on how to install the program."""
        ...

    def home(self, environ: Mapping[str, str]) -> Path:
        """Return the directory in which the CLI keeps its conversations: the value of the CLI's own
        variable, or the default."""
        ...

    def refuse(self, launch: Launch) -> str:
        """Return the reason why this launch cannot work, as a sentence; empty if it can. An example
        is a prompt that the CLI would interpret as a command."""
        ...

    def command(self, launch: Launch) -> Command:
        """Return the command that carries out the launch. It repeats all flags that the CLI forgets
        on resume."""
        ...

    def parse(self, line: bytes) -> Sequence[AgentEvent]:
        """Return the events in one line of stdout (without newline). Never raises; an unknown line
        becomes Unrecognised."""
        ...

    def outcome(self, exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
        """Return how the attempt ended, judging by the process's exit and its events. The caller
        may leave out `Said` and tool events."""
        ...

    def transcript(self, home: Path, session_id: str) -> Path | None:
        """Return the path of the conversation's file; None if there is no such file. Reads the file
        system."""
        ...

    def place(self, home: Path, session_id: str, cwd: Path, copy: Path) -> Path:
        """Return the path to which perdure's copy of a transcript must be written, so that the CLI
        finds it when it resumes by id."""
        ...

    def sidecar_files(self, transcript: Path) -> Sequence[Path]:
        """Return the directories next to the transcript that belong to the same conversation. Reads
        the file system."""
        ...

    def prompts(self, transcript: bytes) -> Sequence[Prompt]:
        """Return the prompts in a transcript, or in a part of one that begins at a line. Text that
        the CLI itself added is left out. Unreadable lines are skipped."""
        ...

    def conversations(self, home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
        """Return the conversations on disk, including those that perdure did not start: the `limit`
        most recently written ones, or only the one with the id `only`. Long transcripts are not
        read completely. Reads the file system; never raises."""
        ...

    def messages_of(self, transcript: bytes) -> Sequence[SpokenMessage]:
        """Return the prompts and the agent's texts in a transcript (or in a part of one), in order,
        so that a person can search them. Tool calls are left out."""
        ...

    def parent(self, transcript: bytes) -> str:
        """Return the id of a fork's parent, if the fork's transcript does not repeat the parent's
        conversation; otherwise an empty string."""
        ...

    def repair(
        self, copy: bytes, session_id: str, name: str = "", complaint: str = ""
    ) -> RepairResult:
        """Return the damage of a transcript and, if the transcript can be repaired, the repaired
        bytes with a log of every change. Pure. `name` is the file's name, which may contain facts
        that the content lost. `complaint` is the agent's message when it refused the conversation.
        """
        ...

    def files_of(self, home: Path, session_id: str) -> Sequence[Path]:
        """Return every file whose name shows that it belongs to the conversation, including files
        that are too damaged for `transcript` to find. The first is the one that a resume would use.
        Reads the file system."""
        ...

    def retention(self, home: Path) -> Retention | None:
        """Return the rule by which the CLI deletes old conversations when it is started without
        perdure; None if it deletes none. Reads the user's settings."""
        ...

    def replies(self, transcript: bytes) -> Sequence[Reply]:
        """Return the usage of each of the model's replies in a transcript, or in a part of a
        transcript that begins at the start of a line. A reply may occur several times, each time
        with the counts known at that moment. Empty if the CLI does not record usage. Unreadable
        lines are skipped."""
        ...

    def total(self, transcript: bytes) -> Usage:
        """Return the running total of the usage that the CLI itself wrote in the transcript. Zero
        if its counts are not cumulative."""
        ...

    def fill(self, transcript: bytes) -> Fill:
        """Return the size in tokens of the newest request in a transcript, and the number of
        compactions. Also returns the model and its window, if the CLI records them. Unreadable
        lines are skipped."""
        ...

    def loads(self, transcript: bytes, bases: Sequence[bytes] = ()) -> Loaded | None:
        """Return the items that the model would see after a resume from the transcript as it is
        now. These are only the items that the CLI loads, in its order. None if that is not known
        for this CLI.

        The argument `bases` has the contents of the files that the method `bases` returns. Pure;
        never raises. Unreadable lines are skipped, as the CLI does. Call it through
        `transcripts.loaded`.
        """
        return None

    def damaged(self, transcript: bytes) -> Sequence[tuple[int, int]]:
        """Return the damaged lines of a transcript: lines that the CLI cannot have written in their
        present form. Each is given by the offsets in bytes of its beginning and its end, without
        the line end. An incomplete last record, which a kill may leave, does not count. Pure; never
        raises. Call it through `transcripts.damaged`."""
        return ()

    def bases(self, home: Path, transcript: bytes) -> Sequence[Path]:
        """Return the files whose content this transcript continues without repeating it, nearest
        first. A fork has such files, and so has a rewound conversation. Reads the file system."""
        return ()

    def interactive_command(self, launch: Launch) -> Command:
        """Return the command by which a person continues the conversation in the agent's own
        program, in the launch's directory."""
        ...

    def writers(self, home: Path, session_id: str) -> Sequence[int]:
        """Return the ids of the live processes that have this conversation open, according to the
        CLI's own records. Reads the file system."""
        ...
