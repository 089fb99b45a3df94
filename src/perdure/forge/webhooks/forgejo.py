"""Reads webhooks of Forgejo (16): Gitea's payloads under Forgejo's own header names. Forgejo also
sends the headers of Gitea, Gogs and GitHub.

Forgejo has its own event for failed runs of its Actions, and no event for a commit status
(modules/webhook/type.go).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perdure.forge.webhooks import gitea
from perdure.forge.webhooks.github import intent
from perdure.forge.webhooks.payload import Payload
from perdure.forge.webhooks.signatures import by_hmac
from perdure.model.forge.deliveries import Forge, IntentKind, PayloadReading

EVENT = ("x-forgejo-event-type", "x-forgejo-event", *gitea.EVENT)
DELIVERY = ("x-forgejo-delivery", *gitea.DELIVERY)


def authentic(
    headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now_s: float
) -> bool:
    """Return whether one of the secrets signed the body. If Forgejo's own signature header is
    present, only that header counts."""
    given = headers.get("x-forgejo-signature", headers.get("x-gitea-signature", ""))
    return by_hmac(secrets, body, given)


def translate(event: str, payload: Payload) -> PayloadReading:
    """Return the intent of an event, or the reason why it has none."""
    if event == "action_run_failure":
        return _failed(payload.at("run"))
    return gitea.translate(event, payload, Forge.FORGEJO)


def _failed(run: Payload) -> PayloadReading:
    """Return the intent for a failed run of Forgejo's Actions. The event itself has no repository
    and no sender: both are fields of the run (modules/structs/hook.go, ActionPayload)."""
    outer = Payload({"repository": run.value("repository"), "sender": run.value("trigger_user")})
    ref = run.name("prettyref")
    return intent(
        Forge.FORGEJO,
        outer,
        IntentKind.CI_FAILED,
        # The run's title is only the first line of the commit's message, so the name of the
        # workflow is preferred.
        text=run.name("workflow_id") or run.name("title"),
        # A ref such as `#9` names a pull request, not a branch. The dispatcher finds the branch
        # from the commit.
        branch="" if ref.startswith("#") else ref,
        commit=run.name("commit_sha"),
        url=run.url("html_url"),
    )
