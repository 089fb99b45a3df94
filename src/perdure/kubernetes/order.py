"""The order: the document in which the operator tells a pod which attempt to perform. Pure.

The operator encodes it into a ConfigMap (`encode`). The pod reads it from the directory where the
ConfigMap is mounted (`read`):

    order.json            this document
    contexts/{version}    the text of one version of the instructions
    files/{number}        the task files that come with the newest version

A text that comes from the TaskRun or from a ConfigMap is the copy that the operator made when it
first processed this version. A text that comes from a Secret is the Secret's present content, which
the operator never reads.

Anyone who may write ConfigMaps can write an order. Types, bounds and consistency are therefore
checked before use. An invalid order raises UsageError with the field's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NoReturn

import msgspec

from perdure.errors import UsageError
from perdure.model import OnEdit, OutcomeKind, TaskSpec
from perdure.model.codec import resolved
from perdure.model.requests import AnswerKind
from perdure.rules.requests import ID_LENGTH, ID_LETTERS

VERSION = 1
FILE = "order.json"
CONTEXTS = "contexts"
FILES = "files"
"""Directory that contains the task files. Each file's name is its number, from 0."""
LONGEST = 1 << 20
"""Maximum size of an order in bytes. A ConfigMap cannot hold more."""
MOST_ATTEMPTS = 100_000
MOST_CONTEXTS = 10_000
MOST_EARLIER = 2_000
MOST_FILES = 100
MOST_ANSWERS = 20
LONGEST_EXPIRY_S = 366 * 86_400.0
HINT = "the operator writes it: check that operator and image have the same version"

UID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")
FROM = re.compile(r"[a-z0-9][a-z0-9.-]{0,252}")
FILE_NAME = re.compile(r"[^\x00-\x1f/=][^\x00-\x1f=]{0,399}")
REQUEST_ID = re.compile(f"[{ID_LETTERS}]{{{ID_LENGTH}}}")
URL = re.compile(r"(?:file|s3|gs|az|azure|abfs|abfss)://[^\s@?]{1,2000}")


class Earlier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An earlier attempt, as the operator recorded it."""

    number: int
    outcome: OutcomeKind
    detail: str = ""


class ResumeOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the conversation of the run's first attempt begins. `Auto`: perdure finds the task's
    conversation. `Fresh`: a new conversation. `Session`: the conversation with the given id.
    `Fork`: a copy of another run's conversation and files."""

    mode: Literal["Auto", "Fresh", "Session", "Fork"] = "Auto"
    session_id: str = ""
    from_: str = msgspec.field(default="", name="from")
    """Name of the TaskRun whose stored state contains the conversation; empty if it is this
    TaskRun."""


class AnswerOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a person to a request of an earlier attempt."""

    number: int
    id: str
    """Short id of the request. It depends on the call that the person was shown."""
    answer: AnswerKind
    words: str = ""
    by: str = ""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """The order for one attempt of a TaskRun. `contexts` are the version numbers of the
    instructions, oldest first."""

    version: int = VERSION
    run: str
    """Uid of the TaskRun."""
    name: str
    """Name of the run in the pod's database; `name_of` derives it from the TaskRun's name."""
    attempt: int
    attempts_allowed: int
    spec: TaskSpec
    """The task. Its prompt is empty, because version 1 of the instructions is the prompt."""
    contexts: tuple[int, ...]
    unlisted: int = 0
    """Number of earlier versions of the instructions that no longer exist in the cluster."""
    earlier: tuple[Earlier, ...] = ()
    resume: ResumeOrder = ResumeOrder()
    files: tuple[str, ...] = ()
    """Paths in the workdir of the task files that come with the newest instructions. The content of
    the first file is in `files/0`, and so on."""
    on_edit: OnEdit = OnEdit.MERGE
    transport: Literal["", "http", "ssh"] = ""
    """Transport that the operator permits for the repository in addition to https. Without it the
    pod uses neither http nor ssh."""
    checkpoints: str = ""
    """URL of the checkpoint store; empty for none."""
    state: Literal["volume", "checkpoints"] = "volume"
    """Where the run's state is kept between attempts. `volume`: on the volume, and also in the
    checkpoint store if one is named. `checkpoints`: only in the checkpoint store."""

    request_expiry_s: float = 0.0
    """Time in seconds that the TaskRun waits for an answer to a request of the agent; 0: the agent
    cannot ask."""
    answers: tuple[AnswerOrder, ...] = ()

    @property
    def run_names(self) -> tuple[str, str]:
        """Return two possible names for the run in a pod's database. The second one is used if the
        volume still has a run of a deleted TaskRun under the first name."""
        return self.name, f"{self.name[:54].rstrip('-')}-{self.run_id[:8]}"

    @property
    def transports(self) -> frozenset[str]:
        """Return the URL schemes that the pod may use to fetch the repository."""
        return frozenset({"https", self.transport} - {""})

    @property
    def run_id(self) -> str:
        """Return the TaskRun's uid in the form of perdure's ids: 32 hexadecimal digits."""
        return self.run.replace("-", "")


def name_of(name: str, uid: str) -> str:
    """Return the name of the run for a TaskRun: the TaskRun's own name if a run may have that name.
    Otherwise it is a cleaned and shortened form of the TaskRun's name, followed by eight digits of
    the uid."""
    if NAME.fullmatch(name):
        return name
    plain = re.sub(r"[^a-z0-9-]", "-", name.lower()).strip("-")[:54].rstrip("-")
    return f"{plain or 'run'}-{uid.replace('-', '')[:8]}"


def encode(order: Order) -> bytes:
    """Return the order as JSON. Raises UsageError if a pod would reject the order."""
    return msgspec.json.encode(_checked(order))


def decode(content: bytes) -> Order:
    """Decode and check an untrusted order. Raises UsageError; its message names the invalid
    field."""
    if len(content) > LONGEST:
        _refuse(f"it has {len(content):,} bytes, and may have {LONGEST:,}")
    try:
        order = msgspec.json.decode(content, type=resolved(Order))
    except msgspec.DecodeError as error:  # msgspec.ValidationError is a subclass of DecodeError.
        _refuse(str(error))
    except (UnicodeDecodeError, RecursionError):
        _refuse("it is not JSON")
    return _checked(order)


def read(get: Callable[[str], bytes]) -> tuple[Order, tuple[str | None, ...]]:
    """Read the order and the texts of its instructions, in the sequence of `contexts`. `get`
    returns the bytes of a file in the order's directory and raises FileNotFoundError if it does not
    exist.

    The text of an older version may be missing, for example because its Secret was deleted; the
    text is then None. Raises UsageError if the newest text is missing or the order is invalid.
    """
    try:
        order = decode(get(FILE))
    except FileNotFoundError:
        _refuse(f"there is no file {FILE}")
    texts: list[str | None] = []
    for version in order.contexts:
        try:
            texts.append(get(f"{CONTEXTS}/{version}").decode())
        except FileNotFoundError:
            texts.append(None)
        except UnicodeDecodeError:
            _refuse(f"the text of contexts/{version} is not UTF-8")
    if texts[-1] is None:
        missing(order.contexts[-1])
    return order, tuple(texts)


def missing(version: int) -> NoReturn:
    """Raise UsageError for a version of the instructions that is needed but missing."""
    _refuse(f"the text of {CONTEXTS}/{version} is missing")


def _checked(order: Order) -> Order:
    """Return the order if it is valid. Raises UsageError if a value is out of bounds or contradicts
    another value."""
    if order.version != VERSION:
        _refuse(f"version: it is {order.version}, and this perdure reads {VERSION}")
    _match("run", UID, order.run, "a uid")
    _match("name", NAME, order.name, "up to 63 lower-case letters, digits and hyphens")
    _within("attempt", order.attempt, MOST_ATTEMPTS)
    _within("attempts_allowed", order.attempts_allowed, MOST_ATTEMPTS)
    if not order.contexts or len(order.contexts) > MOST_CONTEXTS:
        _refuse(f"contexts: expected 1 to {MOST_CONTEXTS}, not {len(order.contexts)}")
    _rising("contexts", order.contexts, 2**31)
    if not 0 <= order.unlisted <= MOST_CONTEXTS:
        _refuse(f"unlisted: {order.unlisted} is not from 0 to {MOST_CONTEXTS}")
    if len(order.earlier) > MOST_EARLIER:
        _refuse(f"earlier: expected at most {MOST_EARLIER}, not {len(order.earlier)}")
    _rising("earlier.number", [each.number for each in order.earlier], order.attempt - 1)
    if len(order.files) > MOST_FILES:
        _refuse(f"files: expected at most {MOST_FILES}, not {len(order.files)}")
    if len(order.answers) > MOST_ANSWERS:
        _refuse(f"answers: expected at most {MOST_ANSWERS}, not {len(order.answers)}")
    for each in order.answers:
        _match("answers.id", REQUEST_ID, each.id, "a request's id")
    if not 0 <= order.request_expiry_s <= LONGEST_EXPIRY_S:
        _refuse(f"request_expiry_s: it is not from 0 to {LONGEST_EXPIRY_S:.0f}")
    for name in order.files:
        _match("files", FILE_NAME, name, "a path in the workdir")
    if order.resume.session_id:
        _match("resume.session_id", SESSION_ID, order.resume.session_id, "a conversation's id")
    if order.resume.from_:
        _match("resume.from", FROM, order.resume.from_, "a TaskRun's name")
    if (order.resume.mode == "Session") != bool(order.resume.session_id):
        _refuse("resume: session_id goes with mode Session, and mode Session needs it")
    if order.resume.mode == "Fork" and not order.resume.from_:
        _refuse("resume: mode Fork needs from")
    if order.resume.mode == "Fork" and order.state != "volume":
        _refuse("resume: mode Fork needs a state on a volume")
    if order.checkpoints:
        _match(
            "checkpoints",
            URL,
            order.checkpoints,
            "file:///directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
        )
    if order.state == "checkpoints" and not order.checkpoints:
        _refuse("state: it is in the checkpoint store, but checkpoints names none")
    for name, value in (
        ("prompt", order.spec.prompt),
        ("here", order.spec.here),
        ("key", order.spec.key),
        ("rule", order.spec.rule),
    ):
        if value:
            _refuse(f"spec.{name}: not supported in a pod")
    return order


def _match(field: str, pattern: re.Pattern[str], text: str, wanted: str) -> None:
    if not pattern.fullmatch(text):
        _refuse(f"{field}: {text[:80]!r} is not {wanted}")


def _within(field: str, number: int, most: int) -> None:
    if not 1 <= number <= most:
        _refuse(f"{field}: {number} is not from 1 to {most}")


def _rising(field: str, numbers: list[int] | tuple[int, ...], most: int) -> None:
    is_rising = all(before < after for before, after in pairwise((0, *numbers)))
    if not is_rising or (numbers and numbers[-1] > most):
        _refuse(
            f"{field}: {', '.join(map(str, numbers[:10]))} are not ascending numbers from 1 to "
            f"at most {most}"
        )


def _refuse(why: str) -> NoReturn:
    raise UsageError(f"the order of this pod cannot be followed: {why}", HINT)
