"""The pages of one run: its timeline with the live log, the whole log, the diff, checkpoints and
instructions. For the diff, `read` parses a patch into files and numbered lines. The patch is
untrusted bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from perdure.engine import service
from perdure.engine.attempt.workdir import is_result_undone
from perdure.engine.report import report_of
from perdure.engine.service import liveness_of
from perdure.errors import NotFound
from perdure.model import Liveness, RunState, SessionKey, TaskRun, Usage
from perdure.model.codec import builtins, plain
from perdure.model.events import Record
from perdure.model.requests import RequestState
from perdure.rules.approvals import not_whole, why_not_allowed
from perdure.rules.continuation.instructions import retired
from perdure.rules.liveness import advice
from perdure.rules.messages import described, states
from perdure.rules.requests import ASKING, WAITING, Question, options_of, payload_lines, questions
from perdure.rules.run_titles import role_of_run, title_of_run, worker_of
from perdure.rules.text import visible
from perdure.server.api.runs import PATCH_MOST
from perdure.server.dashboard.live import lines
from perdure.server.dashboard.pages import HEADERS
from perdure.server.dashboard.timelines import thread, timeline
from perdure.server.dashboard.visits import Visit

LINES = 4000
"""Maximum number of lines of a patch that the page of the diff shows. The whole patch is available
as a file."""
FILES = 500
"""Maximum number of files that the page of the diff shows."""
WIDE = 600
HUNK = re.compile(r"@@ -(\d{1,9})(?:,\d{1,9})? \+(\d{1,9})(?:,\d{1,9})? @@(.*)")


class ChangedFile(Struct):
    """A changed file. `how` is `new`, `deleted`, `renamed`, `binary` or `changed`. An item of
    `lines` has four values: kind (`hunk`, `add`, `del` or `same`), line number in the old file,
    line number in the new file, and text. A number is empty if the line does not exist in that
    file."""

    name: str
    how: str = "changed"
    added: int = 0
    removed: int = 0
    lines: list[tuple[str, str, str, str]] = field(default_factory=list)


class Patch(Struct, frozen=True):
    """A parsed patch. `left` is the number of changed and context lines that were cut off, `more`
    the number of files that were left out."""

    files: tuple[ChangedFile, ...]
    left: int
    more: int = 0

    @property
    def added(self) -> int:
        return sum(each.added for each in self.files)

    @property
    def removed(self) -> int:
        return sum(each.removed for each in self.files)


def read(patch: bytes) -> Patch:
    """Parse the output of `git diff`. Invalid lines are skipped."""
    files: list[ChangedFile] = []
    shown = left = 0
    for line in _lines(patch):
        if line.startswith("diff --git "):
            files.append(ChangedFile(_name(line)))
            before = after = 0
            in_hunk = False
        elif not files:
            continue
        elif found := HUNK.match(line):
            before, after, in_hunk = int(found[1]), int(found[2]), True
            shown += 1
            if shown <= LINES:
                files[-1].lines.append(("hunk", "", "", found[3].strip()))
        elif not in_hunk:
            _head(files[-1], line)
        elif line[:1] in ("+", "-", " "):
            kind = {"+": "add", "-": "del"}.get(line[:1], "same")
            files[-1].added += kind == "add"
            files[-1].removed += kind == "del"
            shown += 1
            if shown <= LINES:
                old, new = "" if kind == "add" else str(before), "" if kind == "del" else str(after)
                files[-1].lines.append(
                    (kind, old, new, line[1 : WIDE + 1] + ("…" if len(line) > WIDE + 1 else ""))
                )
            else:
                left += 1
            before += kind != "add"
            after += kind != "del"
    return Patch(tuple(files[:FILES]), left, len(files[FILES:]))


def _lines(patch: bytes) -> Iterator[str]:
    for line in BytesIO(patch):
        yield visible(line.removesuffix(b"\n").decode("utf-8", "replace"))


def _name(line: str) -> str:
    """Return the new file name from a line `diff --git a/x b/x`. The result is preliminary, because
    such a line can be ambiguous. If a `+++` line follows, its file name is used instead."""
    return line.removeprefix("diff --git ").rpartition(" b/")[2] or line


def _head(file: ChangedFile, line: str) -> None:
    if line.startswith("new file"):
        file.how = "new"
    elif line.startswith("deleted file"):
        file.how = "deleted"
    elif line.startswith("rename to "):
        file.how, file.name = "renamed", line.removeprefix("rename to ")
    elif line.startswith(("Binary files", "GIT binary patch")):
        file.how = file.how if file.how != "changed" else "binary"
    elif line.startswith("+++ b/"):
        file.name = line.removeprefix("+++ b/")


TAIL = 120
"""Number of records that the log on the overview page shows when the page is opened."""
PAGE = 600
HISTORY = 100_000
CHUNK = 1 << 16
SHOWN_MOST = 8 * 1024 * 1024
"""Maximum size in bytes of a patch that the page of the diff shows. A larger patch is only
available as a file."""
ATTACHMENT = {"content-security-policy": "default-src 'none'; sandbox"}


class ShownQuestion(Struct, frozen=True):
    """A question of an agent, with the labels of its options."""

    text: str
    options: Sequence[str]


class ShownRequest(Struct, frozen=True, kw_only=True):
    """An open request of an agent, as the template shows it. `asks` is empty if the agent asks for
    permission to call a tool. `note` is not empty if the shown arguments are not complete, and then
    says so."""

    number: int
    tool: str
    lines: Sequence[str]
    note: str
    may_be_allowed: bool
    expires: int
    asks: Sequence[ShownQuestion]


def found(visit: Visit) -> TaskRun:
    """Return the run that the address names. Raises NotFound."""
    return visit.desk.look.get(visit.named("name"))


def about(visit: Visit, run: TaskRun, tab: str) -> Mapping[str, Any]:
    """Return the values for the header that all pages of a run show. `tab` is the name of the
    current page."""
    asks = any(each.type in {*ASKING, "open"} for each in run.conditions)
    attempts = visit.desk.look.attempts(run.id)
    liveness = liveness_of(visit.desk.look, visit.desk.engine.state, visit.desk.engine.host, run)
    left = liveness in (Liveness.INTERRUPTED, Liveness.UNATTENDED)
    used = sum((each.usage for each in attempts), start=Usage())
    return {
        "run": run,
        "tab": tab,
        "group": "asking"
        if left or (asks and run.state is not RunState.RUNNING)
        else str(run.state),
        "pips": thread(attempts),
        "title": title_of_run(run),
        "worker": worker_of(role_of_run(run), run.spec.agent),
        "cost": used.cost_usd,
        "estimated": used.estimated,
        "live": run.state is RunState.RUNNING,
        "alive": str(liveness) if left else "",
        "advice": advice(run.name, liveness) if liveness and left else "",
        "waiting": run.state in (RunState.QUEUED, RunState.PENDING),
        "requests": _requests(visit, run),
        "verbs": _verbs(visit, run)
        | ({"retry"} if liveness is Liveness.INTERRUPTED and visit.may("dispatch") else set()),
    }


def _requests(visit: Visit, run: TaskRun) -> list[ShownRequest]:
    """Return the open requests of the run's agent, prepared for display."""
    if run.state is not RunState.QUEUED or all(each.type != WAITING for each in run.conditions):
        return []
    opened = [each for each in visit.desk.look.requests(run.id) if each.state is RequestState.OPEN]
    shown = []
    for each in opened:
        shown.append(
            ShownRequest(
                number=each.number,
                tool=visible(each.tool),
                lines=payload_lines(each),
                note=not_whole(each),
                may_be_allowed=not why_not_allowed(each),
                expires=each.expires,
                asks=list(map(_shown_question, questions(each))),
            )
        )
    return shown


def _shown_question(question: Question) -> ShownQuestion:
    options = [visible(str(option.get("label", ""))) for option in options_of(question)]
    return ShownQuestion(text=visible(str(question.get("question", ""))), options=options)


def _verbs(visit: Visit, run: TaskRun) -> frozenset[str]:
    """Return the actions that the user may take on the run in its current state."""
    at_work = run.state in (RunState.RUNNING, RunState.QUEUED, RunState.PENDING)
    opened = any(each.type == "open" for each in run.conditions)
    can = set()
    if visit.may("dispatch") and not opened:
        can |= {"update"}
        can |= {"tell"} if run.state is RunState.RUNNING else set()
        can |= {"stop"} if at_work else {"fork"}
        can |= {"retry"} if _may_be_retried(visit, run) else set()
        can |= {"restore"} if run.state is not RunState.RUNNING else set()
    if visit.may("admin") and not opened and run.state is not RunState.RUNNING:
        can |= {"reset"} if not visit.principal.limits else set()
        can |= {"rm"} if not at_work else set()
    return frozenset(can)


def _may_be_retried(visit: Visit, run: TaskRun) -> bool:
    if run.state is RunState.SUCCEEDED:
        return is_result_undone(visit.desk.look, run)
    return run.state is not RunState.RUNNING


def overview(visit: Visit) -> Response:
    """Show `/runs/NAME`: the timeline, and the end of the log."""
    run = found(visit)
    look = visit.desk.look
    records = look.latest(run.id, HISTORY)
    report = report_of(
        look,
        run,
        records,
        liveness_of(look, visit.desk.engine.state, visit.desk.engine.host, run),
    )
    tail = look.latest(run.id, TAIL)
    return visit.page(
        "task.html",
        **about(visit, run, "timeline"),
        report=report,
        timeline=timeline(report, records, visit.now),
        lines=lines(tail),
        last=tail[-1].seq if tail else 0,
        by_hand=_by_hand(visit, run),
        here=visit.here,
    )


def _by_hand(visit: Visit, run: TaskRun) -> str:
    """Return the command with which a person opens the conversation in the agent's own program;
    empty if there is no conversation."""
    if visit.desk.look.session(SessionKey(run.spec.agent, run.scope)) is not None:
        return f"perdure open {run.name}"
    return ""


def log(visit: Visit) -> Response:
    """Show `/runs/NAME/log`: the whole log in pages. The last page is live."""
    run = found(visit)
    if visit.asked("after").isdecimal() and len(visit.asked("after")) < 18:
        after = int(visit.asked("after"))
    else:
        after = -1
    look = visit.desk.look
    if after >= 0:
        records = look.history(run.id, after, PAGE + 1)
    else:
        records = look.latest(run.id, PAGE)
    shown, at_end = records[:PAGE], len(records) <= PAGE
    before = look.latest(run.id, PAGE + 1, shown[0].seq if shown else after + 1)
    return visit.page(
        "log.html",
        **about(visit, run, "log"),
        lines=lines(shown),
        last=shown[-1].seq if shown else max(after, 0),
        at_end=at_end,
        earlier=_earlier(before),
        later=shown[-1].seq if not at_end else 0,
        attempts=look.attempts(run.id),
    )


def _earlier(before: Sequence[Record]) -> int | None:
    """Return the parameter `after` that selects the previous page of the log; None if the current
    page is the first.

    `before` has the records of the previous page. If that page is not the first, `before` begins
    with one more record: the last record of the page before it.
    """
    if not before:
        return None
    if len(before) > PAGE:
        return before[0].seq
    return 0


def raw(visit: Visit) -> Response:
    """Return `/runs/NAME/attempts/N/stdout`: the agent's own output, unchanged. The browser saves
    it as a file and never displays it as a page."""
    run = found(visit)
    wanted = visit.named("number")
    path = None
    for attempt in visit.desk.look.attempts(run.id):
        if str(attempt.number) == wanted and attempt.directory:
            path = Path(attempt.directory, "stdout")
            break
    if path is None or not path.is_file():
        raise NotFound(
            f"{run.name} has no output of an attempt {wanted} on this machine",
            f"perdure show {run.name}",
        )
    name = f"{run.name}-{wanted}.log"
    headers = {**HEADERS, **ATTACHMENT, "content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(_chunks(path), media_type="text/plain; charset=utf-8", headers=headers)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def diff(visit: Visit) -> Response:
    """Show `/runs/NAME/diff`: the changes, file by file."""
    run = found(visit)
    problem, patch = "", b""
    if visit.desk.engine.host.elsewhere(run):
        problem = f"The workdir is on {run.host_name}."
    else:
        patch = service.diff(
            visit.desk.engine.store,
            visit.desk.engine.workspaces,
            visit.desk.engine.host,
            run.id,
            most=SHOWN_MOST,
        )
    return visit.page("diff.html", **about(visit, run, "diff"), patch=read(patch), problem=problem)


def patch(visit: Visit) -> Response:
    """Return `/runs/NAME/patch`: the changes as a file for `git apply`."""
    run = found(visit)
    text = service.diff(
        visit.desk.engine.store,
        visit.desk.engine.workspaces,
        visit.desk.engine.host,
        run.id,
        binary=True,
        most=PATCH_MOST,
    )
    headers = {
        **HEADERS,
        **ATTACHMENT,
        "content-disposition": f'attachment; filename="{run.name}.patch"',
    }
    return PlainTextResponse(text, headers=headers)


def checkpoints(visit: Visit) -> Response:
    """Show `/runs/NAME/checkpoints`."""
    run = found(visit)
    kept = list(reversed(visit.desk.look.checkpoints(run.id)))
    return visit.page("checkpoints.html", **about(visit, run, "checkpoints"), checkpoints=kept)


def instructions(visit: Visit) -> Response:
    """Show `/runs/NAME/instructions`: every version, newest first."""
    run = found(visit)
    contexts = visit.desk.look.contexts(run.id)
    records = visit.desk.look.run_events(run.id)
    spec = []
    for name, value in plain(run.spec).items():
        if value and name not in ("prompt", "env"):
            spec.append((name, value))
    return visit.page(
        "instructions.html",
        **about(visit, run, "instructions"),
        contexts=list(reversed(contexts)),
        retired=retired(records),
        told={each.version: described(each) for each in states(contexts, records)},
        spec=spec,
    )


def as_json(visit: Visit) -> Response:
    """Return `/runs/NAME/report.json`, as `perdure show NAME --json` prints it."""
    run = found(visit)
    liveness = liveness_of(visit.desk.look, visit.desk.engine.state, visit.desk.engine.host, run)
    report = builtins(report_of(visit.desk.look, run, liveness=liveness))
    text = json.dumps(report, indent=2, ensure_ascii=True)
    return Response(text, media_type="application/json", headers=HEADERS)
