"""Reads webhooks of GitLab. They are authenticated by the secret itself in `X-Gitlab-Token` or,
since 2026, by a signature as in Standard Webhooks. The body's `object_kind` names the event.

GitLab reports changes with the values before and after. "Request changes" in a review has no event
of its own (gitlab-org/gitlab 592358), so only its comment is reported. Names are those in
docs.gitlab.com/user/project/integrations/webhook_events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perdure.forge.webhooks.author_text import mentioned, stop_commands
from perdure.forge.webhooks.payload import Payload
from perdure.forge.webhooks.signatures import by_standard, by_token
from perdure.model.forge.deliveries import Forge, Intent, IntentKind, PayloadReading

EVENT = ("x-gitlab-event",)
DELIVERY = ("webhook-id", "idempotency-key", "x-gitlab-event-uuid")

KINDS = {
    "open": IntentKind.OPENED,
    "close": IntentKind.CLOSED,
    "reopen": IntentKind.REOPENED,
    "merge": IntentKind.MERGED,
}


def authentic(
    headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now_s: float
) -> bool:
    """Return whether a delivery was signed with one of the secrets, or contains one of them as its
    token. If only signing secrets (`whsec_`) are configured, a token is not accepted."""
    signature = headers.get("webhook-signature", "")
    if signature and by_standard(
        secrets,
        headers.get("webhook-id", ""),
        headers.get("webhook-timestamp", ""),
        body,
        signature,
        now_s,
    ):
        return True
    return by_token(secrets, headers.get("x-gitlab-token", ""))


def translate(event: str, payload: Payload) -> PayloadReading:
    """Return the intent of an event, or the reason why it has none. Only the body determines the
    event; the name in the header is not used."""
    match kind := payload.name("object_kind"):
        case "issue" | "merge_request":
            return _thing(payload, pull=kind == "merge_request")
        case "note":
            return _note(payload)
        case "push" if set(payload.name("after")) == {"0"} and payload.name("ref").startswith(
            "refs/heads/"
        ):
            return _intent(
                payload,
                IntentKind.BRANCH_DELETED,
                branch=payload.name("ref").removeprefix("refs/heads/"),
            )
        case "pipeline" if payload.name("object_attributes", "status") == "failed":
            run, pull = payload.at("object_attributes"), payload.at("merge_request")
            return _intent(
                payload,
                IntentKind.CI_FAILED,
                number=pull.number("iid"),
                pull=bool(pull),
                text=run.name("name"),
                branch=_own(pull) if pull else run.name("ref"),
                commit=run.name("sha"),
                url=run.url("url"),
                rollup=True,
            )
    return PayloadReading(None, f"no action for {kind or event}"[:200])


def _thing(payload: Payload, *, pull: bool) -> PayloadReading:
    thing = payload.at("object_attributes")
    action = thing.name("action")
    kind, text = KINDS.get(action), ""
    whom, labels = _added(payload, "assignees", "username"), _added(payload, "labels", "title")
    asked = _added(payload, "reviewers", "username")
    dropped = [
        *_added(payload, "assignees", "username", back=True),
        *_added(payload, "reviewers", "username", back=True),
    ]
    unlabelled = _added(payload, "labels", "title", back=True)
    if kind is IntentKind.OPENED:
        whom = payload.all_names("assignees", "username")
        labels = payload.all_names("labels", "title")
        text = thing.text("description")
    elif action == "update":
        found = {
            IntentKind.ASSIGNED: whom,
            IntentKind.LABELLED: labels,
            IntentKind.REVIEW_REQUESTED: asked,
            IntentKind.UNASSIGNED: dropped,
            IntentKind.UNLABELLED: unlabelled,
            IntentKind.EDITED: _is_reworded(payload),
        }
        kind = next((each for each, there in found.items() if there), None)
    if kind is None:
        name = "merge request" if pull else "issue"
        after = action or "nothing"
        return PayloadReading(None, f"no action for a {name} after {after}"[:200])
    return _intent(
        payload,
        kind,
        thing,
        number=thing.number("iid"),
        pull=pull,
        whom=asked if kind is IntentKind.REVIEW_REQUESTED else whom,
        labels=labels,
        text=text,
        branch=_own(thing),
        commit=thing.name("last_commit", "id"),
        url=thing.url("url"),
        unassigned=dropped,
        unlabelled=unlabelled,
        confidential=_is_confidential(payload, thing),
    )


def _is_reworded(payload: Payload) -> bool:
    """Return whether title or description changed. The values must be compared, because GitLab also
    lists unchanged ones (gitlab-org/gitlab 216874)."""
    changes = (payload.at("changes", each) for each in ("title", "description"))
    return any(each and each.text("previous") != each.text("current") for each in changes)


def _is_confidential(payload: Payload, *things: Payload) -> bool:
    """Return whether an issue, merge request or comment is confidential. GitLab has separate event
    names for these ("Confidential Issue Hook"), and also marks them in the body."""
    named = payload.name("event_type").startswith("confidential")
    return named or any(each.yes("confidential") or each.yes("internal") for each in things)


def _note(payload: Payload) -> PayloadReading:
    note = payload.at("object_attributes")
    place = note.name("noteable_type")
    if (
        note.yes("system")
        or note.name("action") not in ("", "create", "update")
        or place not in ("Issue", "MergeRequest")
    ):
        return PayloadReading(None, "no action for this note")
    pull = place == "MergeRequest"
    thing = payload.at("merge_request" if pull else "issue")
    is_line = note.name("type") == "DiffNote"
    kind = IntentKind.LINE_COMMENTED if is_line else IntentKind.COMMENTED
    return _intent(
        payload,
        IntentKind.COMMENT_EDITED if note.name("action") == "update" else kind,
        thing,
        number=thing.number("iid"),
        pull=pull,
        text=note.text("note"),
        branch=_own(thing),
        commit=thing.name("last_commit", "id"),
        url=note.url("url"),
        note=note,
        confidential=_is_confidential(payload, note, thing),
    )


def _own(pull: Payload) -> str:
    """Return the branch of a merge request; empty if it comes from a fork. An agent's branch is
    recognized by its name, and a branch in a fork could have the same name."""
    source = pull.number("source_project_id")  # 0 if it is missing
    if source and source == pull.number("target_project_id"):
        return pull.name("source_branch")
    return ""


def _added(payload: Payload, what: str, key: str, *, back: bool = False) -> list[str]:
    """Return the names that were added to a list or, with `back`, removed from it. GitLab also
    lists unchanged values (gitlab-org/gitlab 216874), so the lists before and after are compared.
    """
    if back:
        before, now = ("current", "previous")
    else:
        before, now = ("previous", "current")
    known = {each.name(key) for each in payload.all("changes", what, before)}
    names = (each.name(key) for each in payload.all("changes", what, now))
    return [name for name in names if name and name not in known]


def _intent(
    payload: Payload,
    kind: IntentKind,
    thing: Payload | None = None,
    *,
    number: int = 0,
    pull: bool = False,
    whom: Sequence[str] = (),
    labels: Sequence[str] = (),
    text: str = "",
    branch: str = "",
    commit: str = "",
    url: str = "",
    note: Payload | None = None,
    unassigned: Sequence[str] = (),
    unlabelled: Sequence[str] = (),
    rollup: bool = False,
    confidential: bool = False,
) -> PayloadReading:
    thing, note = thing or Payload(None), note or Payload(None)
    edited = kind is IntentKind.EDITED
    place, removed = note.at("position"), not note.number("position", "new_line")
    before, title_before = "", ""
    if edited:
        title_before = payload.name("changes", "title", "previous") or thing.name("title")
        before = payload.text("changes", "description", "previous")
        if not payload.at("changes", "description"):
            before = thing.text("description")
    now, known = mentioned(thing.text("description") if edited else text), mentioned(before)
    project = payload.at("project")
    repository = project.repository("path_with_namespace")
    if not repository:
        return PayloadReading(None, "it names no repository")
    if kind not in (IntentKind.BRANCH_DELETED, IntentKind.CI_FAILED) and not number:
        return PayloadReading(None, "it names no issue and no merge request")
    found = Intent(
        kind=kind,
        forge=Forge.GITLAB,
        repository=repository,
        number=number,
        pull=pull,
        author=payload.name("user", "username") or payload.name("user_username"),
        whom=tuple(filter(None, whom)),
        labels=tuple(filter(None, labels)),
        mentions=tuple(each for each in now if each not in known),
        title=thing.name("title"),
        description=thing.text("description"),
        text=text,
        branch=branch,
        commit=commit,
        path=place.name("old_path" if removed else "new_path"),
        line=place.number("old_line" if removed else "new_line"),
        removed=bool(place) and removed,
        comment=note.id("id"),
        before=before,
        title_before=title_before,
        unassigned=tuple(unassigned),
        unlabelled=tuple(unlabelled),
        stops=stop_commands(text),
        rollup=rollup,
        confidential=confidential,
        url=url,
        clone_url=project.url("git_http_url") or project.url("http_url"),
        at=thing.time("updated_at"),
    )
    return PayloadReading(found)
