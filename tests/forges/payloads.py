"""Webhooks as the forges send them: recorded bodies, changed copies of recorded bodies, and signed
headers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perdure.model.forge.deliveries import Forge

RECORDED = Path(__file__).parent / "recorded"
SECRET = "a secret of sixteen or more"
SIGNING = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def recorded(forge: str, name: str) -> Any:
    """Return a recorded body, as JSON."""
    return json.loads((RECORDED / forge / f"{name}.json").read_bytes())


def raw(forge: str, name: str) -> bytes:
    return (RECORDED / forge / f"{name}.json").read_bytes()


def sent_headers(forge: str, name: str) -> dict[str, str]:
    """Return the headers that Gitea sent with a recorded body. They are signed with `SECRET`."""
    told: dict[str, dict[str, str]] = json.loads((RECORDED / f"{forge}.headers.json").read_bytes())
    return told[name]


def as_forgejo(headers: dict[str, str]) -> dict[str, str]:
    """Return Gitea's headers of a delivery as Forgejo would send them."""
    own = {name: value for name, value in headers.items() if name.startswith("x-gitea-")}
    return headers | {name.replace("gitea", "forgejo"): value for name, value in own.items()}


def derived(forge: str, name: str, change: Callable[[Any], Any]) -> bytes:
    """Return a recorded body with changes. It has a mark that it is not the recorded one."""
    body = recorded(forge, name)
    change(body)
    return json.dumps({**body, "derived_by_perdure": True}).encode()


def headers(
    forge: Forge, event: str, body: bytes, secret: str = SECRET, id: str = ""
) -> dict[str, str]:
    """Return the headers that the forge would send with the body, with names in lower case."""
    delivery = id or str(uuid.uuid4())
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    found = {"content-type": "application/json"}
    github = {
        "x-github-event": event,
        "x-github-delivery": delivery,
        "x-hub-signature-256": f"sha256={digest}",
    }
    gitea = {
        "x-gitea-event": event,
        "x-gitea-event-type": event,
        "x-gitea-delivery": delivery,
        "x-gitea-signature": digest,
    } | github
    if forge is Forge.GITHUB:
        return found | github
    if forge is Forge.GITEA:
        return found | gitea
    if forge is Forge.FORGEJO:
        own = {
            "x-forgejo-event": event,
            "x-forgejo-event-type": event,
            "x-forgejo-delivery": delivery,
            "x-forgejo-signature": digest,
        }
        return found | own | gitea
    if secret.startswith("whsec_"):
        at = str(int(time.time()))
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = base64.b64encode(
            hmac.new(key, f"{delivery}.{at}.".encode() + body, hashlib.sha256).digest()
        ).decode()
        found |= {
            "webhook-id": delivery,
            "webhook-timestamp": at,
            "webhook-signature": f"v1,{signed}",
        }
    else:
        found |= {"x-gitlab-token": secret}
    return found | {
        "x-gitlab-event": event,
        "x-gitlab-event-uuid": delivery,
        "idempotency-key": delivery,
    }


def merged(body: Any) -> None:
    body["pull_request"]["merged"] = True


def on_a_pull(body: Any) -> None:
    body["issue"]["pull_request"] = {
        "url": "https://api.github.com/repos/Codertocat/Hello-World/pulls/1"
    }
    body["comment"]["body"] = (
        "@octo-bot please look, and @Other too; not me@example.com, nor `@this`"
    )


def wants_changes(body: Any) -> None:
    body["review"] |= {"state": "changes_requested", "body": "Round half to even."}


def gitea_labels(body: Any) -> None:
    body["action"] = "label_updated"
    body["issue"]["labels"] = [{"name": "agent"}, {"name": "bug"}]


def gitea_assigned(body: Any) -> None:
    body["action"] = "assigned"
    body["issue"]["assignees"] = [{"login": "dev"}, {"login": "ann"}]


def gitea_rejected(body: Any) -> None:
    body["action"] = "reviewed"
    body["review"] = {"type": "pull_request_review_rejected", "content": "Round half to even."}


def gitea_status(body: Any) -> None:
    body |= {
        "state": "failure",
        "context": "ci/test",
        "sha": "c0ffee",
        "branches": [{"name": "fix"}],
        "target_url": "https://ci.example/7",
    }


def gitea_workflow(body: Any) -> None:
    body |= {
        "action": "completed",
        "workflow_run": {
            "conclusion": "failure",
            "head_branch": "fix",
            "head_sha": "c0ffee",
            "name": "test",
        },
    }


def forgejo_run(body: Any) -> None:
    """Change a body of Gitea to Forgejo's event of a failed run. The run has repository and user,
    because the event itself has neither."""
    repository, sender = body.pop("repository"), body.pop("sender")
    body |= {
        "action": "failure",
        "prior_status": "running",
        "run": {
            "title": "Round up",
            "workflow_id": "test.yml",
            "prettyref": "fix",
            "commit_sha": "c0ffee",
            "html_url": "https://f.example/r/1",
            "repository": repository,
            "trigger_user": sender,
        },
    }


def forgejo_pull_run(body: Any) -> None:
    """Change the body to the run of a pull request, which names the pull request's number instead
    of a branch."""
    forgejo_run(body)
    body["run"] |= {"prettyref": "#9", "is_fork_pull_request": True}


def gitlab_assigned(body: Any) -> None:
    body["changes"] = {
        "assignees": {
            "previous": [{"username": "ann"}],
            "current": [{"username": "ann"}, {"username": "dev"}],
        }
    }


def gitlab_nothing_new(body: Any) -> None:
    same = [{"username": "ann"}]
    body["changes"] = {
        "assignees": {"previous": same, "current": same},
        "labels": {"previous": [], "current": []},
    }


def gitlab_reviewer(body: Any) -> None:
    body["object_attributes"]["action"] = "update"
    body["changes"] = {"reviewers": {"previous": [], "current": [{"username": "dev"}]}}


def gitlab_pipeline(body: Any) -> None:
    projects = {"source_project_id": 1, "target_project_id": 1}
    body |= {
        "object_kind": "pipeline",
        "merge_request": {"iid": 4, "source_branch": "fix", **projects},
    }
    body["object_attributes"] = {
        "status": "failed",
        "ref": "refs/merge-requests/4/head",
        "sha": "c0ffee",
        "url": "https://gitlab.com/p/1",
    }


def gitlab_system(body: Any) -> None:
    body["object_attributes"]["system"] = True
