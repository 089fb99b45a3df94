"""Detects work that is taken back on the forge: the agent is unassigned, the label that began the
work is removed, or somebody tells the agent to stop. The run is stopped gracefully and keeps its
conversation. Later comments do not restart the run. The run gets them when the work is given to the
agent again. Called by `dispatcher`.

Also cleans up work that is over on the forge (`clean`): saves it, then moves the workdir to the
trash. `restore_workdir` restores the workdir if the work continues later. The run keeps its
conversation.

The order of the steps of a clean-up makes a kill at any point harmless. First a checkpoint of
workdir and conversation is made, then a capsule is written if the rule asks for one, then the event
is added to the journal. The workdir is moved last, by one rename. It is moved only if all of its
content is proven at that moment to be saved elsewhere, in that checkpoint or in a repository.
Otherwise it stays, and a condition of the run says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from msgspec.structs import replace

from perdure.engine import checkpoints, sweeper
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import EngineStore
from perdure.engine.unsaved import WHAT
from perdure.errors import Conflict, NotFound, PerdureError
from perdure.model import CLEAN_UP, UNSAVED, Backend, Checkpoint, Condition, TaskRun, Workspace
from perdure.model.events import BroughtBack, CleanedUp, RunReset
from perdure.model.forge.deliveries import Delivery, Forge, Intent, IntentKind
from perdure.model.forge.rules import BEGINNING, Rule, is_for, wants
from perdure.protocols import InboxStore, RunStore
from perdure.rules.lifecycle import FINAL
from perdure.workspace import RemovalCheck, Workspaces

WITHDRAWN = "withdrawn"
"""Type of the condition of a run whose work was taken back. It is removed when the run is queued
again."""
UNASSIGNED = "unassigned"
"""First word of the condition's message if the work was taken back by unassigning the agent."""
TOLD_WHOLE = frozenset({Forge.GITEA, Forge.FORGEJO})
"""Forges that report all labels and assignees whenever one of them changes, without saying which
one."""
ASSIGNEES = frozenset({IntentKind.OPENED, IntentKind.ASSIGNED, IntentKind.UNASSIGNED})
LABELS = frozenset({IntentKind.OPENED, IntentKind.LABELLED, IntentKind.UNLABELLED})
SPOKEN = frozenset(
    {
        IntentKind.COMMENTED,
        IntentKind.LINE_COMMENTED,
        IntentKind.CHANGES_REQUESTED,
        IntentKind.APPROVED,
        IntentKind.COMMENT_EDITED,
    }
)
"""Kinds of intents with a text from a person, in which a command to stop may occur."""


def may_withdraw(intent: Intent) -> bool:
    """Return whether the intent may take back work from any agent. Whether it takes back the work
    of a certain run is decided later (`taken_back`, `is_told_to_stop`)."""
    told_whole = (
        intent.forge in TOLD_WHOLE
        and intent.kind in ASSIGNEES | LABELS
        and intent.kind is not IntentKind.OPENED
    )
    return told_whole or bool(intent.unassigned or intent.unlabelled or intent.stops)


def with_changes(store: InboxStore, delivery: Delivery, intent: Intent, run: TaskRun) -> Intent:
    """Return the intent with the removed assignees and labels. Some forges report only the present
    assignees and labels. For these forges, the removed ones are found by comparison with the
    previous report about the same issue."""
    if intent.forge not in TOLD_WHOLE or intent.unassigned:
        return intent
    if intent.kind in (IntentKind.ASSIGNED, IntentKind.UNASSIGNED):
        before = _previous_intent(store, delivery, intent, run, ASSIGNEES)
        return replace(
            intent, unassigned=_removed_names(before.whom if before else (), intent.whom)
        )
    if intent.kind in (IntentKind.LABELLED, IntentKind.UNLABELLED):
        before = _previous_intent(store, delivery, intent, run, LABELS)
        return replace(
            intent, unlabelled=_removed_names(before.labels if before else (), intent.labels)
        )
    return intent


def is_given_again(
    store: InboxStore, delivery: Delivery, intent: Intent, run: TaskRun, rule: Rule, trigger: str
) -> bool:
    """Return whether the trigger gives the agent its work again, after the work was taken back.
    Some forges report all labels and assignees whenever one of them changes. On these forges, a
    label or login counts only if it was missing from the previous report."""
    if trigger not in BEGINNING:
        return False
    if intent.forge not in TOLD_WHOLE or trigger not in ("assigned", "labelled"):
        return True
    before = _previous_intent(
        store, delivery, intent, run, ASSIGNEES if trigger == "assigned" else LABELS
    )
    if before is None:
        return True
    if trigger == "assigned":
        return rule.login.casefold() not in set(map(str.casefold, before.whom))
    return any(label not in before.labels for label in rule.labels if label in intent.labels)


def _removed_names(before: Sequence[str], now: Sequence[str]) -> tuple[str, ...]:
    there = set(map(str.casefold, now))
    return tuple(each for each in before if each.casefold() not in there)


def _previous_intent(
    store: InboxStore,
    delivery: Delivery,
    intent: Intent,
    run: TaskRun | None,
    kinds: frozenset[IntentKind],
) -> Intent | None:
    """Return the intent of the previous report about the same issue, if its kind is in `kinds`. If
    the inbox has no such report, return the intent that began the run; None if that is missing too.
    """
    for each in store.deliveries_about(delivery.source, intent, before=delivery.number):
        if each.intent is not None and each.intent.kind in kinds:
            return each.intent
    return _first_intent(store, run)


def _first_intent(store: InboxStore, run: TaskRun | None) -> Intent | None:
    """Return the intent that began the run. Returns None if its delivery is not in the inbox."""
    number = run.spec.labels.get("delivery", "") if run is not None else ""
    try:
        if number.isdecimal():
            return store.delivery(number)[0].intent
        return None
    except (NotFound, Conflict):
        return None


def is_told_to_stop(rule: Rule, intent: Intent) -> bool:
    """Return whether a comment tells the rule's agent to stop, and was written by a person whose
    requests the rule accepts."""
    stops = set(map(str.casefold, intent.stops))
    return (
        intent.kind in SPOKEN
        and bool(rule.login)
        and rule.login.casefold() in stops
        and is_for(rule, intent)
    )


def taken_back(store: InboxStore, rule: Rule, run: TaskRun, intent: Intent) -> str:
    """Return how the work was taken back, in words; empty if it was not. Anyone who may unassign or
    remove labels on the forge may take back work. Only actions of the agent itself are ignored."""
    login, author = rule.login.casefold(), intent.author.casefold()
    if author and author == login:
        return ""
    by = f" by {intent.author}" if intent.author else ""
    if login and login in set(map(str.casefold, intent.unassigned)):
        return f"{UNASSIGNED}{by}"
    gone = [label for label in rule.labels if label in intent.unlabelled]
    if gone and _began_by_label(store, rule, run):
        return f"the label {gone[0]} removed{by}"
    return ""


def _began_by_label(store: InboxStore, rule: Rule, run: TaskRun) -> bool:
    return began_by(store, rule, run) in ("labelled", "")


def began_by(store: InboxStore, rule: Rule, run: TaskRun) -> str:
    """Return the trigger that began the run; empty if its delivery is not in the inbox."""
    first = _first_intent(store, run)
    if first is not None:
        return wants(rule, first)
    return ""


def message(rule: Rule, why: str) -> str:
    """Return the message for a run whose work was taken back. The message says how to continue the
    run."""
    if rule.login:
        again = f"assign it to {rule.login} again, or mention it"
    else:
        again = f"put the label {(*rule.labels, 'on')[0]} on again"
    return f"{why}; to continue, {again}"


def withdrawn(run: TaskRun) -> Condition | None:
    """Return the run's condition `withdrawn`; None if the run's work was not taken back."""
    for each in run.conditions:
        if each.type == WITHDRAWN:
            return each
    return None


def ignored_reason(run: TaskRun) -> str:
    """Return why a run whose work was taken back does not get a comment now."""
    return f"{run.name} no longer works on it: it gets the comment when it continues"


def missed_comments(
    store: InboxStore, run: TaskRun, sources: Sequence[str]
) -> Iterator[tuple[Delivery, Intent]]:
    """Yield, in order, the events that the run did not get because its work was taken back."""
    condition = withdrawn(run)
    if condition is None:
        return
    for source in sources:
        for each in reversed(store.deliveries_with_reason(source, ignored_reason(run))):
            if each.updated < condition.at or each.intent is None:
                continue
            # A failed check is skipped, because others may have repaired the cause meanwhile.
            if each.intent.kind is not IntentKind.CI_FAILED:
                yield each, each.intent


VERB = CLEAN_UP
KEPT = UNSAVED
HALF_BACK = "half_back"
"""Type of the condition of a run whose workdir is being restored from its checkpoint."""
ARCHIVE = "archive"
"""Directory for the capsules of cleaned-up runs, below the state directory."""


def clean(
    engine: Engine, rule: Rule, run: TaskRun, why: str, *, pull: int = 0, forge: Forge | None = None
) -> str:
    """Clean up a run, and return a sentence about what was done. `pull` is the number of the run's
    pull request. The forge keeps the commits of a pull request forever, so they count as saved.

    Raises Conflict while the workdir is in use, or if the run is on another host that has not
    cleaned it up yet. Raises PerdureError if the capsule cannot be written. An error leaves the
    workdir unchanged.
    """
    place = run.workspace
    if engine.host.elsewhere(run):
        kept = next((each.message for each in run.conditions if each.type == KEPT), "")
        if kept or _last(engine.store, run) is not None:
            if kept:
                return f"{run.name}: {kept}"
            return f"{run.name} is cleaned up: {why}"
        raise Conflict(
            f"{run.name} is on {run.host_name}, and is cleaned up there",
            f"perdure show {run.name}",
        )
    if place is None or place.backend not in (Backend.WORKTREE, Backend.ISOLATED):
        return f"{run.name} has no workdir of its own"
    if not os.path.lexists(place.path):
        return f"{run.name} no longer has a workdir"
    fd = engine.workspaces.lock(place, f"the clean-up of {run.name}")
    try:
        beside = [each for each in engine.store.placed() if each.workspace.path == place.path]
        if used := sweeper.at_work(beside, sweeper.unfinished(engine.store)):
            raise Conflict(used, f"perdure stop {run.name}")
        checkpoint = None
        # If the checkpoint cannot be made, only a repository can still prove that the work is
        # saved.
        with suppress(PerdureError, OSError):
            checkpoint = checkpoints.save_current(engine, run, place, VERB)
        proof = _prove(engine.workspaces, place, pull, forge, checkpoint)
        if proof.lost:
            return _kept(engine.store, run, why, proof.lost)
        if proof.reflog_commits:
            engine.workspaces.checkpoints.keep_commits(place, proof.reflog_commits)
        checkpoint = checkpoint or checkpoints.save_current(engine, run, place, VERB)
        number = checkpoint.number if checkpoint is not None else 0
        if rule.archive == "capsule" and number:
            capsule = _capsule(engine, run, number)
        else:
            capsule = ""
        event = CleanedUp(
            why=why, checkpoint=number, capsule=capsule, needed=bool(proof.checkpoint)
        )
        # The event is recorded before the move. A process that finds the workdir missing can then
        # tell that it may be restored.
        engine.store.record_outside_attempt(run.id, [event], solved=KEPT)
        about: dict[str, object] = {
            "verb": VERB,
            "run": run.name,
            "runs": [each.id for each in beside],
            "why": why,
            "unsaved": list(proof.build_output),
        }
        if checkpoint is not None and proof.checkpoint:
            about["checkpoint"] = {
                "run": run.id,
                "number": number,
                "commit": checkpoint.workdir.commit,
            }
        engine.workspaces.trash_workdir(place, about)
    finally:
        os.close(fd)
    if checkpoint is not None and engine.publisher is not None:
        engine.publisher.published(checkpoint)
    return f"{run.name} is cleaned up: {why}"


def _prove(
    workspaces: Workspaces,
    place: Workspace,
    pull: int,
    forge: Forge | None,
    checkpoint: Checkpoint | None,
) -> RemovalCheck:
    """Check that the workdir's content is saved elsewhere, and return the result. After a squash
    merge, no branch contains the run's commits, but the forge keeps them under the ref of the pull
    request. So that ref is fetched if needed."""
    if pull and forge and not workspaces.check_removal(place).saved:
        if forge is Forge.GITLAB:
            ref = f"refs/merge-requests/{pull}/head"
        else:
            ref = f"refs/pull/{pull}/head"
        with suppress(PerdureError):
            workspaces.keep_remote_ref(place, ref)
    if checkpoint is None:
        return workspaces.check_removal(place)
    return workspaces.check_removal(place, checkpoint.number, checkpoint.workdir.commit)


def _kept(store: EngineStore, run: TaskRun, why: str, lost: Sequence[str]) -> str:
    message = f"{why}, but its workdir stays: {WHAT}{'; '.join(lost)}"
    store.record_outside_attempt(run.id, [], Condition(type=KEPT, message=message, at=store.now()))
    return f"{run.name}: {message}"


def _capsule(engine: Engine, run: TaskRun, number: int) -> str:
    """Write a capsule from which known secrets are removed, and return its path."""
    from perdure.capsule.export import ExportRequest, export

    target = engine.state / ARCHIVE / f"{run.name}-{run.id[:8]}-{number}.capsule"
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return str(
        export(
            engine, run.id, ExportRequest(target=target, at=number, redact=True, leave_out=True)
        ).path
    )


def is_cleaned_up(store: RunStore, run: TaskRun) -> bool:
    """Return whether the run is in a final state, and a clean-up has removed its workdir, which was
    not restored or reset since."""
    return _gone(store, run) is not None


def _gone(store: RunStore, run: TaskRun) -> CleanedUp | None:
    if run.workspace is None or run.state not in FINAL or os.path.lexists(run.workspace.path):
        return None
    return _last(store, run)


def _last(store: RunStore, run: TaskRun) -> CleanedUp | None:
    """Return the event of the last clean-up. Returns None if there was none, or if the workdir was
    restored or reset after it."""
    for record in reversed(store.run_events(run.id)):
        if isinstance(record.event, CleanedUp):
            return record.event
        if isinstance(record.event, BroughtBack | RunReset):
            return None
    return None


def restore_workdir(engine: Engine, run: TaskRun) -> None:
    """Restore a workdir that was cleaned up, from the trash or from the checkpoint of the clean-up.
    A restore that was interrupted is repeated. Otherwise, does nothing if the workdir exists, or if
    a person reset it after the clean-up. Raises PerdureError."""
    if _is_half_back(engine.store, run):
        gone = _last(engine.store, run)
    else:
        gone = _gone(engine.store, run)
    if gone is None or run.workspace is None:
        return
    there = []
    for each in sweeper.listed(engine.workspaces, engine.state):
        if (each.about.get("verb"), each.about.get("path")) == (VERB, run.workspace.path):
            there.append(each.id)
    number = 0
    if there:
        try:
            sweeper.restore(engine.store, engine.workspaces, engine.state, there[-1])
        except NotFound as error:
            # Another server on this database restored the workdir first, or the trash entry was
            # just purged.
            raise Conflict(
                f"The workdir of {run.name} is being restored: {error}",
                f"perdure show {run.name}",
            ) from error
    elif gone.checkpoint:
        # The workdir is created first and filled second. If perdure is killed between the two
        # steps, the condition `HALF_BACK` remains, and both steps are repeated.
        message = f"its workdir is being restored from checkpoint {gone.checkpoint}"
        engine.store.record_outside_attempt(
            run.id, [], Condition(type=HALF_BACK, message=message, at=engine.store.now())
        )
        try:
            number = checkpoints.restore(engine, run.id, gone.checkpoint).checkpoint.number
        except NotFound:
            engine.store.record_outside_attempt(run.id, [], solved=HALF_BACK)
            # The checkpoint no longer exists, so the next attempt creates the workdir from its
            # branch.
            return
    engine.store.record_outside_attempt(
        run.id, [BroughtBack(place=run.workspace.path, checkpoint=number)], solved=HALF_BACK
    )
    engine.store.record_outside_attempt(run.id, [], solved=KEPT)


def _is_half_back(store: RunStore, run: TaskRun) -> bool:
    """Return whether a restore of the workdir from its checkpoint was interrupted, and no attempt
    has begun since."""
    since = next((each.at for each in run.conditions if each.type == HALF_BACK), 0)
    if not since or run.state not in FINAL:
        return False
    return all(each.started < since for each in store.attempts(run.id)[-1:])
