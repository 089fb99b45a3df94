"""Webhooks of the four forges, reduced to the fields that perdure reads, with their real names.

Bodies that a forge really sent are in `recorded`. The bodies here are for events that were not
recorded, and for stories of many events. Each is about issue 4 of shop/web, or about pull request
9, which solves that issue. Their names and nesting were compared with:

- GitHub: docs.github.com, "Webhook events and payloads". - Gitea 1.26.4: modules/structs/hook.go
and services/webhook/notifier.go; and `recorded/gitea-1.26`. - Forgejo 13 to 16:
modules/webhook/type.go (it has no event for a commit status), modules/structs/hook.go
(`ActionPayload` has neither repository nor sender) and action.go. - GitLab 18:
doc/user/project/integrations/webhook_events.md, lib/gitlab/hook_data/note_builder.rb (`position`,
`internal`), lib/gitlab/data_builder/issuable.rb (`changes` has only safe fields; `assignees` is
missing if there are none) and pipeline.rb (`ref` is the source branch); and event_webhook_types.go
of GitLab's own Go client 1.46.0.
"""

from __future__ import annotations

from typing import Any

from perdure.model.forge.deliveries import Forge

REPOSITORY = "shop/web"
BRANCH = "perdure/dev-4"
COMMIT = "c0ffee" + "0" * 34
Sent = tuple[Forge, str, dict[str, Any]]
"""A webhook: the forge, the event's name in the headers, and the body."""
GITHUB_LIKE = (Forge.GITHUB, Forge.GITEA, Forge.FORGEJO)


def _like(forge: Forge, action: str, sender: str, **more: Any) -> dict[str, Any]:
    repository = {"full_name": REPOSITORY, "clone_url": f"https://{forge}.example/{REPOSITORY}.git"}
    return {"action": action, "repository": repository, "sender": {"login": sender}, **more}


LAB_TIME = "2026-01-02 03:04:05 UTC"
"""A time as GitLab writes it in webhooks."""
LAB_TIMES = {"updated_at": {"previous": "2026-01-01 03:04:05 UTC", "current": LAB_TIME}}
"""The field that is part of `changes` in every body of GitLab."""


def _lab(kind: str, user: str, **more: Any) -> dict[str, Any]:
    project = {
        "path_with_namespace": REPOSITORY,
        "git_http_url": f"https://gitlab.example/{REPOSITORY}.git",
    }
    return {
        "object_kind": kind,
        "event_type": kind,
        "user": {"username": user},
        "project": project,
        **more,
    }


def _issue(**more: Any) -> dict[str, Any]:
    url = f"https://forge.example/{REPOSITORY}/issues/4"
    return {
        "number": 4,
        "title": "Rounding",
        "body": "Off by a cent.",
        "state": "open",
        "html_url": url,
        **more,
    }


def _lab_issue(action: str, **more: Any) -> dict[str, Any]:
    url = f"https://forge.example/{REPOSITORY}/issues/4"
    return {
        "iid": 4,
        "title": "Rounding",
        "description": "Off by a cent.",
        "action": action,
        "confidential": False,
        "updated_at": LAB_TIME,
        "url": url,
        **more,
    }


def _pull(**more: Any) -> dict[str, Any]:
    head = {"ref": BRANCH, "sha": COMMIT, "repo": {"full_name": REPOSITORY}}
    url = f"https://forge.example/{REPOSITORY}/pull/9"
    return {
        "number": 9,
        "title": "Rounding (#4)",
        "body": "Closes #4",
        "state": "open",
        "head": head,
        "html_url": url,
        **more,
    }


def _lab_pull(**more: Any) -> dict[str, Any]:
    return {
        "iid": 9, "title": "Rounding (#4)", "source_branch": BRANCH, "source_project_id": 1, "target_project_id": 1,
        "last_commit": {"id": COMMIT}, **more,
    }  # fmt: skip


def assigned(
    forge: Forge, login: str = "dev-bot", sender: str = "ada", left: tuple[str, ...] = ()
) -> Sent:
    if forge is Forge.GITLAB:
        others = [{"username": each} for each in left]
        now = [{"username": login}, *others]
        changes = {"assignees": {"previous": others, "current": now}, **LAB_TIMES}
        return (
            forge,
            "Issue Hook",
            _lab("issue", sender, object_attributes=_lab_issue("update"), changes=changes),
        )
    issue = _issue(assignees=[{"login": each} for each in (login, *left)])
    event = "issues" if forge is Forge.GITHUB else "issue_assign"
    return forge, event, _like(forge, "assigned", sender, issue=issue, assignee={"login": login})


def unassigned(
    forge: Forge, login: str = "dev-bot", sender: str = "ada", left: tuple[str, ...] = ()
) -> Sent:
    if forge is Forge.GITLAB:
        others = [{"username": each} for each in left]
        before = [{"username": login}, *others]
        changes = {"assignees": {"previous": before, "current": others}, **LAB_TIMES}
        return (
            forge,
            "Issue Hook",
            _lab("issue", sender, object_attributes=_lab_issue("update"), changes=changes),
        )
    issue = _issue(assignees=[{"login": each} for each in left] or None)
    if forge is Forge.GITHUB:
        return (
            forge,
            "issues",
            _like(forge, "unassigned", sender, issue=issue, assignee={"login": login}),
        )
    # Gitea and Forgejo do not say who was unassigned.
    return forge, "issue_assign", _like(forge, "unassigned", sender, issue=issue)


def labelled(
    forge: Forge, label: str = "agent", sender: str = "ada", also: tuple[str, ...] = ()
) -> Sent:
    names = (label, *also)
    if forge is Forge.GITLAB:
        changes = {
            "labels": {
                "previous": [{"title": each} for each in also],
                "current": [{"title": each} for each in names],
            }
        }
        return (
            forge,
            "Issue Hook",
            _lab("issue", sender, object_attributes=_lab_issue("update"), changes=changes),
        )
    issue = _issue(labels=[{"name": each} for each in names])
    if forge is Forge.GITHUB:
        return forge, "issues", _like(forge, "labeled", sender, issue=issue, label={"name": label})
    return forge, "issue_label", _like(forge, "label_updated", sender, issue=issue)


def unlabelled(
    forge: Forge, label: str = "agent", sender: str = "ada", left: tuple[str, ...] = ("bug",)
) -> Sent:
    if forge is Forge.GITLAB:
        now = [{"title": each} for each in left]
        changes = {"labels": {"previous": [{"title": label}, *now], "current": now}}
        return (
            forge,
            "Issue Hook",
            _lab("issue", sender, object_attributes=_lab_issue("update"), changes=changes),
        )
    issue = _issue(labels=[{"name": each} for each in left])
    if forge is Forge.GITHUB:
        return (
            forge,
            "issues",
            _like(forge, "unlabeled", sender, issue=issue, label={"name": label}),
        )
    return (
        forge,
        "issue_label",
        _like(forge, "label_updated" if left else "label_cleared", sender, issue=issue),
    )


def commented(forge: Forge, text: str, sender: str = "ada", id: int = 71, **more: Any) -> Sent:
    if forge is Forge.GITLAB:
        note = {
            "id": id,
            "note": text,
            "noteable_type": "Issue",
            "action": "create",
            "system": False,
            **more,
        }
        return (
            forge,
            "Note Hook",
            _lab("note", sender, object_attributes=note, issue=_lab_issue("")),
        )
    comment = {
        "id": id,
        "body": text,
        "user": {"login": sender},
        "html_url": "https://forge.example/c/71",
    }
    return forge, "issue_comment", _like(forge, "created", sender, issue=_issue(), comment=comment)


def comment_edited(forge: Forge, before: str, text: str, sender: str = "ada", id: int = 71) -> Sent:
    if forge is Forge.GITLAB:
        # GitLab does not send the earlier text of a comment.
        note = {
            "id": id,
            "note": text,
            "noteable_type": "Issue",
            "action": "update",
            "system": False,
        }
        return (
            forge,
            "Note Hook",
            _lab("note", sender, object_attributes=note, issue=_lab_issue("")),
        )
    comment = {
        "id": id,
        "body": text,
        "user": {"login": sender},
        "html_url": "https://forge.example/c/71",
    }
    changes = {"body": {"from": before}}
    return (
        forge,
        "issue_comment",
        _like(forge, "edited", sender, issue=_issue(), comment=comment, changes=changes),
    )


def edited(
    forge: Forge,
    before: str,
    text: str,
    sender: str = "ada",
    title: str = "Rounding",
    title_before: str = "",
) -> Sent:
    if forge is Forge.GITLAB:
        edits = {"last_edited_at": {"previous": None, "current": LAB_TIME}, **LAB_TIMES}
        changes: dict[str, Any] = {"description": {"previous": before, "current": text}, **edits}
        if title_before:
            changes["title"] = {"previous": title_before, "current": title}
        found = _lab_issue("update", description=text, title=title)
        return forge, "Issue Hook", _lab("issue", sender, object_attributes=found, changes=changes)
    changes = {"body": {"from": before}} | (
        {"title": {"from": title_before}} if title_before else {}
    )
    return (
        forge,
        "issues",
        _like(forge, "edited", sender, issue=_issue(body=text, title=title), changes=changes),
    )


def on_a_line(
    forge: Forge,
    text: str,
    sender: str = "ada",
    path: str = "src/total.py",
    line: int = 12,
    hunk: str = "",
) -> Sent:
    if forge is Forge.GITLAB:
        position = {
            "base_sha": "a" * 40,
            "start_sha": "a" * 40,
            "head_sha": COMMIT,
            "old_path": path,
            "new_path": path,
            "position_type": "text",
            "old_line": None,
            "new_line": line,
            "line_range": None,
        }
        note = {
            "id": 72,
            "note": text,
            "noteable_type": "MergeRequest",
            "type": "DiffNote",
            "action": "create",
            "system": False,
            "internal": False,
            "position": position,
        }
        return (
            forge,
            "Note Hook",
            _lab("note", sender, object_attributes=note, merge_request=_lab_pull()),
        )
    if forge is Forge.GITHUB:
        comment = {
            "id": 72, "body": text, "path": path, "line": line, "side": "RIGHT", "diff_hunk": hunk, "user": {"login": sender},
            "html_url": "https://forge.example/c/72",
        }  # fmt: skip
        return (
            forge,
            "pull_request_review_comment",
            _like(forge, "created", sender, pull_request=_pull(), comment=comment),
        )
    # Gitea and Forgejo send no text of the comments on lines: modules/structs/hook.go,
    # ReviewPayload.
    review = {"type": "pull_request_review_comment", "content": text}
    return (
        forge,
        "pull_request_review_comment",
        _like(forge, "reviewed", sender, pull_request=_pull(), review=review),
    )


def approved(forge: Forge, text: str, sender: str = "ada") -> Sent:
    if forge is Forge.GITLAB:
        # On GitLab an approval has no text. The text that a person adds is sent as a note.
        note = {
            "id": 73,
            "note": text,
            "noteable_type": "MergeRequest",
            "action": "create",
            "system": False,
        }
        return (
            forge,
            "Note Hook",
            _lab("note", sender, object_attributes=note, merge_request=_lab_pull()),
        )
    if forge is Forge.GITHUB:
        review = {
            "id": 73,
            "state": "approved",
            "body": text,
            "user": {"login": sender},
            "html_url": "https://forge.example/r/73",
        }
        return (
            forge,
            "pull_request_review",
            _like(forge, "submitted", sender, pull_request=_pull(), review=review),
        )
    review = {"type": "pull_request_review_approved", "content": text}
    return (
        forge,
        "pull_request_review_approved",
        _like(forge, "reviewed", sender, pull_request=_pull(), review=review),
    )


def red(
    forge: Forge, sender: str, commit: str = COMMIT, branch: str = BRANCH, name: str = "build"
) -> list[Sent]:
    """Return every webhook that a forge sends about one failed workflow with one failed job, in the
    forge's order."""
    url = f"https://forge.example/{REPOSITORY}/actions/runs/1"
    if forge is Forge.GITLAB:
        run = {"id": 31, "name": None, "ref": branch, "sha": commit, "status": "failed", "url": url}
        body = _lab("pipeline", sender, object_attributes=run, merge_request=None)
        del body["event_type"]
        return [(forge, "Pipeline Hook", body)]
    if forge is Forge.GITHUB:
        about = {
            "head_branch": branch,
            "head_sha": commit,
            "conclusion": "failure",
            "status": "completed",
            "pull_requests": [],
        }
        suite = about | {"id": 1, "app": {"slug": "github-actions"}}
        run = about | {"id": 2, "name": name, "html_url": f"{url}/job/2", "check_suite": suite}
        workflow = about | {
            "id": 3,
            "name": "CI",
            "html_url": url,
            "head_repository": {"full_name": REPOSITORY},
        }
        return [
            (forge, "check_run", _like(forge, "completed", sender, check_run=run)),
            (forge, "check_suite", _like(forge, "completed", sender, check_suite=suite)),
            (forge, "workflow_run", _like(forge, "completed", sender, workflow_run=workflow)),
        ]
    if forge is Forge.FORGEJO:
        outer = _like(forge, "failure", sender)
        run = {
            "id": 3,
            "title": "Round up",
            "repository": outer["repository"],
            "workflow_id": "ci.yml",
            "trigger_user": outer["sender"],
            "prettyref": branch,
            "commit_sha": commit,
            "status": "failure",
            "html_url": url,
        }
        body = {"action": "failure", "run": run, "prior_status": "running"}
        return [(forge, "action_run_failure", body)]
    # Gitea does not name the branch of a status: modules/structs/hook.go has a TODO for that.
    status = {
        "state": "failure",
        "context": f"CI / {name} (push)",
        "sha": commit,
        "target_url": url,
    }
    run = {
        "id": 3,
        "conclusion": "failure",
        "head_branch": branch,
        "head_sha": commit,
        "display_title": "CI",
        "html_url": url,
    }
    return [
        (forge, "status", _like(forge, "", sender, **status)),
        (forge, "workflow_run", _like(forge, "completed", sender, workflow_run=run)),
    ]
