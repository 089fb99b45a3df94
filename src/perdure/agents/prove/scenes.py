"""The scenes of `perdure prove`. Each scene runs the real program against a scripted model and
answers one or a few rows.

Called by `prove`, each scene with a `Stage` of its own. A scene yields its answers one by one. If a
scene fails, `prove` gives a negative answer to each of its remaining rows.
"""

from __future__ import annotations

import shutil
import string
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from uuid import UUID, uuid4

from msgspec import Struct
from msgspec.structs import replace

from perdure.agents.prove.rows import RowFinding
from perdure.agents.prove.stage import PATIENCE_S, SHORT_S, Stage, StageExit, describe_end, resume
from perdure.agents.transcripts import fingerprint
from perdure.model import Continuation, OutcomeKind, Rung, Start
from perdure.model.events import ItemsMarked, SessionSeen, Unrecognised

Play = Callable[[Stage], Iterator[RowFinding]]

TWO = "say The word is plum.\n---\nsay Plum.\n---\nsay Plum, again."
ASKED, ANSWERED, AGAIN = "tell me a word", "The word is plum.", "which word was it?"


class ProveScene(Struct, frozen=True):
    """A scene, and the script of its model.

    `rows`: ids of the rows that the scene answers. `quick`: whether `--quick` includes the scene.
    `subscription`: whether Claude Code is given a subscription's token.
    """

    rows: tuple[str, ...]
    script: str
    play: Play
    quick: bool = False
    subscription: bool = False


def continuation_finding(row: str, first: StageExit, second: StageExit, *words: str) -> RowFinding:
    """Return the finding for the row. It is positive if the second run continued the conversation
    of the first one, and the model received all of `words` in the second run."""
    if not second.requests:
        return RowFinding(row, False, f"{describe_end(second)}, no request", second.outcome.detail)
    if not second.reached(*words):
        return RowFinding(
            row, False, f"{describe_end(second)}, history missing", second.outcome.detail
        )
    if second.session_id != first.session_id:
        return RowFinding(row, False, "another id comes back", second.session_id)
    return RowFinding(
        row,
        second.ok,
        "same id, whole history" if second.ok else describe_end(second),
        second.outcome.detail,
    )


def first_turn(stage: Stage) -> StageExit:
    """Run the first turn of a conversation that a scene continues. Return its result. Raise Failed
    if it does not succeed."""
    ran = stage.run(ASKED)
    if not ran.ok or not ran.session_id:
        raise Failed(f"the first turn {describe_end(ran)}", ran.outcome.detail)
    return ran


class Failed(Exception):
    """Raised if a scene cannot continue. The text `seen` is the same in every run. The text
    `detail` may differ from run to run."""

    def __init__(self, seen: str, detail: str = "") -> None:
        super().__init__(seen)
        self.detail = detail


def beginning(stage: Stage) -> Iterator[RowFinding]:
    first = stage.run(ASKED)
    stands = stage.prompts(first.session_id) == [ASKED]
    yield RowFinding(
        "start",
        first.ok and stands,
        describe_end(first) + ("" if stands else ", prompt not in the transcript"),
        first.outcome.detail,
    )
    if not first.ok:
        raise Failed(f"the first turn {describe_end(first)}", first.outcome.detail)
    if stage.driver.abilities.choose_id:
        chosen = first.session_id == first.asked
        yield RowFinding("own-id", chosen, "taken" if chosen else "another id comes back")
    else:
        yield RowFinding("own-id", False, "none can be given")
    before = stage.history(first.session_id) or b""
    second = stage.run(AGAIN, resume(first.session_id))
    yield continuation_finding("resume", first, second, ASKED, ANSWERED, AGAIN)
    after = stage.history(first.session_id) or b""
    yield append_only_finding(
        bool(before) and after.startswith(before), stage.prompts(first.session_id) == [ASKED, AGAIN]
    )
    unknown = []
    for event in chain.from_iterable(ran.events for ran in (first, second)):
        if isinstance(event, Unrecognised):
            unknown.append(event.text)
    yield RowFinding(
        "output-known",
        not unknown,
        "some lines are not" if unknown else "all",
        "\n".join(unknown[:3]),
    )
    yield usage(stage, first, second)


def unreadable_transcripts(stage: Stage) -> Iterator[RowFinding]:
    """Test an agent whose transcripts perdure cannot read. Yield an answer to two rows: whether the
    first turn succeeds (`start`), and whether a resume sends the whole conversation to the model
    (`resume`). The second answer also tells whether the agent replayed the conversation."""
    first = stage.run(ASKED)
    yield RowFinding("start", first.ok, describe_end(first), first.outcome.detail)
    if not first.ok:
        raise Failed(f"the first turn {describe_end(first)}", first.outcome.detail)
    if not first.session_id:
        yield RowFinding("resume", False, "offers neither to load nor to resume")
        return
    turns = [event for event in first.events if isinstance(event, ItemsMarked) and event.ended]
    stage.marks = turns[-1].marks if turns else ()
    second = stage.run(AGAIN, resume(first.session_id))
    found = continuation_finding("resume", first, second, ASKED, ANSWERED, AGAIN)
    replayed = any(isinstance(event, SessionSeen) and event.replayed for event in second.events)
    how = "and replayed" if replayed else "and only claimed"
    yield replace(found, seen=f"{found.seen}, {how}") if found.holds else found


def append_only_finding(prefix: bool, grown: bool) -> RowFinding:
    if not prefix:
        return RowFinding("transcript-grows", False, "what stood there is changed")
    return RowFinding(
        "transcript-grows",
        grown,
        "prefix kept, prompt appended" if grown else "the new prompt is not in it",
    )


def usage(stage: Stage, first: StageExit, second: StageExit) -> RowFinding:
    if first.usage is None or second.usage is None or not first.usage.input:
        return RowFinding("usage", False, "not reported")
    cumulative = second.usage.input >= 1.5 * first.usage.input
    seen = "over the conversation" if cumulative else "per run"
    return RowFinding(
        "usage",
        cumulative == stage.driver.abilities.cumulative_usage,
        seen,
        f"{first.usage.input}, {second.usage.input}",
    )


def by_path(stage: Stage) -> Iterator[RowFinding]:
    if not stage.driver.abilities.resume_by_path:
        yield RowFinding("resume-by-path", False, "cannot be named by a path")
        return
    first = first_turn(stage)
    path = stage.driver.transcript(stage.home, first.session_id)
    second = stage.run(AGAIN, resume(first.session_id, Rung.PATH), transcript=str(path))
    found = continuation_finding("resume-by-path", first, second, ASKED, ANSWERED, AGAIN)
    kept = stage.prompts(first.session_id) == [ASKED, AGAIN]
    yield found if kept else RowFinding(found.row, False, "the turn is not in the same transcript")


def fork(stage: Stage) -> Iterator[RowFinding]:
    if not stage.driver.abilities.fork:
        yield RowFinding("fork", False, "cannot fork")
        return
    first = first_turn(stage)
    before = stage.history(first.session_id)
    second = stage.run(AGAIN, Continuation(kind=Start.FORK, session_id=first.session_id))
    if not second.ok or not second.reached(ASKED, ANSWERED, AGAIN):
        yield RowFinding(
            "fork",
            False,
            f"{describe_end(second)}, history missing" if second.ok else describe_end(second),
            second.outcome.detail,
        )
    elif second.session_id in ("", first.session_id):
        yield RowFinding("fork", False, "the same id comes back")
    elif stage.history(first.session_id) != before:
        yield RowFinding("fork", False, "the parent is changed")
    else:
        yield RowFinding("fork", True, "new id, whole history")


def unknown_session(stage: Stage) -> Iterator[RowFinding]:
    first = first_turn(stage)
    ran = stage.run("go on", resume(_unknown(first.session_id)))
    if ran.requests:
        if not ran.reached(ASKED):
            seen = "starts afresh"
        else:
            seen = "continues with another conversation"
        yield RowFinding("unknown-session", False, seen, ran.session_id)
    else:
        yield RowFinding(
            "unknown-session",
            ran.outcome.kind is OutcomeKind.SESSION_MISSING,
            describe_end(ran),
            ran.outcome.detail,
        )


def _unknown(session_id: str) -> str:
    """Return an id that belongs to no conversation. It has the same format as the given id."""
    try:
        UUID(session_id)
    except ValueError:
        half = len(session_id) // 2
        turned = str.maketrans(
            string.digits + string.ascii_letters, string.digits[::-1] + string.ascii_letters[::-1]
        )
        return session_id[:half] + session_id[half:].translate(turned)
    return str(uuid4())


def moved_directory(stage: Stage) -> Iterator[RowFinding]:
    first = first_turn(stage)
    moved = stage.directory / "moved"
    stage.work.rename(moved)
    stage.work = moved
    second = stage.run(AGAIN, resume(first.session_id), patience_s=SHORT_S)
    yield continuation_finding("moved-directory", first, second, ASKED, ANSWERED, AGAIN)


def moved_home(stage: Stage) -> Iterator[RowFinding]:
    first = first_turn(stage)
    moved = stage.directory / "elsewhere" / stage.driver.name
    shutil.copytree(stage.agent_home, moved, symlinks=True, ignore=_not_a_file)
    shutil.rmtree(stage.agent_home, ignore_errors=True)
    stage.set_home(moved)
    yield continuation_finding(
        "moved-home", first, stage.run(AGAIN, resume(first.session_id)), ASKED, ANSWERED, AGAIN
    )


def _not_a_file(folder: str, names: list[str]) -> list[str]:
    """Return the names of sockets and pipes, which `copytree` cannot copy."""
    found = []
    for name in names:
        path = Path(folder, name)
        if path.exists() and not (path.is_file() or path.is_dir()):
            found.append(name)
    return found


def own_copy(stage: Stage) -> Iterator[RowFinding]:
    first = first_turn(stage)
    copy = stage.history(first.session_id)
    if copy is None:
        yield RowFinding("own-copy", False, "there is no transcript to copy")
        return
    stage.set_home(stage.directory / "empty" / stage.driver.name)
    stage.put_back(first.session_id, copy)
    yield continuation_finding(
        "own-copy", first, stage.run(AGAIN, resume(first.session_id)), ASKED, ANSWERED, AGAIN
    )


def fails(row: str, *kinds: OutcomeKind) -> Play:
    """Return a scene's function for a model service that fails. The answer to the row is positive
    if the driver reports one of these outcomes."""

    def play(stage: Stage) -> Iterator[RowFinding]:
        ran = stage.run("hello", patience_s=2 * PATIENCE_S)
        yield RowFinding(row, ran.outcome.kind in kinds, describe_end(ran), ran.outcome.detail)

    return play


def usage_limit(stage: Stage) -> Iterator[RowFinding]:
    before = int(time.time() * 1000)
    ran = stage.run("hello", patience_s=SHORT_S)
    if ran.outcome.kind is OutcomeKind.TIMED_OUT and ran.requests:
        yield RowFinding("usage-limit", False, "waits in silence", ran.outcome.detail)
        return
    until = ran.outcome.until
    exact = until is not None and 7_100_000 < until - before < 7_400_000
    limited = ran.outcome.kind is OutcomeKind.RATE_LIMITED
    if exact:
        when = ", with its time"
    elif until:
        when = ", with a wrong time"
    else:
        when = ", without its time"
    yield RowFinding(
        "usage-limit",
        limited and exact,
        describe_end(ran) + (when if limited else ""),
        ran.outcome.detail,
    )


PROMPTS = (
    "-p --help",
    "/cost",
    "@nothing.txt is a file",
    "!ls",
    "'single' \"double\" $HOME `date` \\n %s {x}",
    "two\n\nparagraphs, with ümläuts, 日本 and 🙂\n# no heading",
)
"""Prompts that a command line, a shell or the agent itself might misinterpret."""


def prompts(stage: Stage) -> Iterator[RowFinding]:
    session, lost, labelled = "", [], False
    for prompt in PROMPTS:
        ran = stage.run(prompt, resume(session) if session else None)
        said = []
        for message in chain.from_iterable(request.messages for request in ran.requests):
            if message.role == "user":
                said.append(message.text.strip())
        if not ran.ok or not any(text.endswith(prompt) for text in said):
            lost.append(prompt)
        labelled = labelled or prompt not in said
        session = session or ran.session_id
    stand = list(map(fingerprint, stage.prompts(session))) == list(map(fingerprint, PROMPTS))
    if lost:
        yield RowFinding(
            "prompts", False, f"{len(lost)} of {len(PROMPTS)} do not", "\n".join(map(repr, lost))
        )
    elif not stand:
        yield RowFinding(
            "prompts", False, "all arrive, the transcript has others", repr(stage.prompts(session))
        )
    else:
        yield RowFinding(
            "prompts",
            True,
            "all arrive, some with the driver's word before them" if labelled else "all arrive",
        )


def fail_scenes() -> Iterator[ProveScene]:
    refused = (OutcomeKind.FAILED, OutcomeKind.CONFIG_ERROR)
    named = {
        "401": (OutcomeKind.AUTH_FAILED,),
        "429": (OutcomeKind.RATE_LIMITED,),
        "500": (OutcomeKind.OVERLOADED,),
    }
    for status, kinds in {"400": refused, **named}.items():
        yield ProveScene(
            (f"error-{status}",), f"fail {status} x99\nsay Never.", fails(f"error-{status}", *kinds)
        )


BEGINNING = ("start", "own-id", "resume", "transcript-grows", "output-known", "usage")
SCENES = (
    ProveScene(BEGINNING, TWO, beginning, quick=True),
    ProveScene(("unknown-session",), TWO, unknown_session, quick=True),
    ProveScene(("own-copy",), TWO, own_copy, quick=True),
    ProveScene(("resume-by-path",), TWO, by_path),
    ProveScene(("fork",), TWO, fork),
    ProveScene(("moved-directory",), TWO, moved_directory),
    ProveScene(("moved-home",), TWO, moved_home),
    *fail_scenes(),
    ProveScene(("usage-limit",), "limit 7200 x99\nsay Never.", usage_limit, subscription=True),
    ProveScene(("prompts",), "say Yes.", prompts),
)

UNREADABLE_SCENES = (
    ProveScene(("start", "resume"), TWO, unreadable_transcripts, quick=True),
    ProveScene(("unknown-session",), TWO, unknown_session, quick=True),
)
"""Scenes for an agent whose transcripts perdure cannot read."""
