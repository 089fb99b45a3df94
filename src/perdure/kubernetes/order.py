"""The order: the operator's request to the pod of one attempt. Pure.

The operator writes it into a ConfigMap (`encode`). The pod reads it from a directory (`read`, with
a function that reads one file):

    order.json            this document
    contexts/{version}    the text of each version of the instructions, as it was first seen, or as
                          it is in its Secret
    files/{number}        the task files that come with the newest version

Anyone who may write ConfigMaps can write an order, so it is checked before use: types, bounds, and
that its parts agree. An invalid order raises UsageError with the field's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, NoReturn

import msgspec

from perdure.errors import UsageError
from perdure.model import OnEdit, OutcomeKind, TaskSpec
from perdure.model.codec import resolved

VERSION = 1
FILE = "order.json"
CONTEXTS = "contexts"
FILES = "files"
"""Directory of the contents of task files, each under its number from 0."""
LONGEST = 1 << 20
"""Maximum size of an order in bytes; a ConfigMap holds no more."""
MOST_ATTEMPTS = 100_000
MOST_CONTEXTS = 10_000
MOST_EARLIER = 2_000
MOST_FILES = 100
HINT = "the operator writes it: check that operator and image have the same version"

UID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")
FROM = re.compile(r"[a-z0-9][a-z0-9.-]{0,252}")
FILE_NAME = re.compile(r"[^\x00-\x1f/=][^\x00-\x1f=]{0,399}")
URL = re.compile(r"(?:file|s3|gs|az|azure|abfs|abfss)://[^\s@?]{1,2000}")


class Earlier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An earlier attempt, as the operator knows it."""

    number: int
    outcome: OutcomeKind
    detail: str = ""


class ResumeOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The conversation with which the run's first attempt begins: the one that perdure finds for
    the task, a new one, the one with this id, or a copy of another run's conversation together with
    a copy of its files."""

    mode: Literal["Auto", "Fresh", "Session", "Fork"] = "Auto"
    session_id: str = ""
    from_: str = msgspec.field(default="", name="from")
    """Name of the TaskRun whose state has the conversation; empty for this TaskRun."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a TaskRun. `contexts` are the versions of the instructions in order, the
    newest last."""

    version: int = VERSION
    run: str
    """The TaskRun's uid."""
    name: str
    """The run's name, which `name_of` derives from the TaskRun's."""
    attempt: int
    attempts_allowed: int
    spec: TaskSpec
    """The task without its prompt, which is the first of the contexts."""
    contexts: tuple[int, ...]
    unlisted: int = 0
    """Number of earlier versions of the instructions that no longer exist in the cluster."""
    earlier: tuple[Earlier, ...] = ()
    resume: ResumeOrder = ResumeOrder()
    files: tuple[str, ...] = ()
    """Names in the workdir of the task files that come with the newest of the contexts; the content
    of the first is in `files/0`."""
    on_edit: OnEdit = OnEdit.MERGE
    transport: Literal["", "http", "ssh"] = ""
    """The transport of the repository that the operator permitted; empty if it needs no
    permission. Nothing is fetched by http or ssh without it."""
    checkpoints: str = ""
    """URL of the checkpoint store; empty for none."""
    state: Literal["volume", "checkpoints"] = "volume"
    """Where the run's state is kept between attempts: on the volume (and in the checkpoint store,
    if one is named), or only in the checkpoint store."""

    @property
    def run_names(self) -> tuple[str, str]:
        """Return the name of the run in a pod's database, and the one that it gets if a run that
        outlived a TaskRun of this name has it."""
        return self.name, f"{self.name[:54].rstrip('-')}-{self.run_id[:8]}"

    @property
    def transports(self) -> frozenset[str]:
        """Return the schemes by which the pod may fetch the repository."""
        return frozenset({"https", self.transport} - {""})

    @property
    def run_id(self) -> str:
        """The TaskRun's uid in the form of perdure's ids: 32 hexadecimal digits."""
        return self.run.replace("-", "")


def name_of(name: str, uid: str) -> str:
    """Return the run's name for a TaskRun: the same name if it is valid, or else as much of it as
    fits, with eight digits of the uid."""
    if NAME.fullmatch(name):
        return name
    plain = re.sub(r"[^a-z0-9-]", "-", name.lower()).strip("-")[:54].rstrip("-")
    return f"{plain or 'run'}-{uid.replace('-', '')[:8]}"


def encode(order: Order) -> bytes:
    """Return the order as JSON. Raises UsageError if no pod would accept it."""
    return msgspec.json.encode(_checked(order))


def decode(content: bytes) -> Order:
    """Decode an untrusted order. Raises UsageError, which names the field and the problem."""
    if len(content) > LONGEST:
        _refuse(f"it has {len(content):,} bytes, and may have {LONGEST:,}")
    try:
        order = msgspec.json.decode(content, type=resolved(Order))
    except msgspec.DecodeError as error:  # includes msgspec's ValidationError
        _refuse(str(error))
    except (UnicodeDecodeError, RecursionError):
        _refuse("it is not JSON")
    return _checked(order)


def read(get: Callable[[str], bytes]) -> tuple[Order, tuple[str | None, ...]]:
    """Return the order in a directory and the texts of its contexts. `get` returns a file's bytes
    and raises FileNotFoundError.

    The text of an older version is None if it is missing, as when its Secret is gone. Raises
    UsageError if the newest text is missing or the order is invalid."""
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
    """Return the order if its values are valid. Raises UsageError for values that are out of bounds
    or do not agree."""
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
    if any(after <= before for before, after in zip((0, *numbers), numbers, strict=False)) or (
        numbers and numbers[-1] > most
    ):
        _refuse(
            f"{field}: {', '.join(map(str, numbers[:10]))} do not rise from 1 to at most {most}"
        )


def _refuse(why: str) -> NoReturn:
    raise UsageError(f"the order of this pod cannot be followed: {why}", HINT)
