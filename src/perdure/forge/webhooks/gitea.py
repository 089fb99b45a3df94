"""Reads webhooks of Gitea. `X-Gitea-Signature` contains the signature, in bare hexadecimal.
`X-Gitea-Event-Type` names the event; it is more specific than `X-Gitea-Event`.

If no secret is set, Gitea still sends the signature header, but empty. An event contains all
present labels and assignees, and does not say which one is new. Names are those in
modules/webhook/type.go of 1.26.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perdure.forge.webhooks.github import (
    BROKEN,
    SAID,
    branch_at,
    intent,
    is_reworded,
    own_branch,
    own_head,
)
from perdure.forge.webhooks.payload import Payload
from perdure.forge.webhooks.signatures import by_hmac
from perdure.model.forge.deliveries import Forge, IntentKind, PayloadReading

EVENT = ("x-gitea-event-type", "x-gitea-event")
DELIVERY = ("x-gitea-delivery",)

KINDS = {
    "opened": IntentKind.OPENED,
    "reopened": IntentKind.REOPENED,
    "closed": IntentKind.CLOSED,
    "deleted": IntentKind.CLOSED,
    "assigned": IntentKind.ASSIGNED,
    "unassigned": IntentKind.UNASSIGNED,
    "label_updated": IntentKind.LABELLED,
    "label_cleared": IntentKind.UNLABELLED,
    "review_request_removed": IntentKind.UNASSIGNED,
    "review_requested": IntentKind.REVIEW_REQUESTED,
}
WITH_ASSIGNEES = frozenset({IntentKind.OPENED, IntentKind.ASSIGNED, IntentKind.UNASSIGNED})
"""Kinds of intents that report all present assignees."""
WITH_LABELS = frozenset({IntentKind.OPENED, IntentKind.LABELLED, IntentKind.UNLABELLED})
THINGS = frozenset(
    {
        "issues",
        "issue_assign",
        "issue_label",
        "pull_request",
        "pull_request_assign",
        "pull_request_label",
    }
) | {"pull_request_review_request"}


def authentic(
    headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now_s: float
) -> bool:
    """Return whether one of the secrets signed the body, by the header `X-Gitea-Signature`."""
    return by_hmac(secrets, body, headers.get("x-gitea-signature", ""))


def translate(event: str, payload: Payload, forge: Forge = Forge.GITEA) -> PayloadReading:
    """Return the intent of an event, or the reason why it has none."""
    action = payload.name("action")
    pull = payload.at("pull_request")
    match event:
        case _ if event in THINGS:
            return _thing(forge, payload, pull or payload.at("issue"), action, pull=bool(pull))
        case "issue_comment" | "pull_request_comment" if action in SAID and payload.at("comment"):
            is_pull = (
                payload.yes("is_pull")
                or bool(payload.at("issue", "pull_request"))
                or event == "pull_request_comment"
            )
            thing = payload.at("issue") or pull
            return intent(
                forge,
                payload,
                SAID[action] or IntentKind.COMMENTED,
                thing,
                pull=is_pull,
                said=payload.at("comment"),
                branch=own_branch(pull, payload.repository("repository", "full_name")),
            )
        case "pull_request_review_rejected" | "pull_request_rejected":
            return intent(
                forge,
                payload,
                IntentKind.CHANGES_REQUESTED,
                pull,
                pull=True,
                text=payload.text("review", "content"),
            )
        case "pull_request_review_comment" | "pull_request_comment" if payload.at("review"):
            return intent(
                forge,
                payload,
                IntentKind.LINE_COMMENTED,
                pull,
                pull=True,
                text=payload.text("review", "content"),
            )
        case "pull_request_review_approved" | "pull_request_approved" if payload.text(
            "review", "content"
        ).strip():
            return intent(
                forge,
                payload,
                IntentKind.APPROVED,
                pull,
                pull=True,
                text=payload.text("review", "content"),
            )
        case "status" if payload.name("state") in BROKEN:
            return intent(
                forge,
                payload,
                IntentKind.CI_FAILED,
                text=payload.name("context"),
                commit=payload.name("sha"),
                branch=branch_at(payload),
                url=payload.url("target_url"),
            )
        case "workflow_run" if payload.name("workflow_run", "conclusion") in BROKEN:
            return _failed(forge, payload, payload.at("workflow_run"))
        case "delete" if payload.name("ref_type") == "branch":
            return intent(
                forge,
                payload,
                IntentKind.BRANCH_DELETED,
                branch=payload.name("ref").removeprefix("refs/heads/"),
            )
    what = f"{event}/{action}" if action else event
    return PayloadReading(None, f"no action for {what}"[:200])


def _thing(
    forge: Forge, payload: Payload, thing: Payload, action: str, *, pull: bool
) -> PayloadReading:
    kind = KINDS.get(action)
    if action == "edited" and is_reworded(payload):
        kind = IntentKind.EDITED
    if kind is None:
        noun = "a pull request" if pull else "an issue"
        return PayloadReading(None, f"no action for {noun} that was {action}"[:200])
    if kind is IntentKind.CLOSED and thing.yes("merged"):
        kind = IntentKind.MERGED
    if kind in WITH_ASSIGNEES:
        whom = thing.all_names("assignees", "login")
    else:
        whom = []
    unassigned: list[str] = []
    if action == "review_requested":
        whom = [payload.name("requested_reviewer", "login")]
    elif action == "review_request_removed":
        # Here `whom` keeps all present assignees, as in all other intents of the kind `UNASSIGNED`.
        unassigned = [payload.name("requested_reviewer", "login")]
    if kind in WITH_LABELS:
        labels = thing.all_names("labels", "name")
    else:
        labels = []
    if action == "label_cleared":
        # The body still contains the labels that were just removed (Gitea 1.26.4).
        labels = []
    text = thing.text("body") if kind is IntentKind.OPENED else ""
    return intent(
        forge,
        payload,
        kind,
        thing,
        pull=pull,
        whom=whom,
        labels=labels,
        text=text,
        unassigned=unassigned,
    )


def _failed(forge: Forge, payload: Payload, run: Payload) -> PayloadReading:
    return intent(
        forge,
        payload,
        IntentKind.CI_FAILED,
        text=run.name("display_title") or run.name("name"),
        branch=own_head(payload, run),
        commit=run.name("head_sha"),
        url=run.url("html_url"),
        rollup=True,
    )
