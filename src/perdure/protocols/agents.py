"""What an agent's driver translates, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from perdure.lateclass import dataclass
from perdure.model import (
    Command,
    Conversation,
    Exit,
    Fill,
    Launch,
    Loaded,
    Outcome,
    Program,
    Reply,
    Usage,
)

if TYPE_CHECKING:
    from perdure.model.events import AgentEvent
    from perdure.rules.transcript_repair import Mended


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a CLI can do; perdure asks before it relies on it."""

    choose_id: bool
    """The caller may choose the id of a new conversation, before the launch."""
    fork: bool
    name_fork: bool = False
    """The caller may choose the id of a fork, before the launch."""
    fork_at: bool = False
    """A fork may leave out what came after a turn."""
    fork_bound: bool = False
    """A fork can only be made in the directory of its parent."""
    resume_by_path: bool
    """A transcript can be resumed by naming its file."""
    cwd_bound: bool
    """A conversation can only be resumed from the directory in which it began."""
    cumulative_usage: bool
    """Its token counts run on over the whole conversation."""
    max_prompt_bytes: int
    """Longer prompts are refused before the launch; 0 means no limit is known."""
    retries_in_a_row: int = 0
    """An attempt is ended when the agent has asked again so often without an answer; 0: the CLI
    gives up by itself."""
    keeps_budget: bool = False
    """The CLI is told the budget and ends a turn that has spent it, also without a supervisor."""
    compacts: bool = False
    """A launch can say at which fill the CLI is to compact the conversation (see
    `perdure.rules.context_window`)."""
    rewinds: bool = False
    """Its records can take earlier ones back: that the bytes are still there does not say that the
    conversation goes on from them, and `prompts` needs the file from its beginning."""
    tells_call_ids: bool = True
    """The ids of tool calls in its output are those of its transcripts."""
    sessions: bool = True
    """A conversation can be gone on with by a later process. Without, each attempt begins a new one
    and is given the project map."""
    transcripts: bool = True
    """Its conversations can be read. Without, the agent's own word and its replay say whether one
    went on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """One directory of an agent's home. It lies at `{variable's value, else HOME/usual}/inner`; see
    `at`."""

    name: str
    """Below `homes/` on a volume: what the variable is set to there."""
    variable: str
    usual: str
    """Below HOME, where the variable is not set."""
    inner: str = ""
    own: bool = True
    """The variable is the agent's own: it moves this directory and nothing else, so perdure may set
    it."""
    beside: tuple[str, ...] = ()
    """Files in HOME that belong to the directory, and lie inside of it where the variable is
    set."""
    stays: tuple[str, ...] = ()
    """Patterns (fnmatch, of paths below the directory) of what must never travel: locks,
    sockets."""
    index: tuple[str, ...] = ()
    """Patterns of what names the directory's own place, and is made anew by the agent where it is
    missing."""

    def root(self, environ: Mapping[str, str]) -> Path:
        """What the variable is, or stands for, in this environment."""
        return Path(environ.get(self.variable) or Path(environ.get("HOME") or "/", self.usual))

    def at(self, environ: Mapping[str, str]) -> Path:
        """Where it lies for a program with this environment."""
        return self.root(environ) / self.inner


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """What belongs to an agent's home, so that it can be kept on a volume."""

    folders: tuple[Folder, ...]
    programs: tuple[str, ...]
    """How the agent's process is called: the name of its file, or of the script that it is."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a person (or of perdure) as it stands in a transcript."""

    text: str


@dataclass(frozen=True, slots=True)
class Spoken:
    """One thing said in a conversation, by a person (or perdure) or by the agent."""

    by_agent: bool
    text: str


@dataclass(frozen=True, slots=True)
class Retention:
    """A CLI's own clean-up, where perdure does not start it."""

    days: float
    """Older conversations are removed, counted from the last write."""
    setting: str
    """What switches it off, and where."""


class Archive(Protocol):
    """Where a CLI keeps all conversations together (a database), so that none of them is a file.
    Reads, and never writes."""

    def read(self, home: Path, session_id: str) -> bytes | None:
        """One conversation as lines, or None. While it only goes on, what was read before is the
        beginning of what is read now; `AgentDriver.prompts` understands it, and `restore` can make
        it whole again."""
        ...

    def find(self, home: Path, mark: str) -> str:
        """The id of the conversation that the launch with this mark opened, or empty: for an agent
        that was killed before it had told its id."""
        ...

    def unheard(self, piece: bytes) -> Sequence[AgentEvent]:
        """What a piece of a conversation, read after the agent's end, tells of its work and its
        output did not: tools that it began and that never ended."""
        ...

    def moved(self, copy: bytes, directory: Path) -> bytes:
        """An own copy from elsewhere as `read` will tell it after a `restore` in this directory."""
        ...

    def restore(self, program: Program, session_id: str, copy: bytes) -> Command:
        """The process that puts an own copy back, to be run in the workdir. It touches no other
        conversation. Raises ValueError for a bad id, and for a copy of something else."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What the lines of a kept agent add up to, since it was given its turn."""

    over: bool = False
    """Its turn has come to its end."""
    busy: bool = False
    """Something goes on in the background, which may begin a turn by itself."""
    mark: str = ""
    """Words that stand in the transcript as soon as all that was said does; empty where the prompt
    alone tells."""


class Warm(Protocol):
    """How one process of a CLI serves several attempts. Pure."""

    def command(self, launch: Launch) -> Command | None:
        """The process that carries out the launch, goes on reading prompts, and ends by itself when
        its input is closed and its turn is over. `stdin` is its first prompt; a later turn is given
        that of its own launch. None where this launch needs a process for itself. Raises ValueError
        for a bad id."""
        ...

    def hear(self, line: bytes, so_far: Heard) -> Heard:
        """One more line of stdout. Never raises."""
        ...


@runtime_checkable
class Untold(Protocol):
    """What a driver has besides, whose agent's output is silent on denied calls and questions."""

    def untold(self, content: bytes) -> Sequence[AgentEvent]:
        """The denied calls and the questions since the newest prompt of a transcript. Pure."""
        ...


class AgentDriver(Protocol):
    """Translates between perdure and one agent CLI. It starts nothing, decides nothing and keeps
    nothing.

    It may read the file system where it says so; all else is a pure function of its arguments.
    """

    name: str
    abilities: Abilities
    variables: tuple[str, ...]
    """Patterns (fnmatch) of the user's environment variables that are this agent's own and are
    passed to it."""
    archive: Archive | None
    """None where each conversation is a file of its own; else `transcript` and `place` find
    nothing, and this does."""
    warm: Warm | None
    """None where a process has one turn."""

    def locate(self, environ: Mapping[str, str]) -> Program:
        """The native program (never its wrapper). Reads PATH. Raises AgentMissing with how to
        install it."""
        ...

    def home(self, environ: Mapping[str, str]) -> Path:
        """Where the CLI keeps its conversations, by the CLI's own variable or its default."""
        ...

    def refuse(self, launch: Launch) -> str:
        """One sentence if this launch cannot work (a prompt that the CLI would take for a command),
        else empty."""
        ...

    def command(self, launch: Launch) -> Command:
        """The process that carries out the launch. All flags that the CLI forgets on resume are set
        again."""
        ...

    def parse(self, line: bytes) -> Sequence[AgentEvent]:
        """One line of stdout (no newline) as events. Never raises: what it does not know is
        Unrecognised."""
        ...

    def outcome(self, exit: Exit, events: Sequence[AgentEvent]) -> Outcome:
        """How the attempt ended, from the events that matter (`Said` and tool events may be left
        out) and the exit."""
        ...

    def transcript(self, home: Path, session_id: str) -> Path | None:
        """The file in which the conversation lies, or None. Reads the file system."""
        ...

    def place(self, home: Path, session_id: str, cwd: Path, copy: Path) -> Path:
        """Where an own copy must be put so that a resume by id finds it."""
        ...

    def belongings(self, transcript: Path) -> Sequence[Path]:
        """Directories beside the transcript that belong to the same conversation. Reads the file
        system."""
        ...

    def prompts(self, transcript: bytes) -> Sequence[Prompt]:
        """The prompts in a transcript (or in a piece of one that begins at a line), without the
        CLI's own additions. Unreadable lines are passed over."""
        ...

    def conversations(self, home: Path, limit: int, only: str = "") -> Sequence[Conversation]:
        """The conversations that lie on disk, also those that perdure knows nothing of: the newest
        `limit` by their last write, or the one with this id. Cheap: long transcripts are not read
        whole. Reads the file system; never raises."""
        ...

    def spoken(self, transcript: bytes) -> Sequence[Spoken]:
        """What was said in a transcript (or in a piece of one), in order, for a person who looks
        for it. Tools are left out."""
        ...

    def parent(self, transcript: bytes) -> str:
        """The conversation that a fork goes on from, where the fork's transcript does not repeat
        it; else empty."""
        ...

    def mend(self, copy: bytes, session_id: str, name: str = "", complaint: str = "") -> Mended:
        """What is wrong with a transcript and, where it can be mended, new bytes with a log of
        every change. Pure. `name`: the file's name, which may tell what its content lost;
        `complaint`: what the agent said when it refused the conversation."""
        ...

    def remains(self, home: Path, session_id: str) -> Sequence[Path]:
        """Every file that by its name belongs to the conversation, the one that a resume takes
        first, also those that are too damaged for `transcript` to know them. Reads the file
        system."""
        ...

    def retention(self, home: Path) -> Retention | None:
        """The CLI's own clean-up in launches that are not perdure's; None where it has none. Reads
        the user's settings."""
        ...

    def replies(self, transcript: bytes) -> Sequence[Reply]:
        """What each of the model's replies has used, as a transcript (or a piece of one that begins
        at a line) has it; a reply may come several times, each time with all that was known then.
        Nothing where the CLI writes no usage down. Unreadable lines are passed over."""
        ...

    def total(self, transcript: bytes) -> Usage:
        """The CLI's own running total as the transcript has it; zero where its counts are not
        cumulative."""
        ...

    def fill(self, transcript: bytes) -> Fill:
        """What the newest request in a transcript carried, with the model and its window where the
        CLI writes them down, and how often the conversation was compacted. Unreadable lines are
        passed over."""
        ...

    def loads(self, transcript: bytes, bases: Sequence[bytes] = ()) -> Loaded | None:
        """What a resume would show to the model, from a transcript as it is now: only what the CLI
        loads, in its order. None where that is not known of this CLI. `bases`: the contents of what
        `bases` names. Pure; unreadable lines are passed over, as the CLI does; never raises. Called
        by way of `transcripts.loaded`."""
        return None

    def bases(self, home: Path, transcript: bytes) -> Sequence[Path]:
        """The files whose beginning this transcript goes on from without repeating it, the nearest
        first: of a fork, or of a conversation that was rewound. Reads the file system."""
        return ()

    def by_hand(self, launch: Launch) -> Command:
        """What a person types to go on with the conversation in the agent's own program, in the
        launch's directory."""
        ...

    def writers(self, home: Path, session_id: str) -> Sequence[int]:
        """Live processes that have this conversation open, by the CLI's own register. Reads the
        file system."""
        ...
