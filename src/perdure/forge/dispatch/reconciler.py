"""What no delivery told: perdure was down, or the forge did not send. A thread of `perdure serve`
that asks every forge now and then.

It goes by how things stand, so it may look as often as it likes: failed deliveries are asked for
again; an open issue that an agent is to work on and nobody has begun, one that was closed or opened
again, and what people said meanwhile, become deliveries of perdure's own in the same inbox, each
once, and go the way of all others: who may not have an agent at work by a webhook may not by this.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from perdure.engine.attempt import Engine
from perdure.errors import Conflict, ForgeDenied, ForgeRefused, NotFound
from perdure.forge.dispatch.cleanup import is_cleaned_up
from perdure.forge.dispatch.selection import scope_of_thing
from perdure.forge.dispatch.withdrawal import UNASSIGNED, began_by, withdrawn
from perdure.forge.webhooks.found import found
from perdure.forge.webhooks.speech import mentioned, stopped
from perdure.model import TaskRun
from perdure.model.forge.deliveries import Arrived, Forge, Intent, IntentKind
from perdure.model.forge.postings import Origin, origin_of
from perdure.model.forge.rules import OWN_MARK, Rule
from perdure.model.forge.sources import Source
from perdure.model.forge.state import CheckVerdict, Comment, CommentKind, Issue, IssueRef, Pull
from perdure.protocols import ForgeApi

AT_FIRST_MS = 3 * 86_400_000
"""So far back failed deliveries are looked for after a start: GitHub keeps them for three days."""
OVERLAP_MS = 600_000
"""The clocks of two machines differ."""
LOOKED_AT = 2000
"""So many of the newest deliveries are compared with what people said."""
RUNS_MOST = 100
ON_ITS_WAY_MS = 120_000
"""What is newer may be told by a delivery yet."""
ASKED_MOST = 3
"""So often a delivery is asked for again: one that is refused here for what it is would else be
sent for ever."""
REST = 4
"""So many times as long as a round took, nothing is asked: many repositories do not use up what the
forge answers in an hour."""

ForgeOf = Callable[[str, str], ForgeApi | None]


class Reconciler:
    """From `with` to its end; looks at once, then every `every_s`. `kept` is called when something
    was found; `say` gets a line for that, and for a forge that cannot be asked."""

    def __init__(
        self,
        engine: Engine,
        sources: Sequence[Source],
        rules: Sequence[Rule],
        forge_of: ForgeOf,
        every_s: float,
        kept: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._engine, self._sources, self._rules, self._forge_of = engine, sources, rules, forge_of
        self._every_s, self._kept, self._say = every_s, kept, say
        self._since: dict[str, int] = {}
        self._trouble: dict[str, str] = {}
        self._asked: dict[tuple[str, str], int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go, name="reconciler", daemon=True)

    def __enter__(self) -> Reconciler:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _go(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            self.round()
            self._over.wait(max(self._every_s, REST * (time.monotonic() - began)))

    def round(self) -> int:
        """Asks all forges; returns how many deliveries are new by that. Never raises."""
        new = 0
        for source in self._sources:
            try:
                new += self._source(source)
                self._trouble.pop(source.name, None)
            except Exception as error:
                # A forge that answers what nobody foresaw ends no thread: what is missed now is
                # found by a later round.
                self._complain(source.name, source.name, error)
        if new:
            self._kept()
        return new

    def _complain(self, which: str, what: str, error: Exception) -> None:
        """Once, until it is well again or something else is the matter."""
        said = str(error) or type(error).__name__
        if self._trouble.get(which) != said:
            self._say(f"{what} cannot be asked what was missed: {said}")
        self._trouble[which] = said

    def _source(self, source: Source) -> int:
        new, well, began = 0, True, self._engine.store.now()
        since = self._since.get(source.name, 0)
        for rule in self._rules:
            forge = self._forge_of(source.name, rule.name)
            if (
                forge is None
                or source.forge is None
                or (rule.sources and source.name not in rule.sources)
                or self._over.is_set()
            ):
                continue
            told = set()
            for repository in forge.repositories(rule.repositories):
                if self._over.is_set():
                    return new
                try:
                    if self._redelivered(forge, source, repository, since or began - AT_FIRST_MS):
                        told.add(repository)
                    new += self._keep(self._unbegun(forge, source, source.forge, rule, repository))
                    self._trouble.pop(f"{source.name} {repository}", None)
                except (NotFound, ForgeDenied, ForgeRefused) as error:
                    if isinstance(error, ForgeDenied) and error.everywhere:
                        raise
                    # It is gone, has no issues, or is out of reach: that says nothing of the
                    # others.
                    well = False
                    self._complain(
                        f"{source.name} {repository}", f"{repository} of {source.name}", error
                    )
            new += self._keep(self._gone_on(forge, source, source.forge, rule, since, told))
        if well:
            self._since[source.name] = began - OVERLAP_MS
        return new

    def _keep(self, arrived: Iterator[Arrived]) -> int:
        """In the inbox, unless they are there."""
        batch = list(arrived)
        accepted = self._engine.store.accept(batch) if batch else []
        for each, told in zip(batch, accepted, strict=True):
            if told.new and each.reading.intent is not None:
                intent = each.reading.intent
                self._say(
                    f"{each.source}: found {intent.kind} of {intent.repository}#{intent.number}, "
                    "which nobody had told"
                )
        return sum(each.new for each in accepted)

    def _redelivered(self, forge: ForgeApi, source: Source, repository: str, since: int) -> bool:
        """Asks for what the forge could not send: it comes by the webhook, under its own id. False
        where the forge does not tell."""
        found = forge.failed_deliveries(repository, f"/webhooks/{source.name}", since=since)
        for failed in found or ():
            key = (source.name, failed.delivery)
            if self._asked.get(key, 0) < ASKED_MOST and not self._is_here(failed.delivery):
                self._asked[key] = self._asked.get(key, 0) + 1
                forge.redeliver(repository, failed)
                self._say(
                    f"{source.name}: asked again for delivery {failed.delivery} of {repository}"
                )
        return found is not None

    def _is_here(self, delivery: str) -> bool:
        try:
            self._engine.store.delivery(delivery)
        except NotFound:
            return False
        except Conflict:
            return True  # Several begin so; one of them is it.
        return True

    # --- what nobody has begun
    # ---------------------------------------------------------------------------------------

    def _unbegun(
        self, forge: ForgeApi, source: Source, kind: Forge, rule: Rule, repository: str
    ) -> Iterator[Arrived]:
        """Open issues that wear the agent's label, or are assigned to it, and have no run."""
        for label in rule.labels:
            for issue in forge.open_issues(repository, label=label):
                if not self._run_of(source, rule, kind, issue) and (
                    author := _author(rule, issue, forge.chosen_by(issue.ref, label=label))
                ):
                    yield _thing(
                        source,
                        kind,
                        IntentKind.LABELLED,
                        issue,
                        author,
                        f"{rule.name} {label}",
                        labels=(label,),
                    )
        for issue in forge.open_issues(repository, assignee=rule.login) if rule.login else ():
            who = rule.login
            if not self._run_of(source, rule, kind, issue) and (
                author := _author(rule, issue, forge.chosen_by(issue.ref, assignee=who))
            ):
                yield _thing(
                    source, kind, IntentKind.ASSIGNED, issue, author, rule.name, whom=(rule.login,)
                )

    def _run_of(self, source: Source, rule: Rule, kind: Forge, issue: Issue) -> TaskRun | None:
        apart = kind is Forge.GITLAB and issue.ref.pull
        scope = scope_of_thing(
            source.name, rule, issue.ref.repository, issue.ref.number, apart=apart
        )
        return self._engine.store.run_under(rule.name, scope)

    # --- what went on without us
    # -------------------------------------------------------------------------------------

    def _gone_on(
        self, forge: ForgeApi, source: Source, kind: Forge, rule: Rule, since: int, told: set[str]
    ) -> Iterator[Arrived]:
        """What happened to the issues and pull requests of the rule's newest runs: closed, opened
        again; and what people said, where the forge does not tell what it could not send."""
        known, heard = self._known(source)
        for row in self._engine.store.find(limit=RUNS_MOST):
            run = self._engine.store.get(row.id)
            origin = origin_of(run)
            if (
                origin is None
                or origin.source != source.name
                or origin.rule != rule.name
                or self._over.is_set()
            ):
                continue
            for ref in self._refs(run, origin):
                try:
                    issue = forge.pull(ref.repository, ref.number) if ref.pull else forge.issue(ref)
                    yield from self._turned(forge, source, kind, rule, run, issue)
                    if issue.open and ref.repository not in told:
                        yield from self._said(
                            forge, source, kind, issue, max(run.created, since, heard), known
                        )
                except (NotFound, ForgeRefused, ForgeDenied) as error:
                    if isinstance(error, ForgeDenied) and error.everywhere:
                        raise
                    continue  # It is not there any more, or not for us.

    def _refs(self, run: TaskRun, origin: Origin) -> list[IssueRef]:
        posting = self._engine.store.posting(run.id)
        own = (
            [IssueRef(origin.repository, posting.pull, pull=True)]
            if posting is not None and posting.pull
            else []
        )
        return [IssueRef(origin.repository, origin.number, origin.pull), *own]

    def _turned(
        self, forge: ForgeApi, source: Source, kind: Forge, rule: Rule, run: TaskRun, issue: Issue
    ) -> Iterator[Arrived]:
        """It was closed or opened again since."""
        over, merged = is_cleaned_up(self._engine, run), isinstance(issue, Pull) and issue.merged
        which = f"{run.id} {issue.updated}"
        for_issue = isinstance(issue, Pull) and "pull" not in run.spec.labels
        if (
            not issue.open
            and for_issue
            and any(
                issue.updated < each.started for each in self._engine.store.attempts(run.id)[-1:]
            )
        ):
            # The work went on after that: its issue was opened again, and an earlier pull request
            # stays merged.
            return
        if not issue.open and not over:
            yield _thing(
                source, kind, IntentKind.MERGED if merged else IntentKind.CLOSED, issue, "", which
            )
        elif (
            issue.open
            and over
            and (author := _author(rule, issue, forge.chosen_by(issue.ref, reopened=True)))
        ):
            yield _thing(source, kind, IntentKind.REOPENED, issue, author, which)
        elif issue.open and not for_issue:
            yield from self._given_or_taken(forge, source, kind, rule, run, issue)

    def _given_or_taken(
        self, forge: ForgeApi, source: Source, kind: Forge, rule: Rule, run: TaskRun, issue: Issue
    ) -> Iterator[Arrived]:
        """It was unassigned since, or its label taken off; or assigned again after it was
        unassigned."""
        which, began = f"{run.id} {issue.updated}", began_by(self._engine.store, rule, run)
        is_assigned = rule.login.casefold() in {each.casefold() for each in issue.assignees}
        condition = withdrawn(run)
        if condition is not None:
            if is_assigned and condition.message.startswith(UNASSIGNED):
                author = _author(rule, issue, forge.chosen_by(issue.ref, assignee=rule.login))
                if author:
                    yield _thing(
                        source, kind, IntentKind.ASSIGNED, issue, author, which, whom=(rule.login,)
                    )
        elif began == "assigned" and not is_assigned:
            yield _thing(
                source, kind, IntentKind.UNASSIGNED, issue, "", which, unassigned=(rule.login,)
            )
        elif began == "labelled" and not is_assigned and not set(rule.labels) & set(issue.labels):
            yield _thing(
                source, kind, IntentKind.UNLABELLED, issue, "", which, unlabelled=rule.labels
            )

    def _said(
        self,
        forge: ForgeApi,
        source: Source,
        kind: Forge,
        issue: Issue,
        since: int,
        known: set[tuple[str, str]],
    ) -> Iterator[Arrived]:
        """What people said and no delivery told. What was said just now may be on its way."""
        fresh = self._engine.store.now() - ON_ITS_WAY_MS
        for comment in forge.comments(issue.ref, since=since):
            key = (comment.author.casefold(), comment.text.strip())
            if (
                comment.updated > fresh
                or key in known
                or OWN_MARK in comment.text
                or comment.kind is CommentKind.LINE
                or not key[1]
            ):
                continue
            yield _saying(source, kind, issue, comment)

    def _known(self, source: Source) -> tuple[set[tuple[str, str]], int]:
        """What people said that is in the inbox already, and since when (ms) all of it is known."""
        told = self._engine.store.inbox(source=source.name, limit=LOOKED_AT)
        intents = [
            each.intent for each in told if each.intent is not None and each.intent.text.strip()
        ]
        return {(intent.author.casefold(), intent.text.strip()) for intent in intents}, told[
            -1
        ].received if len(told) == LOOKED_AT else 0


def _author(rule: Rule, issue: Issue, chosen_by: str) -> str:
    """Who wants the work. Where the forge does not tell who chose the agent, its author does, if
    the forge is asked what he may do: by the name alone somebody else could have an agent at work
    for him."""
    return chosen_by or ("" if rule.authors else issue.author)


def _thing(
    source: Source,
    forge: Forge,
    kind: IntentKind,
    issue: Issue,
    author: str,
    which: str,
    *,
    whom: tuple[str, ...] = (),
    labels: tuple[str, ...] = (),
    unassigned: tuple[str, ...] = (),
    unlabelled: tuple[str, ...] = (),
) -> Arrived:
    intent = Intent(
        kind=kind,
        forge=forge,
        repository=issue.ref.repository,
        number=issue.ref.number,
        pull=issue.ref.pull,
        author=author,
        whom=whom,
        labels=labels,
        unassigned=unassigned,
        unlabelled=unlabelled,
        confidential=issue.confidential,
        title=issue.title,
        description=issue.text,
        branch=_branch(issue),
        url=issue.url,
        at=issue.updated,
    )
    mark = "!" if issue.ref.pull else ""
    return found(source.name, forge, intent, f"{kind} {issue.ref}{mark} {which}")


def _branch(issue: Issue) -> str:
    return issue.head if isinstance(issue, Pull) else ""


def _saying(source: Source, forge: Forge, issue: Issue, comment: Comment) -> Arrived:
    wants = comment.verdict is CheckVerdict.CHANGES_REQUESTED
    review = IntentKind.CHANGES_REQUESTED if wants else IntentKind.LINE_COMMENTED
    intent = Intent(
        kind=review if comment.kind is CommentKind.REVIEW else IntentKind.COMMENTED,
        forge=forge,
        repository=issue.ref.repository,
        number=issue.ref.number,
        pull=issue.ref.pull,
        author=comment.author,
        confidential=issue.confidential or comment.confidential,
        title=issue.title,
        description=issue.text,
        text=comment.text,
        mentions=mentioned(comment.text),
        stops=stopped(comment.text),
        comment=comment.id,
        branch=_branch(issue),
        url=comment.url or issue.url,
        at=comment.updated,
    )
    return found(source.name, forge, intent, f"said {issue.ref} {comment.kind} {comment.id}")
