"""Builds the baseline of a conversation: everything that perdure knows of it. The baseline is
compared with what the agent would load. Called by `start_facts`, before anything is launched.

The sources are perdure's own: the session's snapshot, the transcript at the newest launch,
perdure's own copy, and the journal (prompts, answers, tool calls and their results). A transcript
that lacks an item of the baseline is never trusted as complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.agents.transcripts import Copies, damaged, fingerprint, loaded
from perdure.agents.transcripts.copy_file import prefix
from perdure.engine.attempt.engine import EngineStore
from perdure.engine.prompt_file import kept_prompt_fingerprint
from perdure.host.redaction import Redactor
from perdure.model import (
    Attempt,
    Comparison,
    Item,
    ItemKind,
    Loaded,
    Relation,
    Session,
    Shown,
    Snapshot,
    Start,
    TranscriptCondition,
    Verdict,
    compare,
)
from perdure.model.events import (
    MAX_TEXT,
    AnyEvent,
    CheckpointRestored,
    ContextSeen,
    Record,
    RetrySeen,
    RunTakenBack,
    RunTakenIn,
    Said,
    SessionSeen,
    ToolEnded,
    ToolStarted,
    TurnStarted,
)
from perdure.model.loaded import digest, quote
from perdure.protocols import AgentDriver

QUOTED = 8
"""Maximum number of missing conversation items that a receipt quotes."""
WHOLE_OUTPUT = 490
"""Length in characters below which a tool result in the journal is known to be complete. The
drivers cut results at 500 characters."""
WHOLE_WORDS = 300
"""Length in characters below which the prompt quotes a command or an answer in full."""
TOLD = 60
"""Maximum number of items that a prompt lists as missing from the agent's transcript."""
TITLE = 80
"""Maximum number of characters of an item's text that are kept for quoting the item."""


class Journaled(Struct, frozen=True, kw_only=True):
    """One item of a conversation, as recorded in perdure's journal."""

    item: Item
    attempt: int
    """Position of the item's attempt among the attempts of the conversation, counted from 0."""
    words: str = ""
    """The command or main argument of a tool call, or the text of the agent's answer."""
    ok: bool = True
    output: str = ""
    """The beginning of a tool call's result; empty for items that are not results."""
    rewound: bool = False
    """Whether a person has later removed the item by rewinding the conversation."""


class Baseline(Struct, frozen=True, kw_only=True):
    """Everything that perdure knows of one conversation, except its transcripts."""

    snapshots: tuple[Snapshot, ...] = ()
    """Up to two states of the transcript: the newest that perdure saw, and the one from which an
    attempt last continued."""
    last_continued: Snapshot | None = None
    """State of the transcript from which an attempt last continued; None if no attempt did."""
    recorded_states: tuple[Snapshot, ...] = ()
    """All states of the transcript that perdure has recorded."""
    prompts: frozenset[str] = frozenset()
    """Fingerprints of the prompts that perdure sent in the conversation."""
    journal: tuple[Journaled, ...] = ()
    """Prompts, answers, calls and results, in order. They begin with the last attempt that is known
    to have continued the conversation."""
    announced: bool = False
    """Whether an agent reported any event in the conversation. If so, the agent may have called the
    model."""


UNKNOWN = Baseline()


class _Window(Struct):
    """Collects the journal items of a conversation since its last compaction."""

    items: list[Journaled] = field(default_factory=list)
    calls: dict[tuple[int, str], str] = field(default_factory=dict)
    """Commands of tool calls, by attempt and call id. The attempt is part of the key because some
    agents number their calls from 1 in each attempt."""

    def take(self, event: AnyEvent, attempt: int) -> None:
        """Add the conversation item that the event reports. Ignore an event that reports none."""
        match event:
            case ContextSeen(compacted=True):
                # A compaction replaces everything before it by a summary.
                self.items.clear()
            case Said(text=text, aside=False) if len(text) < MAX_TEXT // 2:
                item = Item(ItemKind.ANSWER, "", digest(text), _title(text))
                self.items.append(Journaled(item=item, attempt=attempt, words=text))
            case ToolStarted(tool_id=key, aside=False) as call if key:
                words = call.summary or call.name
                self.calls[attempt, key] = words
                item = Item(ItemKind.CALL, key, "", _title(words))
                self.items.append(Journaled(item=item, attempt=attempt, words=words))
            case ToolEnded(tool_id=key, aside=False) as result if (attempt, key) in self.calls:
                words = self.calls[attempt, key]
                item = Item(ItemKind.RESULT, key, "", f"of {_title(words)}")
                found = Journaled(
                    item=item, attempt=attempt, words=words, ok=result.ok, output=result.summary
                )
                self.items.append(found)
            case _:
                pass


def _title(text: str) -> str:
    return " ".join(text[: 4 * TITLE].split())[:TITLE]


def baseline_of(store: EngineStore, session: Session) -> Baseline:
    """Return what is known of a session, from all runs that share its conversation."""
    runs = store.runs_of(session.key)
    done = [store.run_events(run.id) for run in runs]
    since = max(map(_restored_at, done), default=0)
    rewound = max((_rewound_at(each, session.id) for each in done), default=0)
    attempts = []
    for run in runs:
        for attempt in store.attempts(run.id):
            if attempt.session_id == session.id and attempt.outcome is not None:
                attempts.append((run, attempt))
    # A restore may remove from the conversation what was said in earlier attempts. So the attempts
    # before a restore do not show what the conversation must contain.
    attempts = [pair for pair in attempts if pair[1].started >= since]
    attempts.sort(key=lambda each: each[1].started)
    went_on = [at for at, (_, attempt) in enumerate(attempts) if _is_confirmed(attempt)]
    first = went_on[-1] if went_on else 0
    window, announced = _Window(), False
    # The events of attempts before `first` are only needed if no later attempt announced anything.
    events: dict[int, list[AnyEvent]] = {}
    for at, (run, attempt) in reversed(list(enumerate(attempts))):
        if at < first and announced:
            break
        events[at] = [each.event for each in store.attempt_history(run.id, attempt.number)]
        announced = announced or any(isinstance(each, ACTIVITY_EVENTS) for each in events[at])
    for at, (_, attempt) in list(enumerate(attempts))[first:]:
        if _opened_another(attempt):
            continue
        mark = kept_prompt_fingerprint(attempt) if events[at] and _was_active(attempt) else ""
        if mark:
            item = Item(ItemKind.PROMPT, "", mark, f"instructions of attempt {attempt.number}")
            window.items.append(Journaled(item=item, attempt=at))
        for event in events[at]:
            window.take(event, at)
    journal = []
    for entry in window.items:
        is_rewound = attempts[entry.attempt][1].started < rewound
        journal.append(replace(entry, rewound=is_rewound))
    launched = attempts[first][1] if went_on else None
    if launched is not None and launched.started < rewound:
        launched = None
    before = launched.before if launched is not None else None
    return Baseline(
        snapshots=tuple(each for each in (session.snapshot, before) if each is not None),
        last_continued=before,
        recorded_states=_snapshots(session, [attempt for _, attempt in attempts]),
        prompts=frozenset(session.prompts),
        journal=tuple(journal),
        announced=announced,
    )


def _snapshots(session: Session, attempts: Iterable[Attempt]) -> tuple[Snapshot, ...]:
    found = [session.snapshot]
    for attempt in attempts:
        found.append(attempt.before)
        if attempt.receipt is not None:
            found.append(attempt.receipt.evidence.after)
    return tuple(each for each in found if each is not None)


def damage_of(driver: AgentDriver, content: bytes, known: Baseline) -> int:
    """Return the number of damaged lines that no receipt has reported yet. Pure.

    The beginning of the transcript that already existed when an attempt last continued the
    conversation is skipped. A line that was cut off by a kill is recognized by a recorded state of
    the transcript that ends within the line. It does not count as damaged, unless it contains zero
    bytes.
    """
    before = known.last_continued
    if before is not None and _is_prefix(content, before):
        since = before.size
    else:
        since = 0
    begin = content.rfind(b"\n", 0, since) + 1
    spans = [(begin + start, begin + end) for start, end in damaged(driver, content[begin:])]
    spans = [(start, end) for start, end in spans if start >= since]
    if not spans:
        return 0
    ends = set()
    for each in known.recorded_states:
        if _is_prefix(content, each):
            ends.add(each.size)
    zeros = [b"\0" in content[start:end] for start, end in spans]
    cut_off = [any(start < each <= end for each in ends) for start, end in spans]
    return sum(zero or not cut for zero, cut in zip(zeros, cut_off, strict=True))


def _is_prefix(content: bytes, look: Snapshot) -> bool:
    if look.size > len(content):
        return False
    return sha256(content[: look.size]).hexdigest() == look.sha256


ACTIVITY_EVENTS = (SessionSeen, TurnStarted, RetrySeen, ContextSeen, Said, ToolStarted)
"""Types of events which show that an agent was active in the conversation."""


def _restored_at(records: Sequence[Record]) -> int:
    """Return the time (ms) at which the conversation was last restored, or moved here from another
    machine. Return 0 if neither happened."""
    last = 0
    for record in records:
        event = record.event
        restored = isinstance(event, CheckpointRestored) and not event.files_only
        if restored or isinstance(event, RunTakenIn):
            last = record.at
    return last


def _rewound_at(records: Sequence[Record], session_id: str) -> int:
    """Return the time (ms) when a person last rewound the conversation in the agent's own program;
    0 if that never happened."""
    last = 0
    for record in records:
        event = record.event
        if isinstance(event, RunTakenBack) and event.rewound and event.session_id == session_id:
            last = record.at
    return last


def without_rewound(now: Loaded, journal: Iterable[Journaled]) -> Loaded:
    """Return `now`, the items that the agent would load, with additional `dropped` items: those
    that a person removed by rewinding. Pure.

    OpenCode deletes rewound items from its database, so they are in no transcript.
    """
    gone = []
    for each in unrecorded(now, journal):
        if each.rewound:
            gone.append(each.item)
    if gone:
        return replace(now, dropped=(*now.dropped, *gone))
    return now


def _is_confirmed(attempt: Attempt) -> bool:
    """Return whether the attempt is known to have continued the conversation: it has a receipt that
    is not `broken`, and the model answered."""
    receipt = attempt.receipt
    if receipt is None or receipt.verdict is Verdict.BROKEN:
        return False
    return receipt.evidence.answered


def _was_active(attempt: Attempt) -> bool:
    receipt = attempt.receipt
    if receipt is None:
        return False
    return receipt.evidence.answered or bool(receipt.evidence.prompt_found)


def _opened_another(attempt: Attempt) -> bool:
    """Return whether the agent opened another conversation than the requested one."""
    asked, receipt = attempt.continuation, attempt.receipt
    if asked is None or receipt is None or asked.kind is not Start.RESUME:
        return False
    return receipt.evidence.returned not in ("", asked.session_id)


def compare_transcript(
    copies: Copies,
    driver: AgentDriver,
    home: Path,
    session_id: str,
    path: Path | None,
    known: Baseline,
) -> TranscriptCondition:
    """Compare a transcript with what perdure has seen of the conversation, and return the result.
    Raises WorkspaceError."""
    try:
        content = path.read_bytes() if path is not None else None
    except OSError:
        content = None
    if path is None or content is None:
        # The content of a damaged file may lack the conversation's id, but the driver finds the
        # file by its file name. Such a transcript counts as changed, not as absent.
        if driver.files_of(home, session_id):
            return TranscriptCondition.CHANGED
        return TranscriptCondition.ABSENT
    copied = copies.continued_by(driver, session_id, path)
    kept = [prefix(path, each.size) == each.sha256 for each in known.snapshots]
    changed = copied is False or not all(kept)
    if not changed and (copied or kept):
        return TranscriptCondition.WHOLE
    there = set(fingerprints_of(driver, content))
    ours = set(known.prompts)
    if copied is False:
        ours |= _copied_prompts(copies, driver, session_id)
    if there and ours and not there & ours:
        return TranscriptCondition.FOREIGN
    if changed:
        return TranscriptCondition.CHANGED
    return TranscriptCondition.WHOLE


def _copied_prompts(copies: Copies, driver: AgentDriver, session_id: str) -> set[str]:
    try:
        content = copies.of(driver.name, session_id).read_bytes()
    except OSError:
        return set()
    return set(fingerprints_of(driver, content))


def fingerprints_of(driver: AgentDriver, content: bytes) -> list[str]:
    """Return the fingerprints of the prompts in a transcript, in order."""
    return [fingerprint(prompt.text) for prompt in driver.prompts(content)]


def load(redactor: Redactor, driver: AgentDriver, home: Path, content: bytes) -> Loaded | None:
    """Return the items that the agent would load from a transcript on a resume; None if the driver
    cannot determine them. Secrets are redacted first, so that the items can be compared with the
    journal, which is redacted too."""
    return loaded(driver, home, redactor.bytes(content))


def shown_of(base: Loaded | None, now: Loaded, journal: Iterable[Journaled]) -> Shown:
    """Compare the known items with those that the agent will load now, and return the result. The
    known items are those of `base` and those of the journal. Pure.

    `now`: the items that the agent will load. `base`: the items of the last transcript that perdure
    saw; None if they are the same as `now`.
    """
    held = compare(base.items, now) if base is not None else _all_of(now)
    before = base if base is not None else now
    counted = _keys(before.items)
    news = [each.item for each in journal if _key(each.item) not in counted]
    there = _keys(now.items)
    summarized = set(map(_key, now.condensed))
    aside = set(map(_key, now.dropped))
    missing = [each for each in news if _key(each) not in there | summarized]
    off_branch = sum(_key(each) in aside for each in missing)
    condensed = sum(_key(each) in summarized - there for each in news)
    relation = held.relation
    if missing and relation in (Relation.WHOLE, Relation.COMPACTED):
        relation = Relation.SHORTENED if off_branch else Relation.GAPS
    if condensed and relation is Relation.WHOLE:
        relation = Relation.COMPACTED
    return Shown(
        relation=relation,
        known=held.known + len(news),
        shown=held.shown + sum(_key(each) in there for each in news),
        condensed=held.condensed + condensed,
        off_branch=held.off_branch + off_branch,
        unrecorded=len(missing) - off_branch,
        missing=tuple(map(quote, (*held.missing, *missing)[:QUOTED])),
    )


def with_added(copy: Loaded, there: Loaded, strange: frozenset[str]) -> Loaded | None:
    """Return the items of `copy`, followed by the items that another program added to the agent's
    transcript, beginning with that program's first prompt. None if there is no such prompt. Pure.

    `copy`: the items of perdure's own copy. `there`: the items of the agent's transcript, which the
    copy is to replace. `strange`: the fingerprints of the other program's prompts in that
    transcript.
    """
    added = compare(copy.items, there).added
    for at, each in enumerate(added):
        if each.kind is ItemKind.PROMPT and each.digest in strange:
            return Loaded(items=(*copy.items, *added[at:]))
    return None


def _all_of(now: Loaded) -> Comparison:
    count = sum(not each.made_up for each in now.items)
    return Comparison(relation=Relation.WHOLE, known=count, shown=count)


def unrecorded(now: Loaded, journal: Iterable[Journaled]) -> list[Journaled]:
    """Return the items of the journal that are missing from the transcript. Pure."""
    rows = (*now.items, *now.condensed, *now.dropped)
    there = _keys(rows)
    return [each for each in journal if _key(each.item) not in there]


def count_fully_quoted(unrecorded_items: Sequence[Journaled]) -> int:
    """Return the number of missing items for which a full quotation in the prompt is a substitute
    (see `prompt_facts`). `unrecorded_items`: the items of the journal that no transcript has. Pure.

    A result counts if it is short enough. A short call or answer counts only if no result follows
    it: the agent was then killed before its next request, so the model never had the item in its
    history. A quotation cannot replace an item that the model did have in its history.
    """
    count = 0
    in_history = False
    for each in reversed(unrecorded_items):
        if each.item.kind is ItemKind.RESULT:
            in_history = True
            count += len(each.output) < WHOLE_OUTPUT
        elif each.item.kind in (ItemKind.CALL, ItemKind.ANSWER) and not in_history:
            count += len(each.words) < WHOLE_WORDS
    return count


def with_ids_of(now: Loaded, journal: Sequence[Journaled]) -> tuple[Journaled, ...]:
    """Return the journal with its call ids replaced by those in the transcript. Needed for agents
    whose output and transcript use different call ids. Pure.

    The search begins where the journal's first prompt last occurs in the transcript. Calls are
    matched by their command if possible, otherwise in order. A call without a match keeps its own
    id, so it counts as missing.
    """
    rows = [*now.items, *now.condensed, *now.dropped]
    first = next((each.item for each in journal if each.item.kind is ItemKind.PROMPT), None)
    if first is not None:
        places = [at for at, each in enumerate(rows) if _key(each) == _key(first)]
        rows = rows[places[-1] :] if places else []
    free = [each for each in rows if each.kind is ItemKind.CALL]
    calls = [each for each in journal if each.item.kind is ItemKind.CALL]
    found: dict[tuple[int, str], str] = {}
    for each in calls:
        partner = next((other for other in free if _same_command(each.words, other.said)), None)
        if partner is not None:
            free.remove(partner)
            found[each.attempt, each.item.key] = partner.key
    for each in calls:
        if (each.attempt, each.item.key) not in found and free:
            found[each.attempt, each.item.key] = free.pop(0).key
    kept = []
    for each in journal:
        key = found.get((each.attempt, each.item.key), each.item.key)
        kept.append(replace(each, item=replace(each.item, key=key)))
    return tuple(kept)


def _same_command(words: str, said: str) -> bool:
    """Return whether a command that the agent printed (`words`) is the one in its transcript
    (`said`). In the transcript the command follows the name of the tool."""
    command = said.partition(" ")[2]
    return bool(command) and command in " ".join(words.split())


def _key(each: Item) -> tuple[str, str]:
    return (each.kind, each.key or each.digest)


def _keys(items: Iterable[Item]) -> set[tuple[str, str]]:
    return {_key(each) for each in items if not each.made_up}
