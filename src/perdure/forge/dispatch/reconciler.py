"""Finds changes that no delivery reported, because perdure was down or the forge sent none. Runs as
a thread of `perdure serve` that asks every forge at intervals.

It compares states, so it may run any number of times. It asks the forge to resend failed
deliveries. It looks for open issues that are meant for an agent and have no run, for issues that
were closed or reopened, and for comments that were missed. For each change that it finds, it adds
one delivery of perdure's own to the inbox. That delivery is handled like any other. So an author
who may not use an agent by its rule cannot use it this way either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from msgspec import Struct

from perdure.engine.attempt import Engine
from perdure.errors import Conflict, ForgeDenied, ForgeRefused, NotFound
from perdure.forge.dispatch.selection import scope_of_thing
from perdure.forge.dispatch.withdrawal import UNASSIGNED, began_by, is_cleaned_up, withdrawn
from perdure.forge.webhooks.author_text import mentioned, stop_commands
from perdure.forge.webhooks.intake import delivery_of
from perdure.host.rounds import Rounds
from perdure.model import TaskRun
from perdure.model.forge.deliveries import Arrived, Forge, Intent, IntentKind
from perdure.model.forge.postings import Origin, origin_of
from perdure.model.forge.rules import Rule, has_mark
from perdure.model.forge.sources import Source
from perdure.model.forge.state import (
    Access,
    CheckVerdict,
    Comment,
    CommentKind,
    Issue,
    IssueRef,
    Pull,
)
from perdure.protocols import ForgeApi
from perdure.rules.lifecycle import FINAL

AT_FIRST_MS = 3 * 86_400_000
"""Maximum age of the failed deliveries that the first search includes, in milliseconds. GitHub
keeps deliveries for three days."""
OVERLAP_MS = 600_000
"""Period that two successive searches both cover, in milliseconds. The clocks of the machines may
differ."""
LOOKED_AT = 2000
"""Number of a source's newest deliveries with which the comments on the forge are compared."""
RUNS_MOST = 100
ON_ITS_WAY_MS = 120_000
"""Age in milliseconds up to which a comment is skipped, because its delivery may still arrive."""
ASKED_MOST = 3
"""Maximum number of requests to resend one delivery. Without a limit, a delivery that perdure
rejects would be resent forever."""
REST = 4
"""Minimum pause after a search, as a multiple of the search's duration. With many repositories, the
pause saves requests, of which a forge allows a certain number an hour."""

ForgeOf = Callable[[str, str], ForgeApi | None]
CommentKey = tuple[str, int, CommentKind, str]
"""Identifies a comment: repository, number, kind and id."""


class _KnownComments(Struct, frozen=True):
    """The comments in the inbox: their authors and texts, and the keys of those that have an id.
    Comments that arrived before the time `since` (ms since 1970) may be missing."""

    texts: set[tuple[str, str]]
    keys: set[CommentKey]
    since: int


class Reconciler:
    """A context manager that searches the forges, first immediately and then every `every_s`
    seconds. `kept` is called when new deliveries were stored. `say` is called with a line about
    each change that was found, and about each forge that cannot be asked."""

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
        self._rounds = Rounds("reconciler", self._timed, every_s, self._failed)

    def __enter__(self) -> Reconciler:
        self._rounds.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._rounds.stop()

    def _timed(self) -> float:
        """Search all forges once. Returns the pause before the next round, in seconds."""
        began = time.monotonic()
        self.round()
        return max(self._every_s, REST * (time.monotonic() - began))

    def _failed(self, error: Exception) -> None:
        self._say(f"the forges are not asked: {error or type(error).__name__}")

    def round(self) -> int:
        """Search all forges once. Returns the number of new deliveries. Errors of a forge are
        reported, not raised."""
        new = 0
        for source in self._sources:
            try:
                new += self._source(source)
                self._trouble.pop(source.name, None)
            except Exception as error:
                # An unexpected answer of a forge must not end the thread. A later round finds what
                # this one missed.
                self._complain(source.name, source.name, error)
        if new:
            self._kept()
        return new

    def _complain(self, which: str, what: str, error: Exception) -> None:
        """Report an error, unless it is the last error that was reported for `which` (a source or a
        repository)."""
        said = str(error) or type(error).__name__
        if self._trouble.get(which) != said:
            self._say(f"missed events of {what} cannot be read: {said}")
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
                or self._rounds.is_over()
            ):
                continue
            told = set()
            for repository in forge.repositories(rule.repositories):
                if self._rounds.is_over():
                    return new
                try:
                    if self._redelivered(forge, source, repository, since or began - AT_FIRST_MS):
                        told.add(repository)
                    new += self._keep(self._unbegun(forge, source, source.forge, rule, repository))
                    self._trouble.pop(f"{source.name} {repository}", None)
                except (NotFound, ForgeDenied, ForgeRefused) as error:
                    if isinstance(error, ForgeDenied) and error.everywhere:
                        raise
                    # The repository is gone, has no issues, or is not accessible. The other
                    # repositories are not affected.
                    well = False
                    self._complain(
                        f"{source.name} {repository}", f"{repository} of {source.name}", error
                    )
            new += self._keep(self._later_events(forge, source, source.forge, rule, since, told))
        if well:
            self._since[source.name] = began - OVERLAP_MS
        return new

    def _keep(self, arrived: Iterator[Arrived]) -> int:
        """Store the deliveries that are not in the inbox yet. Returns the number of new ones."""
        batch = list(arrived)
        accepted = self._engine.store.accept(batch) if batch else []
        for each, told in zip(batch, accepted, strict=True):
            if told.new and each.reading.intent is not None:
                intent = each.reading.intent
                self._say(
                    f"{each.source}: found {intent.kind} of {intent.repository}#{intent.number}, "
                    f"for which no webhook had come"
                )
        return sum(each.new for each in accepted)

    def _redelivered(self, forge: ForgeApi, source: Source, repository: str, since: int) -> bool:
        """Ask the forge to resend failed deliveries, which then arrive as webhooks with their
        original ids. Returns False if the forge does not list failed deliveries."""
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
            # This id is the beginning of several stored ids, so the delivery is in the inbox.
            return True
        return True

    # --- issues without a run ---

    def _unbegun(
        self, forge: ForgeApi, source: Source, kind: Forge, rule: Rule, repository: str
    ) -> Iterator[Arrived]:
        """Yield a delivery for each open issue that has no run, although it has the agent's label
        or is assigned to the agent."""
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

    # --- missed events ---

    def _later_events(
        self, forge: ForgeApi, source: Source, kind: Forge, rule: Rule, since: int, told: set[str]
    ) -> Iterator[Arrived]:
        """Yield a delivery for each missed event of the issues and pull requests of the rule's
        newest runs. Changes of state are always included: closed, reopened, agent unassigned or
        assigned again, label removed. Comments are included only if the forge does not list its
        failed deliveries."""
        known = self._known(source)
        for row in self._engine.store.find(limit=RUNS_MOST):
            run = self._engine.store.get(row.id)
            origin = origin_of(run)
            if (
                origin is None
                or origin.source != source.name
                or origin.rule != rule.name
                or self._rounds.is_over()
            ):
                continue
            for ref in self._refs(run, origin):
                try:
                    issue = forge.pull(ref.repository, ref.number) if ref.pull else forge.issue(ref)
                    yield from self._open_state_change(forge, source, kind, rule, run, issue)
                    if issue.open and ref.repository not in told:
                        yield from self._missed_comments(
                            forge, source, kind, issue, max(run.created, since), known
                        )
                except (NotFound, ForgeRefused, ForgeDenied) as error:
                    if isinstance(error, ForgeDenied) and error.everywhere:
                        raise
                    continue  # The issue or pull request is gone or not accessible.

    def _refs(self, run: TaskRun, origin: Origin) -> list[IssueRef]:
        posting = self._engine.store.posting(run.id)
        if posting is not None and posting.pull:
            own = [IssueRef(origin.repository, posting.pull, pull=True)]
        else:
            own = []
        return [IssueRef(origin.repository, origin.number, origin.pull), *own]

    def _open_state_change(
        self, forge: ForgeApi, source: Source, kind: Forge, rule: Rule, run: TaskRun, issue: Issue
    ) -> Iterator[Arrived]:
        """Yield a delivery if the issue was closed or reopened and the run's state does not reflect
        that yet."""
        over, merged = (
            is_cleaned_up(self._engine.store, run),
            isinstance(issue, Pull) and issue.merged,
        )
        which = f"{run.id} {issue.updated}"
        for_issue = isinstance(issue, Pull) and "pull" not in run.spec.labels
        if not issue.open and for_issue and self._is_newer_attempt(run, issue.updated):
            # The pull request was merged or closed before this attempt began. The attempt began
            # because the issue was reopened, so the merging or closing is not reported again.
            return
        if not issue.open and self._is_continued(run, issue.closed):
            # A person continued the run after the closing, by a comment or by a command. The run is
            # cleaned up when it has ended.
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

    def _is_continued(self, run: TaskRun, closed: int) -> bool:
        """Return whether the run is not over and was continued after its issue was closed: it got
        its newest instructions or began its newest attempt after the closing."""
        if not closed or run.state in FINAL:
            return False
        given = [each.at for each in self._engine.store.contexts(run.id)[-1:]]
        given += [each.started for each in self._engine.store.attempts(run.id)[-1:]]
        return closed < max(given, default=0)

    def _given_or_taken(
        self, forge: ForgeApi, source: Source, kind: Forge, rule: Rule, run: TaskRun, issue: Issue
    ) -> Iterator[Arrived]:
        """Yield a delivery if the agent was unassigned since the run began, or if its label was
        removed. If the run's work was taken back by unassigning the agent, yield a delivery if the
        agent is assigned again."""
        which, began = f"{run.id} {issue.updated}", began_by(self._engine.store, rule, run)
        is_assigned = rule.login.casefold() in set(map(str.casefold, issue.assignees))
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

    def _missed_comments(
        self,
        forge: ForgeApi,
        source: Source,
        kind: Forge,
        issue: Issue,
        since: int,
        known: _KnownComments,
    ) -> Iterator[Arrived]:
        """Yield a delivery for each comment that no webhook reported. Skips very recent comments,
        because their webhooks may still arrive.

        Edited comments are skipped if an earlier version is in the inbox. Others are skipped unless
        every rule of the source works for everybody with write access. The reason is that the forge
        does not say who edited a comment: often everybody with write access can edit comments."""
        fresh = self._engine.store.now() - ON_ITS_WAY_MS
        for comment in forge.comments(issue.ref, since=max(since, known.since)):
            text = (comment.author.casefold(), comment.text.strip())
            key = (issue.ref.repository, issue.ref.number, comment.kind, comment.id)
            is_edited = comment.kind is CommentKind.COMMENT and comment.updated > comment.created
            if (
                comment.updated > fresh
                or text in known.texts
                or key in known.keys
                or has_mark(comment.text)
                or comment.kind is CommentKind.LINE
                or not text[1]
                or (is_edited and not self._is_open_to_writers(source))
            ):
                continue
            yield _saying(source, kind, issue, comment, edited=is_edited)

    def _is_newer_attempt(self, run: TaskRun, at: int) -> bool:
        """Return whether the newest attempt of the run began after this time."""
        return any(at < each.started for each in self._engine.store.attempts(run.id)[-1:])

    def _is_open_to_writers(self, source: Source) -> bool:
        """Return whether each rule of the source works for everybody with write access to the
        repository. Only then does it not matter who edited a comment."""
        for rule in self._rules:
            is_of_source = not rule.sources or source.name in rule.sources
            if is_of_source and (rule.authors or rule.least != Access.WRITE):
                return False
        return True

    def _known(self, source: Source) -> _KnownComments:
        """Return the comments in the newest `LOOKED_AT` deliveries of a source. The texts of other
        events are included too."""
        told = self._engine.store.inbox(source=source.name, limit=LOOKED_AT)
        texts, keys = set[tuple[str, str]](), set[CommentKey]()
        for each in told:
            intent = each.intent
            if intent is None:
                continue
            if intent.text.strip():
                texts.add((intent.author.casefold(), intent.text.strip()))
            if intent.comment:
                thing = (intent.repository, intent.number)
                keys |= {(*thing, kind, intent.comment) for kind in _kinds(intent)}
        since = told[-1].received if len(told) == LOOKED_AT else 0
        return _KnownComments(texts, keys, since)


def _kinds(intent: Intent) -> Sequence[CommentKind]:
    """Return the kinds of comments that the intent may report. Forges number comments and reviews
    separately. The event of an edit does not show whether a comment or a review was edited."""
    match intent.kind:
        case IntentKind.COMMENTED:
            return (CommentKind.COMMENT,)
        case IntentKind.COMMENT_EDITED:
            return (CommentKind.COMMENT, CommentKind.REVIEW)
    return (CommentKind.REVIEW,)


def _author(rule: Rule, issue: Issue, chosen_by: str) -> str:
    """Return the login of the user who wants the work. This is `chosen_by`, the user who chose the
    agent, if the forge reports it.

    Otherwise the result depends on whether the rule lists its authors. If it does not, return the
    issue's author: such a rule asks the forge for the author's permission. If it does, return an
    empty text: the agent may have been chosen by somebody else, who would then use it in the name
    of a listed author.
    """
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
    return delivery_of(source.name, forge, intent, f"{kind} {issue.ref}{mark} {which}")


def _branch(issue: Issue) -> str:
    if isinstance(issue, Pull):
        return issue.head
    return ""


def _saying(
    source: Source, forge: Forge, issue: Issue, comment: Comment, *, edited: bool
) -> Arrived:
    if edited:
        spoken = IntentKind.COMMENT_EDITED
    elif comment.kind is not CommentKind.REVIEW:
        spoken = IntentKind.COMMENTED
    elif comment.verdict is CheckVerdict.CHANGES_REQUESTED:
        spoken = IntentKind.CHANGES_REQUESTED
    else:
        spoken = IntentKind.LINE_COMMENTED
    intent = Intent(
        kind=spoken,
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
        stops=stop_commands(comment.text),
        comment=comment.id,
        branch=_branch(issue),
        url=comment.url or issue.url,
        at=comment.updated,
    )
    return delivery_of(source.name, forge, intent, f"said {issue.ref} {comment.kind} {comment.id}")
