"""The interface of a driver: its translations for an agent, and its declarations about the
agent."""

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
    from perdure.rules.transcript_repair import Mended


class Abilities(Struct, frozen=True, kw_only=True):
    """The abilities of a CLI. perdure checks this before it relies on an ability."""

    choose_id: bool
    """The caller may choose the id of a new conversation, before the launch."""
    fork: bool
    name_fork: bool = False
    """The caller may choose the id of a fork before the launch."""
    fork_at: bool = False
    """A fork may leave out the turns after a given one."""
    fork_bound: bool = False
    """A fork can only be made in the directory of its parent."""
    resume_by_path: bool
    """A transcript can be resumed by the path of its file."""
    cwd_bound: bool
    """A conversation can only be resumed from the directory in which it began."""
    cumulative_usage: bool
    """Its token counts add up over the whole conversation."""
    max_prompt_bytes: int
    """Maximum size of a prompt; a longer one is refused before the launch. 0: no known limit."""
    retries_in_a_row: int = 0
    """Number of retries of a request in a row, without an answer, after which the attempt is ended;
    0: the CLI gives up by itself."""
    keeps_budget: bool = False
    """The CLI is given the budget and ends a turn that has spent it, even without a supervisor."""
    compacts: bool = False
    """A launch can set the fill at which the CLI compacts the conversation (see
    `perdure.rules.context_window`)."""
    rewinds: bool = False
    """Records can take earlier ones back. The conversation may therefore continue from an earlier
    point although all bytes are still there, and `prompts` needs the file from its beginning."""
    saves_prompt_first: bool = False
    """The CLI saves the prompt before it reads the history. A saved prompt therefore does not show
    that the conversation could continue."""
    tells_call_ids: bool = True
    """The ids of tool calls in the CLI's output are the same as in its transcripts."""
    temporary_files: tuple[Permissions, ...] = ()
    """The permissions levels at which the CLI can run no command without a directory for temporary
    files (TMPDIR, or /tmp)."""
    sessions: bool = True
    """A later process can go on with a conversation. Without this ability each attempt begins a new
    one and gets the project map."""
    transcripts: bool = True
    """perdure can read the conversations. Without this ability only the agent's own word and its
    replay show whether a conversation went on."""


class Folder(Struct, frozen=True, kw_only=True):
    """One directory of an agent's home: `{value of the variable, else HOME/usual}/inner`. See
    `at`."""

    name: str
    """Name of the directory below `homes/` on a volume. On a volume, the variable is set to that
    path."""
    variable: str
    usual: str
    """The path below HOME if the variable is not set."""
    inner: str = ""
    own: bool = True
    """The variable belongs to the agent alone and moves only this directory, so perdure may set
    it."""
    beside: tuple[str, ...] = ()
    """Files in HOME that belong to the directory. They are inside it if the variable is set."""
    stays: tuple[str, ...] = ()
    """Patterns (fnmatch, of paths below the directory) of files that are never moved: locks,
    sockets."""
    index: tuple[str, ...] = ()
    """Patterns of files that contain the directory's own path. The agent makes them again if they
    are missing."""

    def root(self, environ: Mapping[str, str]) -> Path:
        """Return the value of the variable in this environment, or its default."""
        return Path(environ.get(self.variable) or Path(environ.get("HOME") or "/", self.usual))

    def at(self, environ: Mapping[str, str]) -> Path:
        """Return the directory's path for a program with this environment."""
        return self.root(environ) / self.inner


class Home(Struct, frozen=True, kw_only=True):
    """The directories of an agent's home, so that it can be kept on a volume."""

    folders: tuple[Folder, ...]
    programs: tuple[str, ...]
    """Names of the agent's process: the file name of the program, or of its script."""


class Prompt(Struct, frozen=True):
    """One prompt of a person (or of perdure) in a transcript."""

    text: str


class Spoken(Struct, frozen=True):
    """One thing said in a conversation, by a person (or perdure) or by the agent."""

    by_agent: bool
    text: str


class Retention(Struct, frozen=True):
    """The clean-up that a CLI does by itself when it is started without perdure."""

    days: float
    """Age in days, since the last write, from which conversations are removed."""
    setting: str
    """The setting that switches the clean-up off, and the place of that setting."""


class Archive(Protocol):
    """The database in which a CLI keeps all conversations, if they are not files of their own. An
    archive only reads the database; the CLI's own commands change it."""

    def read(self, home: Path, session_id: str) -> bytes | None:
        """Return one conversation as lines, or None. While the conversation only grows, an earlier
        result is the beginning of a later one. `AgentDriver.prompts` can parse it, and `restore`
        can restore the conversation from it."""
        ...

    def find(self, home: Path, mark: str) -> str:
        """Return the id of the conversation that the launch with this mark opened, or an empty
        string. Used for an agent that was killed before it reported the id."""
        ...

    def unheard(self, piece: bytes) -> Sequence[AgentEvent]:
        """Return the events that the conversation shows and the agent's output did not: tool calls
        that began and never ended. `piece` is a part of the conversation, read after the agent's
        end."""
        ...

    def cut_off(self, content: bytes, since: int) -> Reply | None:
        """Return an estimate of the answer that the end of the agent cut off before its usage was
        written; None if there is none. `content` is the whole conversation, and the answer began
        after its first `since` bytes."""
        ...

    def moved(self, copy: bytes, directory: Path) -> bytes:
        """Return an own copy from elsewhere in the form in which `read` will return it after a
        `restore` in this directory."""
        ...

    def settled(self, row: Mapping[str, Any]) -> str:
        """Return the text of one row of `read` once the CLI does not change it any more. Empty
        before that, and for a row without text. The row of a message gets some text once the
        message gets no more parts."""
        ...

    def removal(self, program: Program, home: Path, session_id: str) -> Command | None:
        """Return the command that removes the conversation, so that `restore` can replace it; None
        if something else would be lost with it."""
        ...

    def restore(self, program: Program, session_id: str, copy: bytes) -> Command:
        """Return the command that restores an own copy, to be run in the workdir. It changes no
        other conversation. Raises ValueError for a bad id, and for a copy of something else."""
        ...


class Heard(Struct, frozen=True, kw_only=True):
    """The state of a kept agent in its current turn, from the lines of its output."""

    over: bool = False
    """Whether the turn has ended."""
    busy: bool = False
    """Whether something is running in the background that may begin a turn by itself."""
    mark: str = ""
    """A text that the transcript contains as soon as the turn is completely written there. Empty if
    the output has not shown such a text; the turn is then not taken as saved."""


class Warm(Protocol):
    """Lets one process of a CLI serve several attempts. Pure."""

    def command(self, launch: Launch) -> Command | None:
        """Return the command whose process carries out the launch and then continues to read
        prompts. The process ends by itself when its input is closed and its turn is over. `stdin`
        is the first prompt; a later turn gets that of its own launch. Returns None if this launch
        needs a process of its own. Raises ValueError for a bad id."""
        ...

    def hear(self, line: bytes, so_far: Heard) -> Heard:
        """Return the state after one more line of stdout. Never raises."""
        ...


@runtime_checkable
class Untold(Protocol):
    """An optional interface, for drivers whose agent's output omits denied calls and questions.
    These are then read from the transcript."""

    def untold(self, content: bytes) -> Sequence[AgentEvent]:
        """Return the denied calls and the questions since the newest prompt of a transcript.
        Pure."""
        ...


class OpenRequest(Struct, frozen=True, kw_only=True):
    """A request to the model whose answer the agent has not recorded."""

    added: int = 0
    """Estimate of the growth of the conversation since the last recorded answer, in tokens."""
    model: str = ""
    """Empty: not known."""


@runtime_checkable
class TellsRequests(Protocol):
    """An optional interface, for drivers whose agent's output does not show when a request is sent
    to the model. Open requests are then read from the transcript."""

    def open_request(self, content: bytes) -> OpenRequest | None:
        """Return the request that was under way when the agent ended, from a piece of a transcript;
        None if there was none. Pure."""
        ...


@runtime_checkable
class TellsRefusals(Protocol):
    """An optional interface, for drivers whose agent says which step of a turn it refused, and
    whose conversations cannot be read."""

    def refused_to_open(self, ended: TurnEnded) -> bool:
        """Return whether the agent answered the request to open its conversation with an error.
        Pure."""
        ...


@runtime_checkable
class GoesOn(Protocol):
    """An optional interface, for drivers whose agent may silently continue after it reported the
    end of a turn. Their conversations are in an archive."""

    def goes_on(self, content: bytes) -> bool:
        """Return whether a conversation ends with a message that the agent will still answer.
        Pure."""
        ...


@runtime_checkable
class Asks(Protocol):
    """An optional interface, for drivers whose agent can be allowed a single call by a person. A
    launch with `answers` lets such a call run, once."""

    def may_ask(self, spec: TaskSpec, version: str) -> bool:
        """Return whether a call of this run can be allowed later, with this version of the CLI.
        Pure."""
        ...

    def open_calls(self, output: bytes, directory: Path, transcript: bytes) -> Sequence[OpenCall]:
        """Return the calls that did not run because a permission or an answer was missing. They are
        read from the end of the agent's output, or from its transcript, which only a driver that is
        `Untold` is given. Reads the run's directory of requests."""
        ...


@runtime_checkable
class Parks(Asks, Protocol):
    """An optional interface, for drivers whose CLI can end a turn with a call that waits for a
    person, and run the same call in a later process."""

    def answered(self, content: bytes, calls: Sequence[str]) -> bool:
        """Return whether a piece of a transcript has the results of these calls. Pure."""
        ...


@runtime_checkable
class TakesMessages(Protocol):
    """An optional interface, for drivers whose CLI can be given a message while its turn runs. A
    launch with `messages` takes those that are placed in this directory, in order and each once
    (see `perdure.engine.attempt.messages`)."""

    def messages(self, content: bytes) -> Sequence[str]:
        """Return what came into the turns of a piece of a transcript in this way, in order. One
        text may have several messages. Pure."""
        ...


class AgentDriver(Protocol):
    """Translates between perdure and one agent CLI. It starts nothing, decides nothing and stores
    nothing.

    A method may read the file system only if its docstring says so. Otherwise it is a pure function
    of its arguments.
    """

    name: str
    abilities: Abilities
    variables: tuple[str, ...]
    """Patterns (fnmatch) of the user's environment variables that are meant for this agent and are
    passed to it."""
    archive: Archive | None
    """None if each conversation is a file of its own. Otherwise conversations are found here;
    `transcript` and `place` find none."""
    warm: Warm | None
    """None if a process serves only one turn."""

    def locate(self, environ: Mapping[str, str]) -> Program:
        """Return the native program, never a wrapper of it. Reads PATH. Raises AgentMissing, with a
        hint on how to install the program."""
        ...

    def home(self, environ: Mapping[str, str]) -> Path:
        """Return the directory in which the CLI keeps its conversations, by the CLI's own variable
        or its default."""
        ...

    def refuse(self, launch: Launch) -> str:
        """Return a sentence if this launch cannot work (such as a prompt that the CLI would take
        for a command), otherwise an empty string."""
        ...

    def command(self, launch: Launch) -> Command:
        """Return the command that carries out the launch. It sets again all flags that the CLI
        forgets on resume."""
        ...

    def parse(self, line: bytes) -> Sequence[AgentEvent]:
        """Return the events in one line of stdout (without newline). Never raises: an unknown line
        is Unrecognised."""
        ...

    def outcome(self, exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
        """Return how the attempt ended, from its exit and its events (`Said` and tool events may be
        left out)."""
        ...

    def transcript(self, home: Path, session_id: str) -> Path | None:
        """Return the conversation's file, or None. Reads the file system."""
        ...

    def place(self, home: Path, session_id: str, cwd: Path, copy: Path) -> Path:
        """Return the path to which an own copy must be written so that a resume by id finds it."""
        ...

    def belongings(self, transcript: Path) -> Sequence[Path]:
        """Return the directories beside the transcript that belong to the same conversation. Reads
        the file system."""
        ...

    def prompts(self, transcript: bytes) -> Sequence[Prompt]:
        """Return the prompts in a transcript (or in a piece of one that begins at a line), without
        the CLI's own additions. Unreadable lines are skipped."""
        ...

    def conversations(self, home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
        """Return the conversations on disk, also those that perdure did not start: the newest
        `limit` by last write, or the one with the id `only`. Long transcripts are not read whole.
        Reads the file system; never raises."""
        ...

    def spoken(self, transcript: bytes) -> Sequence[Spoken]:
        """Return the prompts and the agent's texts in a transcript (or in a piece of one), in
        order, so that a person can search them. Tools are left out."""
        ...

    def parent(self, transcript: bytes) -> str:
        """Return the id of the parent, if the transcript of a fork does not repeat the parent's
        conversation; otherwise an empty string."""
        ...

    def mend(self, copy: bytes, session_id: str, name: str = "", complaint: str = "") -> Mended:
        """Return the damage of a transcript and, if the transcript can be repaired, new bytes with
        a log of every change. Pure. `name`: the file's name, which may contain facts that the
        content lost; `complaint`: the agent's message when it refused the conversation."""
        ...

    def remains(self, home: Path, session_id: str) -> Sequence[Path]:
        """Return every file that belongs to the conversation by its name, also those too damaged
        for `transcript` to find. The first is the one that a resume would use. Reads the file
        system."""
        ...

    def retention(self, home: Path) -> Retention | None:
        """Return the clean-up that the CLI does by itself when it is started without perdure; None
        if there is none. Reads the user's settings."""
        ...

    def replies(self, transcript: bytes) -> Sequence[Reply]:
        """Return the usage of each of the model's replies in a transcript (or in a piece of one
        that begins at a line). A reply may occur several times, each time with the counts known at
        that moment. Empty if the CLI does not write usage. Unreadable lines are skipped."""
        ...

    def total(self, transcript: bytes) -> Usage:
        """Return the CLI's own running total in the transcript; zero if its counts are not
        cumulative."""
        ...

    def fill(self, transcript: bytes) -> Fill:
        """Return the size of the newest request in a transcript, the number of compactions and, if
        the CLI writes them, the model and its window. Unreadable lines are skipped."""
        ...

    def loads(self, transcript: bytes, bases: Sequence[bytes] = ()) -> Loaded | None:
        """Return the items that a resume would show to the model from the transcript as it is now:
        only those that the CLI loads, in its order. None if that is not known for this CLI.

        The argument `bases` has the contents of the files that the method `bases` returns. Pure;
        never raises. Unreadable lines are skipped, as the CLI does. Call it through
        `transcripts.loaded`.
        """
        return None

    def damaged(self, transcript: bytes) -> Sequence[tuple[int, int]]:
        """Return the lines of a transcript that the CLI cannot have written as they are: the offset
        in bytes at which each begins, and the one at which it ends, without the line end. A record
        at the end that a kill cut off does not count. Pure; never raises. Call it through
        `transcripts.damaged`."""
        return ()

    def bases(self, home: Path, transcript: bytes) -> Sequence[Path]:
        """Return the files that this transcript continues without repeating them, nearest first:
        for a fork, or for a conversation that was rewound. Reads the file system."""
        return ()

    def by_hand(self, launch: Launch) -> Command:
        """Return the command with which a person continues the conversation in the agent's own
        program, in the launch's directory."""
        ...

    def writers(self, home: Path, session_id: str) -> Sequence[int]:
        """Return the ids of the live processes that have this conversation open, according to the
        CLI's own records. Reads the file system."""
        ...
