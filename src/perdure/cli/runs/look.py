"""`show`, `logs`, `why`: print what is known about one run. They are read-only."""

from __future__ import annotations

import argparse
import codecs
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.cli.arguments import seconds_of
from perdure.cli.compose import environment, open_to_read, probe, settings, this_host
from perdure.cli.parser import optional_name
from perdure.cli.style import STATES, SYMBOLS, fitted, paint, wrapped
from perdure.cli.text import (
    clean,
    clock,
    columns,
    consumption,
    filled,
    one_line,
    shown_path,
)
from perdure.errors import NotFound, UsageError
from perdure.host import system
from perdure.model import Liveness, RunState
from perdure.model.codec import printed
from perdure.model.events import ContextAdded, Record, RunSubmitted, ToolEnded
from perdure.rules.liveness import advice
from perdure.rules.log_line import line_of
from perdure.rules.text import receipt_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from perdure.config import Settings
    from perdure.model import Attempt, TaskRun
    from perdure.model.forge.postings import Posting
    from perdure.model.reports import AttemptOfRun, RunReport
    from perdure.protocols import Retention, RunStore

PATIENCE_S = 3.0
"""Time in seconds for which a run must be without a supervisor before this is reported. In that
time a worker pool may take the run over."""
CHUNK = 1 << 16
"""Number of bytes of raw output that one read returns at most."""
NAP_S = 0.2
"""Poll interval of a followed log, in seconds."""
UNATTENDED = 75
"""Exit code of a command that follows a run, if no process works on the run any more."""


def show_arguments(parser: argparse.ArgumentParser) -> None:
    optional_name(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _report(ref: str) -> RunReport:
    from perdure.engine.report import report_of

    chosen = settings()
    store = open_to_read(chosen)
    run = store.get(ref)
    liveness = probe(chosen).liveness(run, store.now(), lambda: store.get(run.id))
    # The probe returns None for a run that has ended in the meantime. Then read the run again.
    return report_of(store, store.get(run.id) if liveness is None else run, liveness=liveness)


def shown_state(report: RunReport) -> str:
    """Return the run's state in one word. For a run that is stored as running but is not attended,
    return its liveness instead."""
    return str(
        report.liveness if report.liveness not in (None, Liveness.ATTENDED) else report.state
    )


def _advice(report: RunReport) -> str:
    if report.liveness:
        return advice(report.name, Liveness(report.liveness))
    return ""


def _say(text: str, style: str = "") -> None:
    """Print clean text in a style. On a terminal it is wrapped at words, and the continuation lines
    are aligned with the text after the label."""
    hang = 10 if text.startswith(" ") else 12
    for line in wrapped(text, columns(sys.stdout), hang).split("\n"):
        print(paint(fitted(line, sys.stdout), style, sys.stdout))


def show_verb(arguments: argparse.Namespace) -> int:
    from perdure.rules.explanation import missed_checkpoint, worked

    report = _report(arguments.name)
    if arguments.json:
        print(printed(report))
        return 0
    place = report.workspace
    state = shown_state(report)
    if sys.stdout.isatty() and state in SYMBOLS:
        mark = f"{SYMBOLS[state]} "
    else:
        mark = ""
    _say(
        f"{mark}{report.name}  {state}  ({report.agent}, {report.id[:8]})",
        STATES.get(state, ""),
    )
    if words := _advice(report):
        _say(f"  {words}")
    if report.reason:
        _say(f"  {one_line(report.reason, 160)}")
    _say(f"  workdir   {shown_path(place.path, sys.stdout)} ({place.backend})")
    if report.host:
        _say(f"  host      {clean(report.host)}")
    if pid := _agent_pid(report):
        _say(f"  process   {pid}")
    if place.branch:
        _say(f"  branch    {clean(place.branch)}")
    used = report.usage
    _say(f"  used      {consumption(used)}")
    if report.fill:
        _say(f"  context   {filled(report.fill)}")
    if report.result:
        _say(f"  said      {one_line(report.result, 240)}")
    for condition in report.conditions:
        _say(f"  {condition.type}: {one_line(condition.message, 160)}", "warn")
    missed = missed_checkpoint(report)
    if missed:
        _say(f"  WARNING   {missed}", "bad")
    for attempt in report.attempts:
        _say(f"  attempt {attempt.number}  {_attempt_line(attempt, shown_state(report))}")
    for line in _messages(report):
        _say(f"  {line}")
    newest = report.attempts[-1].work if report.attempts else None
    for label, text in worked(newest) if newest is not None else ():
        if label != "says":
            _say(f"  {label:9} {text}")
    return 0


def _messages(report: RunReport) -> list[str]:
    """Return a line for each message that was sent to the running agent."""
    if not report.messages:
        return []
    from perdure.rules.messages import described

    lines = []
    for each in report.messages:
        lines.append(f"message {each.version}  {described(each)}: {one_line(each.text, 80)}")
    return lines


def _agent_pid(report: RunReport) -> int:
    """Return the process id of the run's agent if it is running on this host, else 0."""
    if report.liveness not in (Liveness.ATTENDED, Liveness.UNATTENDED):
        return 0
    try:
        mark = Path(report.attempts[-1].directory) / "agent.json"
        pid = json.loads(mark.read_text(encoding="utf-8"))["pid"]
    except (OSError, ValueError, KeyError, IndexError):
        return 0
    if isinstance(pid, int) and system.stat(pid):
        return pid
    return 0


def _attempt_line(attempt: AttemptOfRun, state: str) -> str:
    outcome, receipt = attempt.outcome, attempt.receipt
    if outcome is None:
        ended = state
    else:
        ended = f"{outcome.kind}" + (f" ({one_line(outcome.detail, 70)})" if outcome.detail else "")
    proof = f"  {receipt_words(receipt.verdict)}" if receipt else ""
    verdict = attempt.work.verdict
    work = f"  work {verdict}" if verdict else ""
    return f"{attempt.continuation or 'not started'}  {ended}{proof}{work}"


def why_arguments(parser: argparse.ArgumentParser) -> None:
    optional_name(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def why_verb(arguments: argparse.Namespace) -> int:
    from perdure.engine.report import why_of
    from perdure.rules.explanation import explained, missed_checkpoint

    report = _report(arguments.name)
    if arguments.json:
        print(printed(why_of(report)))
        return 0
    _say(
        f"{report.name}: {shown_state(report)}; policy {report.policy}, conversation of "
        f"{clean(report.scope)}"
    )
    if words := _advice(report):
        _say(f"\n{shown_state(report):11} {words}")
    if report.state == "queued" and report.reason:
        _say(f"\nwaits       until {clock(report.run_after)}: {one_line(report.reason, 300)}")
    for condition in report.conditions:
        _say(f"\n{condition.type:11} {one_line(condition.message, 300)}")
    for line in posting_lines(report.posting):
        _say(f"\nforge       {line}")
    if there := _waits_for(report):
        _say(f"\nhost        {there}")
    for line in _messages(report):
        _say(f"\n{line}")
    missed = missed_checkpoint(report)
    if missed:
        _say(f"\nWARNING     {missed}")
    previous: AttemptOfRun | None = None
    for attempt in report.attempts:
        _say(f"\nattempt {attempt.number}  {clock(attempt.started)}")
        for label, text in explained(attempt, previous):
            _say(f"  {label:9} {text}")
        previous = attempt
    if kept := _retention(report.agent):
        _say(
            f"\nnote        {report.agent} deletes conversations older than {kept.days:g} days; "
            "perdure keeps copies (perdure doctor)"
        )
    return 0


def posting_lines(posting: Posting | None) -> list[str]:
    """Return lines about what was posted on the run's forge, including failed attempts to post."""
    if posting is None:
        return []
    if posting.comment_url:
        lines = [f"reported at {one_line(posting.comment_url, 300)}"]
    else:
        lines = []
    if posting.commit:
        if posting.pull:
            pull = f", pull request {posting.pull}: {one_line(posting.pull_url, 300)}"
        else:
            pull = ""
        lines.append(f"its branch was pushed as {posting.commit[:12]}{pull}")
    if posting.tries:
        lines.append(
            f"next try at {clock(posting.due)}, after {posting.tries} tries: "
            f"{one_line(posting.reason, 300)}"
        )
    elif posting.reason:
        lines.append(f"not tried again until the run changes: {one_line(posting.reason, 300)}")
    return lines


def _waits_for(report: RunReport) -> str:
    """Return a sentence about another host that has the run's files, if several hosts share the
    database. Return an empty string if no other host has them."""
    chosen = settings()
    here = this_host(chosen)
    if not here.id or report.host_id in ("", here.id):
        return ""
    there = clean(report.host)
    if report.state != "queued":
        return f"its workdir and conversation are on {there}"
    if here.patience_s is None:
        return (
            f"it waits for {there}, which has its workdir and conversation; no checkpoint_store "
            f"is set here to fetch them from"
        )
    return (
        f"it waits for {there}, which has its workdir and conversation; after {here.patience_s:g} "
        f"s another host may fetch the newest checkpoint from {clean(chosen.checkpoint_store)}"
    )


def _retention(agent: str) -> Retention | None:
    """Return how long the agent's own clean-up keeps conversations. Return None if it keeps them
    forever, or if the driver cannot be loaded."""
    from perdure.agents import registry
    from perdure.errors import PerdureError

    try:
        driver = registry.load(agent)
        return driver.retention(driver.home(environment(settings())))
    except PerdureError:
        return None


def logs_arguments(parser: argparse.ArgumentParser) -> None:
    optional_name(parser)
    parser.add_argument(
        "-f", "--follow", action="store_true", help="follow until the run has ended"
    )
    parser.add_argument("--attempt", type=int, default=0, help="only this attempt")
    parser.add_argument("-n", "--tail", type=int, metavar="N", help="only the last N entries")
    parser.add_argument(
        "--since",
        type=seconds_of,
        metavar="AGE",
        help="only entries of the last 90s, 30m, 24h or 7d",
    )
    parser.add_argument("-t", "--times", action="store_true", help="start each line with its time")
    parser.add_argument(
        "--prompts", action="store_true", help="also show the instructions that the agent got"
    )
    parser.add_argument("--tools", action="store_true", help="also show the results of tools")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON record per line")
    form.add_argument(
        "--raw",
        action="store_true",
        help="print the agent's raw output; a terminal gets it without control characters",
    )


def logs_verb(arguments: argparse.Namespace) -> int:
    from perdure.rules.lifecycle import FINAL

    chosen = settings()
    store = open_to_read(chosen)
    run = store.get(arguments.name)
    left = UnattendedCheck(chosen, store)
    if arguments.tail is not None and arguments.tail < 0:
        raise UsageError(
            f"--tail: expected a number of at least 0, got {arguments.tail}", "perdure logs -n 20"
        )
    if arguments.attempt and _find_attempt(store, run.id, arguments.attempt) is None:
        raise NotFound(f"{run.name} has no attempt {arguments.attempt}", f"perdure show {run.name}")
    if arguments.raw:
        return _raw_log(store, run.id, arguments.attempt, arguments.follow, left)
    entry = _entries(arguments, store, run)
    seen, kept, tail = 0, [], arguments.tail
    while True:
        state = store.get(run.id).state
        records = store.history(run.id, after=seen, limit=1000)
        for record in records:
            seen = record.seq
            text = entry(record)
            if text and tail is None:
                print(text, flush=True)
            elif text:
                kept.append(text)
        if not records and tail is not None:
            # All entries that existed before have been read. From now on, each new entry is printed
            # immediately.
            for text in kept[max(0, len(kept) - tail) :]:
                print(text)
            tail = None
        if not records and (not arguments.follow or state in FINAL):
            return 0
        if not records and left(run.id):
            return UNATTENDED
        if not records:
            sys.stdout.flush()
            time.sleep(NAP_S)


def _entries(
    arguments: argparse.Namespace, store: RunStore, run: TaskRun
) -> Callable[[Record], str]:
    """Return a function that converts a record to text, in the form that the flags select. For a
    record that the flags do not select, it returns an empty string."""
    from perdure.cli.runs.progress import style_of
    from perdure.model.codec import encode

    if arguments.since:
        since = int((time.time() - arguments.since) * 1000)
    else:
        since = 0
    width = columns(sys.stdout)

    def entry(record: Record) -> str:
        if arguments.attempt and record.attempt != arguments.attempt:
            return ""
        if record.at < since:
            return ""
        if arguments.json:
            return encode(record)
        text = _text_of(record, arguments, store, run)
        if text and arguments.times:
            text = f"{time.strftime('%H:%M:%S', time.localtime(record.at / 1000))} {text}"
        lines = fitted(wrapped(text, width), sys.stdout).split("\n")
        return "\n".join(paint(line, style_of(record), sys.stdout) for line in lines)

    return entry


def _text_of(record: Record, arguments: argparse.Namespace, store: RunStore, run: TaskRun) -> str:
    match record.event:
        case RunSubmitted() if arguments.prompts:
            return _instructions(store, run, 1)
        case ContextAdded(version=version) if arguments.prompts:
            return _instructions(store, run, version)
        case ToolEnded(ok=True, summary=summary) if arguments.tools and summary:
            return f"    {one_line(summary, 400)}"
        case _:
            return line_of(record)


def _instructions(store: RunStore, run: TaskRun, version: int) -> str:
    texts = {each.version: each.text for each in store.contexts(run.id)}
    lines = [f"  | {line}" for line in clean(texts.get(version, "")).strip().split("\n")]
    return "\n".join([f"instructions, version {version}:", *lines])


class UnclaimedCheck:
    """Checks whether a followed run is due, but no worker has claimed it in time, so that probably
    none will."""

    def __init__(self, chosen: Settings, store: RunStore) -> None:
        self._chosen, self._store, self._probe = chosen, store, probe(chosen)
        self._turn = 0.0
        """Time of the last check at which another run still held the seat that the run waits for,
        by the monotonic clock in seconds. If no check found that, the time of the first check. 0 if
        the run does not wait for its turn."""

    def __call__(self, run: TaskRun) -> bool:
        from perdure.engine.attempt.accounts import waits_for_turn
        from perdure.engine.worker import LEFT_ALONE_MS
        from perdure.host.wakeup import has_pool

        late_ms = self._store.now() - max(run.run_after, run.updated)
        if run.state is not RunState.QUEUED or late_ms <= LEFT_ALONE_MS:
            self._turn = 0.0
            return False
        if has_pool(self._chosen.state) and run.host in ("", this_host(self._chosen).id):
            # A pool takes each run that can start here, but it may be busy.
            return False
        if not waits_for_turn(run):
            return True
        if self._is_seat_held(run):
            self._turn = time.monotonic()
            return False
        # A supervisor that waits for its turn is not known to the store. So it gets some time to
        # claim the run after the run that it waits for has ended.
        self._turn = self._turn or time.monotonic()
        return time.monotonic() - self._turn > LEFT_ALONE_MS / 1000

    def _is_seat_held(self, run: TaskRun) -> bool:
        from perdure.engine.attempt.accounts import may_hold_seat

        now = self._store.now()
        for claim in self._store.claims():
            again = partial(self._store.get, claim.run.id)
            if (
                may_hold_seat(run, claim.run)
                and self._probe.liveness(claim.run, now, again) is Liveness.ATTENDED
            ):
                return True
        return False


class UnattendedCheck:
    """Checks whether a followed run is due but unclaimed, or has had no supervisor for `PATIENCE_S`
    seconds. If so, a call prints advice and returns True."""

    def __init__(self, chosen: Settings, store: RunStore) -> None:
        self._probe, self._store = probe(chosen), store
        self._is_unclaimed = UnclaimedCheck(chosen, store)
        self._since = 0.0

    def __call__(self, run_id: str) -> bool:
        again: Callable[[], TaskRun] = lambda: self._store.get(run_id)  # noqa: E731
        run = again()
        if self._is_unclaimed(run):
            sys.stdout.flush()
            print(
                f"{run.name} is due, but no worker has claimed it: perdure retry {run.name} "
                "continues it",
                file=sys.stderr,
            )
            return True
        found = self._probe.liveness(run, self._store.now(), again)
        if found in (None, Liveness.ATTENDED):
            self._since = 0.0
            return False
        self._since = self._since or time.monotonic()
        if time.monotonic() - self._since < PATIENCE_S:
            return False
        assert found is not None
        sys.stdout.flush()
        print(advice(run.name, found), file=sys.stderr)
        return True


def _raw_log(store: RunStore, run_id: str, only: int, follow: bool, left: UnattendedCheck) -> int:
    """Print the agent's own standard output. Return the exit code.

    In a pipe or file the output is unchanged; on a terminal, control characters are removed. `only`
    selects one attempt; 0 prints all in order. With `follow`, continue until the run is over or
    unattended.
    """
    from perdure.rules.lifecycle import FINAL

    number = only or 1
    while True:
        over = store.get(run_id).state in FINAL
        attempt = _find_attempt(store, run_id, number)
        place = attempt.directory if attempt is not None else ""
        if place and not _copy(store, run_id, number, Path(place) / "stdout", follow, left):
            return UNATTENDED
        if attempt is not None and (attempt.directory or attempt.ended):
            if only:
                return 0
            number += 1
        elif not follow or over:
            return 0
        elif left(run_id):
            return UNATTENDED
        else:
            time.sleep(NAP_S)


def _find_attempt(store: RunStore, run_id: str, number: int) -> Attempt | None:
    for attempt in store.attempts(run_id):
        if attempt.number == number:
            return attempt
    return None


def _copy(
    store: RunStore, run_id: str, number: int, path: Path, follow: bool, left: UnattendedCheck
) -> bool:
    """Print one attempt's output. If `follow` is true, continue until the attempt has ended. Return
    False if printing stopped because the run has no supervisor any more, else True."""
    if sys.stdout.isatty():
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
    else:
        decoder = None
    offset = 0
    while True:
        # First check whether the attempt has ended, then read its file. In this order, everything
        # that the attempt wrote before its end is printed.
        attempt = _find_attempt(store, run_id, number)
        ended = not follow or (attempt is not None and bool(attempt.ended))
        for chunk in _chunks(path, offset):
            offset += len(chunk)
            if decoder is None:
                sys.stdout.buffer.write(chunk)
            else:
                sys.stdout.write(clean(decoder.decode(chunk)))
        sys.stdout.flush()
        if ended:
            return True
        if left(run_id):
            return False
        time.sleep(NAP_S)


def _chunks(path: Path, offset: int) -> Iterator[bytes]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(CHUNK):
            yield chunk
