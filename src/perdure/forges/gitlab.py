"""GitLab: the secret itself in `X-Gitlab-Token`, or (since 2026) a signature after Standard Webhooks; events by the body's `object_kind`.

GitLab tells what changed, before and after. "Request changes" in a review has no event of its own (gitlab-org/gitlab 592358): only the
comment that comes with it is seen. Names as in docs.gitlab.com/user/project/integrations/webhook_events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perdure.forges.intents import Forge, Intent, IntentKind, Reading
from perdure.forges.payload import Payload, mentioned
from perdure.forges.signatures import by_standard, by_token

EVENT = ("x-gitlab-event",)
DELIVERY = ("webhook-id", "idempotency-key", "x-gitlab-event-uuid")

KINDS = {
    "open": IntentKind.OPENED,
    "close": IntentKind.CLOSED,
    "reopen": IntentKind.REOPENED,
    "merge": IntentKind.MERGED,
}


def authentic(headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now_s: float) -> bool:
    """Whether one of the secrets signed it or came with it. Where a signing secret (`whsec_`) is configured alone, only that counts."""
    signature = headers.get("webhook-signature", "")
    if signature and by_standard(secrets, headers.get("webhook-id", ""), headers.get("webhook-timestamp", ""), body, signature, now_s):
        return True
    return by_token(secrets, headers.get("x-gitlab-token", ""))


def translate(event: str, payload: Payload) -> Reading:
    """What the event comes to. The body says itself what it is; the header's name is for people."""
    match kind := payload.name("object_kind"):
        case "issue" | "merge_request":
            return _thing(payload, pull=kind == "merge_request")
        case "note":
            return _note(payload)
        case "push" if set(payload.name("after")) == {"0"} and payload.name("ref").startswith("refs/heads/"):
            return _intent(payload, IntentKind.BRANCH_DELETED, branch=payload.name("ref").removeprefix("refs/heads/"))
        case "pipeline" if payload.name("object_attributes", "status") == "failed":
            run, pull = payload.at("object_attributes"), payload.at("merge_request")
            return _intent(
                payload, IntentKind.CI_FAILED, number=pull.number("iid"), pull=bool(pull), text=run.name("name"),
                branch=_own(pull) if pull else run.name("ref"), commit=run.name("sha"), url=run.url("url"),
            )  # fmt: skip
    return Reading(None, f"nothing follows from {kind or event}"[:200])


def _thing(payload: Payload, *, pull: bool) -> Reading:
    thing = payload.at("object_attributes")
    action = thing.name("action")
    kind, text = KINDS.get(action), ""
    whom, labels = _added(payload, "assignees", "username"), _added(payload, "labels", "title")
    asked = _added(payload, "reviewers", "username")
    if kind is IntentKind.OPENED:
        whom = [each.name("username") for each in payload.all("assignees")]
        labels = [each.name("title") for each in payload.all("labels")]
        text = thing.text("description")
    elif action == "update":
        kind = IntentKind.ASSIGNED if whom else IntentKind.LABELLED if labels else IntentKind.REVIEW_REQUESTED if asked else None
    if kind is None:
        return Reading(None, f"nothing follows from a {'merge request' if pull else 'issue'} after {action or 'nothing'}"[:200])
    return _intent(
        payload, kind, thing, number=thing.number("iid"), pull=pull, whom=asked if kind is IntentKind.REVIEW_REQUESTED else whom,
        labels=labels, text=text, branch=_own(thing), commit=thing.name("last_commit", "id"), url=thing.url("url"),
    )  # fmt: skip


def _note(payload: Payload) -> Reading:
    note = payload.at("object_attributes")
    place = note.name("noteable_type")
    if note.yes("system") or note.name("action") not in ("", "create") or place not in ("Issue", "MergeRequest"):
        return Reading(None, "nothing follows from this note")
    pull = place == "MergeRequest"
    thing = payload.at("merge_request" if pull else "issue")
    kind = IntentKind.LINE_COMMENTED if note.name("type") == "DiffNote" else IntentKind.COMMENTED
    return _intent(
        payload, kind, thing, number=thing.number("iid"), pull=pull, text=note.text("note"), branch=_own(thing),
        commit=thing.name("last_commit", "id"), url=note.url("url"),
    )  # fmt: skip


def _own(pull: Payload) -> str:
    """The branch of a merge request, unless it is a fork's, whatever its name: an agent's own branch is known by that."""
    return pull.name("source_branch") if pull.number("source_project_id") == pull.number("target_project_id") else ""


def _added(payload: Payload, what: str, key: str) -> list[str]:
    """GitLab lists changes of things that did not change (gitlab-org/gitlab 216874): only what is new counts."""
    before = {each.name(key) for each in payload.all("changes", what, "previous")}
    return [name for each in payload.all("changes", what, "current") if (name := each.name(key)) and name not in before]


def _intent(
    payload: Payload, kind: IntentKind, thing: Payload | None = None, *, number: int = 0, pull: bool = False, whom: Sequence[str] = (),
    labels: Sequence[str] = (), text: str = "", branch: str = "", commit: str = "", url: str = "",
) -> Reading:  # fmt: skip
    project = payload.at("project")
    repository = project.repository("path_with_namespace")
    if not repository:
        return Reading(None, "it names no repository")
    if kind not in (IntentKind.BRANCH_DELETED, IntentKind.CI_FAILED) and not number:
        return Reading(None, "it names no issue and no merge request")
    found = Intent(
        kind=kind,
        forge=Forge.GITLAB,
        repository=repository,
        number=number,
        pull=pull,
        author=payload.name("user", "username") or payload.name("user_username"),
        whom=tuple(filter(None, whom)),
        labels=tuple(filter(None, labels)),
        mentions=mentioned(text),
        title=(thing or Payload(None)).name("title"),
        description=(thing or Payload(None)).text("description"),
        text=text,
        branch=branch,
        commit=commit,
        url=url,
        clone_url=project.url("git_http_url") or project.url("http_url"),
        at=(thing or Payload(None)).time("updated_at"),
    )
    return Reading(found)
