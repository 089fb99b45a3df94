"""Updates the forge for one run: compares the wanted state with the posted one, and makes each
change that is missing.

Every step is idempotent and stored when it is done. If a step fails, the others are still made. If
the forge does not answer, no further request is made until the next try.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.capsule.secret_search import without_secrets
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import work_records
from perdure.errors import (
    Conflict,
    Diverged,
    ForgeUnavailable,
    GitFailed,
    LostLease,
    NotFound,
    PerdureError,
    StoreError,
)
from perdure.forge.replies.publication import HeldBack, published, pull_request, push
from perdure.forge.replies.sentences import Account, attached, call, comment, requests_text
from perdure.forge.webhooks.author_text import LOGIN
from perdure.host.git import unreachable
from perdure.model import Condition, RunState, SessionKey, TaskRun
from perdure.model.events import NotPublished, Published, ToldForge
from perdure.model.forge.postings import Origin, Posting, origin_of
from perdure.model.forge.rules import OWN_CHECK, Rule
from perdure.model.forge.state import CheckState, Comment, CommentKind, IssueRef, Reaction
from perdure.model.requests import AgentRequest, RequestState
from perdure.model.work import WorkReport
from perdure.protocols import ForgeApi
from perdure.rules.lifecycle import FINAL
from perdure.rules.requests import ASKING, short_id
from perdure.rules.work_report import work_report
from perdure.workspace import Credentials

AGAIN_S = 10.0
LONGEST_S = 3600.0
"""Maximum pause between two tries, in seconds. It also applies if a person is needed, because the
person may have acted meanwhile."""
GIVEN_UP = 50
"""Maximum number of tries if the forge refuses a step. They take about two days. After that, only a
change of the run starts another try."""
BUSY_S = 5.0
LEASE_S = 300.0
INSTRUCTING = ("run_submitted", "context_added")
"""Kinds of lines in the audit trail that record instructions for a run."""
ENDED = {RunState.SUCCEEDED: Reaction.ROCKET, RunState.FAILED: Reaction.CONFUSED}
CHECKS = {
    RunState.SUCCEEDED: CheckState.SUCCESS,
    RunState.FAILED: CheckState.FAILURE,
    RunState.CANCELLED: CheckState.ERROR,
}


class _PendingSteps(Struct):
    """The failed steps of one update: the reasons, and the minimum pause in seconds before the next
    try."""

    reasons: list[str] = field(default_factory=list)
    in_s: float = 0.0
    silent: bool = False
    """Whether the forge did not answer. If so, the remaining steps are skipped."""
    held: bool = False
    """Whether the branch still has to be pushed. The push is retried until it succeeds."""

    def note(self, what: str, error: PerdureError) -> None:
        self.reasons.append(f"{what}: {error}")
        if isinstance(error, ForgeUnavailable):
            self.silent = True
            self.in_s = max(self.in_s, error.retry_s)


class PostingUpdater(Struct, frozen=True, kw_only=True):
    """Updates postings. `forge` returns the client for a source and a rule. `credentials` returns
    the credentials with which the rule's agent pushes."""

    engine: Engine
    rules: Mapping[str, Rule]
    forge: Callable[[str, str], ForgeApi | None]
    credentials: Callable[[str, str], Credentials | None]
    page: Callable[[str], str] = lambda name: ""
    """Function that returns the address of a run's page on the dashboard, given the run's name.
    Returns an empty text if the run has no page."""
    receipt: Callable[[TaskRun], str] = lambda run: ""
    """Function that returns the signed receipt of a run; empty if no receipt is to be attached."""

    def answer(self, run_id: str) -> None:
        """Report the run's present state on the forge, as far as possible now. Raises StoreError,
        LostLease."""
        posting = self.engine.store.hold_posting(run_id, LEASE_S)
        if posting is None:
            return
        now = self.engine.store.now()
        run = self.engine.store.get(run_id)
        # Times have a resolution of one millisecond. If the run changed in the present millisecond,
        # it may change again with the same time. So the time stored as `seen` is one millisecond
        # earlier, and the run is read again.
        seen = run.updated if run.updated < now else run.updated - 1
        origin, rule = origin_of(run), self.rules.get(run.spec.labels.get("agent", ""))
        if origin is not None and rule is not None:
            api = self.forge(origin.source, origin.rule)
        else:
            api = None
        waits = _PendingSteps()
        if origin is not None and rule is not None and api is not None and self._is_newest(run):
            posting = _PostingUpdate(self, run, posting, origin, rule, api, waits).whole()
        if waits.reasons and (waits.silent or waits.held or posting.tries < GIVEN_UP):
            tries = posting.tries + 1
        else:
            tries = 0
        if tries:
            pause_s = max(waits.in_s, min(LONGEST_S, AGAIN_S * 2 ** min(posting.tries, 10)))
        else:
            pause_s = 0.0
        reason = self.clean("; ".join(waits.reasons))[:1000]
        self.engine.store.put_posting(
            replace(posting, seen=seen, tries=tries, due=now + int(pause_s * 1000), reason=reason)
        )

    def _is_newest(self, run: TaskRun) -> bool:
        """Return whether the run is the newest with its agent and scope. Only the newest run is
        reported."""
        newest = self.engine.store.run_of(SessionKey(run.spec.agent, run.scope))
        return newest is None or newest.id == run.id

    def marker(self, origin: Origin, called: str = "") -> str:
        """Return the marker that identifies the task's comment. `called` gives a different marker
        for another comment, such as one that calls a person. The marker depends on a secret of the
        store, so nobody else can write a comment with it."""
        _, secret = self.engine.store.identity()
        task = (
            f"{origin.source}\n{origin.rule}\n{origin.repository}\n{origin.number}\n{origin.pull}"
        )
        task += f"\n{called}" if called else ""
        return (
            f"<!-- perdure:task={hmac.new(secret, task.encode(), hashlib.sha256).hexdigest()[:32]} "
            "-->"
        )

    def clean(self, text: str) -> str:
        """Return the text without the paths of perdure's own directories (workdirs and state).
        Secrets of this environment are removed too, and anything that looks like a secret."""
        for place in sorted(
            map(str, (self.engine.workspaces.root, self.engine.state)), key=len, reverse=True
        ):
            text = text.replace(place, "...")
        return self.without_secrets(text)

    def without_secrets(self, text: str) -> str:
        """Return the text without the secrets of this environment, and without anything that looks
        like a secret."""
        return without_secrets(self.engine.redactor, text)


class _PostingUpdate(Struct):
    """Updates the posting of one run, step by step."""

    whose: PostingUpdater
    run: TaskRun
    posting: Posting
    origin: Origin
    rule: Rule
    api: ForgeApi
    waits: _PendingSteps

    @property
    def ref(self) -> IssueRef:
        return IssueRef(self.origin.repository, self.origin.number, self.origin.pull)

    def whole(self) -> Posting:
        """Perform all steps and return the posting. The first step is a reaction, because people
        look for it first when they have asked for work."""
        if self.rule.report:
            self._step(
                "no reaction",
                lambda: self._react(Reaction.EYES) if not self.posting.reaction else None,
            )
        if (
            self.rule.publish != "no"
            and self.run.state is RunState.SUCCEEDED
            and self.posting.attempt != self.run.attempt
        ):
            self._publish()
        if self.rule.report:
            self._step("no comment", self._comment)
            self._step("no receipt on the pull request", self._attach)
            self._step("no call", self._call)
            self._step("no status", self._status)
            if (ended := ENDED.get(self.run.state)) is not None:
                self._step("no reaction", lambda: self._react(ended))
        return self.posting

    def _step(self, what: str, do: Callable[[], None]) -> None:
        if self.waits.silent:
            return
        try:
            do()
        except (StoreError, LostLease):
            raise
        except PerdureError as error:
            self.waits.note(what, error)

    def _keep(self, **changes: object) -> None:
        """Change the posting and store it immediately. After a kill, the step is then not
        repeated."""
        self.posting = replace(self.posting, **changes)
        self.whose.engine.store.put_posting(self.posting)

    def _react(self, reaction: Reaction) -> None:
        if self.posting.reaction != reaction:
            self.api.react(self.ref, reaction)
            self._keep(reaction=str(reaction))

    # --- the branch ---

    def _publish(self) -> None:
        engine, branch = self.whose.engine, self.run.workspace.branch if self.run.workspace else ""
        pushed = None
        try:
            pushed = push(
                engine,
                self.run,
                self.whose.credentials(self.origin.source, self.origin.rule),
                engine.redactor.also(self.run.spec.env),
                needs_base=self.rule.publish == "pull" and not self.run.spec.base,
            )
            if pushed is None:
                return
            wants_pull = self.rule.publish == "pull" and pushed.commit
            if wants_pull:
                pull = pull_request(
                    self.api, self.origin, self.run, self.posting, pushed, self._page
                )
            else:
                pull = None
        except (StoreError, LostLease):
            raise
        except (HeldBack, Diverged) as error:
            self._hold_back(branch, error)
            return
        except Conflict as error:
            self.waits.note("not pushed", error)
            self.waits.held = True
            self.waits.in_s = max(self.waits.in_s, BUSY_S)
            return
        except GitFailed as error:
            if error.transient or unreachable(error):
                self.waits.note("not pushed", error)
                self.waits.held = True
            else:
                self._hold_back(branch, error)
            return
        except PerdureError as error:
            self.waits.note("no pull request" if pushed is not None else "not pushed", error)
            return
        is_new = pushed.commit != self.posting.commit or (
            pull is not None and pull.ref.number != self.posting.pull
        )
        after = published(self.posting, self.run, pushed, pull)
        if is_new:
            events = [
                Published(
                    branch=pushed.branch, commit=pushed.commit, pull=after.pull, url=after.pull_url
                )
            ]
        else:
            events = []
        engine.store.record_outside_attempt(self.run.id, events, solved="needs_person")
        self.run = engine.store.get(self.run.id)
        self._keep(
            attempt=after.attempt, commit=after.commit, pull=after.pull, pull_url=after.pull_url
        )

    def _hold_back(self, branch: str, error: PerdureError) -> None:
        """Set the condition `needs_person`, unless it is already set with this message. Publishing
        is still retried, at least once an hour."""
        self.waits.note("not pushed", error)
        self.waits.held = True
        message = self.whose.clean(f"{error} {error.hint}".strip())
        known = [each.message for each in self.run.conditions if each.type == "needs_person"]
        if message not in known:
            needs = Condition(type="needs_person", message=message, at=0)
            self.whose.engine.store.record_outside_attempt(
                self.run.id, [NotPublished(branch=branch, reason=message)], needs
            )
            self.run = self.whose.engine.store.get(self.run.id)

    # --- the comment ---

    @property
    def _page(self) -> str:
        return self.whose.page(self.run.name)

    def _comment(self) -> None:
        marker = self.whose.marker(self.origin)
        text = self._text(marker)
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest == self.posting.said:
            return
        if self.posting.comment:
            try:
                self._said(self.api.edit_comment(self.ref, _known(self.posting), text), digest)
                return
            except NotFound:
                self._keep(comment="", comment_url="", said="")
        there = self.api.find_comment(self.ref, marker)
        self._said(
            self.api.edit_comment(self.ref, there, text)
            if there is not None
            else self.api.comment(self.ref, text),
            digest,
        )

    def _said(self, found: Comment, digest: str) -> None:
        is_new = found.id != self.posting.comment
        self._keep(comment=found.id, comment_url=found.url or self.posting.comment_url, said=digest)
        if is_new:
            self.whose.engine.store.record_outside_attempt(self.run.id, [ToldForge(url=found.url)])

    def _attach(self) -> None:
        """Attach the signed receipt to the pull request that was opened for the run, in a comment
        that is edited for each newer receipt. Does nothing if the run began at a pull request,
        because the run's comment there already contains the receipt."""
        opened = self.posting.pull
        if self.origin.pull and opened == self.origin.number:
            return
        if opened and self.run.state in FINAL:
            receipt = self.whose.receipt(self.run)
        else:
            receipt = ""
        if not receipt:
            return
        ref = IssueRef(self.origin.repository, self.posting.pull, True)
        marker = self.whose.marker(self.origin, "receipt")
        shown = attached(self.rule.name, self.run, receipt)
        there = self.api.find_comment(ref, marker)
        if there is None:
            self.api.comment(ref, f"{marker}\n\n{shown}")
        elif shown not in there.text:
            self.api.edit_comment(ref, there, f"{marker}\n\n{shown}")

    def _call(self) -> None:
        """If a person is needed, mention the person who asked for the work in a new comment,
        because a forge sends no notification for an edited comment. A need is posted again only if
        the instructions or the requests have changed."""
        needs = [each.message for each in self.run.conditions if each.type in ASKING]
        requests = self._requests() if needs else []
        # The hash includes the version of the instructions, and the ids of the requests. So the
        # same message is posted again when the instructions or the requests change.
        ids = list(map(short_id, requests))
        cause = "\n".join((self.run.id, str(self.run.context_version), *needs, *ids))
        called = hashlib.sha256(cause.encode()).hexdigest()
        if not needs or called == self.posting.called:
            return
        login = self._asked_by()
        if not login:
            return
        marker = self.whose.marker(self.origin, called)
        if self.api.find_comment(self.ref, marker) is None:
            words = self.whose.clean(call(self.rule.name, login, needs, self._page))
            opened = [each for each in requests if each.state is RequestState.OPEN]
            shown = requests_text(opened, self.api.command_prefix, self.whose.without_secrets)
            # The person must see which paths a call names, so only the path of the run's workdir is
            # replaced.
            path = self.run.workspace.path if self.run.workspace else ""
            shown = shown.replace(path, "<workdir>") if path else shown
            parts = (marker, words, self.whose.without_secrets(shown))
            self.api.comment(self.ref, "\n\n".join(filter(None, parts)))
        self._keep(called=called)

    def _requests(self) -> list[AgentRequest]:
        """Return all requests of the newest attempt that made any, or an empty list if none of them
        is open. Requests that were answered meanwhile are included, so that an answer does not
        cause a new comment."""
        found = self.whose.engine.store.requests(self.run.id)
        newest = [each for each in found if each.attempt == found[-1].attempt]
        is_open = any(each.state is RequestState.OPEN for each in newest)
        if is_open:
            return newest
        return []

    def _asked_by(self) -> str:
        """Return the login of the person who last instructed this run on the forge. Empty if nobody
        did, or if the login is the agent's own or cannot be mentioned."""
        prefix, after, login = f"forge:{self.origin.source}/", 0, ""
        store = self.whose.engine.store
        while lines := store.audit(run=self.run.id, actor=prefix, after=after):
            after = lines[-1].number
            told = [line.actor for line in lines if line.kind in INSTRUCTING]
            if told:
                login = told[-1].removeprefix(prefix).rpartition(",")[2]
        is_own = login.casefold() == self.rule.login.casefold()
        if LOGIN.fullmatch(login) and not is_own:
            return login
        return ""

    def _text(self, marker: str) -> str:
        store = self.whose.engine.store
        held_back = []
        for reason in self.waits.reasons:
            if reason.startswith(("not pushed", "no pull request")):
                held_back.append(reason)
        account = Account(
            rule=self.rule.name,
            run=self.run,
            attempts=store.attempts(self.run.id),
            work=self._work(),
            words=store.final_words(self.run.id) if self.run.state in FINAL else "",
            branch=self.run.workspace.branch if self.run.workspace else "",
            commit=self.posting.commit,
            pull=self.posting.pull,
            pull_url=self.posting.pull_url,
            held_back="; ".join(held_back),
            page=self._page,
            receipt=self.whose.receipt(self.run) if self.run.state in FINAL else "",
        )
        # The marker must stay exactly as it is, so secrets and paths are removed only from the
        # rest.
        return marker + self.whose.clean(comment(account, marker).removeprefix(marker))

    def _work(self) -> WorkReport | None:
        store = self.whose.engine.store
        ended = [each for each in store.attempts(self.run.id) if each.outcome is not None]
        if not ended:
            return None
        return work_report(ended[-1], work_records(store, ended[-1]))

    # --- the status ---

    def _status(self) -> None:
        state = CHECKS.get(self.run.state, CheckState.PENDING)
        status = f"{self.posting.commit} {state}"
        if not self.posting.commit or self.posting.status == status:
            return
        self.api.set_status(
            self.origin.repository,
            self.posting.commit,
            state,
            context=f"{OWN_CHECK}{self.rule.name}",
            text=f"{self.rule.name} {self.run.state}",
            url=self._page or self.posting.comment_url,
        )
        self._keep(status=status)


def _known(posting: Posting) -> Comment:
    """Return the posted comment with only the fields that are needed to edit it."""
    return Comment(
        id=posting.comment,
        kind=CommentKind.COMMENT,
        author="",
        text="",
        created=0,
        updated=0,
        url=posting.comment_url,
    )
