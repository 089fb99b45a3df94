"""GitLab's API, after the pages of docs.gitlab.com/api (issues, merge requests, notes, members,
commits, project webhooks). There is no schema with which it could be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.servers.forge.gitea import job, ms, time
from tests.servers.forge.server import Answered, Asked, Page, Raw, Route
from tests.servers.forge.state import Item, Repository, Said, Status

PREFIX = "/api/v4/"
ROLES = {"read": 20, "write": 30, "admin": 40}
EMOJI = {"eyes", "rocket", "tada", "confused", "heart", "thumbsup", "thumbsdown"}


def asker(headers: Mapping[str, str]) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token if kind == "Bearer" else headers.get("private-token", "")


def dressed(method: str, path: str, status: int, value: Any) -> tuple[int, Any]:
    return status, value


def repository(asked: Asked, name: str, least: int = 0) -> Repository:
    found = asked.state.repositories.get(name)
    role = ROLES.get(found.access.get(asked.login, ""), 0) if found else 0
    if found is None or not role:
        raise Answered(404, {"message": "404 Project Not Found"})
    if role < least:
        raise Answered(403, {"message": "403 Forbidden"})
    return found


def item(asked: Asked, name: str, kind: str, number: str) -> Item:
    found = repository(asked, name).items.get(int(number))
    if found is None or bool(found.head) != (kind == "merge_requests"):
        raise Answered(404, {"message": "404 Not found"})
    return found


def user(asked: Asked, login: str) -> dict[str, Any]:
    return {
        "id": asked.state.people.get(login, 0),
        "username": login,
        "name": login.title(),
        "state": "blocked" if login in asked.state.blocked else "active",
    }


def thing(asked: Asked, name: str, found: Item) -> dict[str, Any]:
    state = "merged" if found.merged else "opened" if found.open else "closed"
    one = {
        "id": 1000 + found.number, "iid": found.number, "project_id": 1, "title": found.title, "description": found.text, "state": state,
        "confidential": found.confidential,
        "author": user(asked, found.author), "labels": found.labels, "assignees": [user(asked, each) for each in found.assignees],
        "created_at": time(found.created), "updated_at": time(found.updated),
        "closed_at": time(found.closed) if found.closed and not found.merged else None,
        "web_url": f"{asked.url}/{name}/-/{'merge_requests' if found.head else 'issues'}/{found.number}",
    }  # fmt: skip
    if not found.head:
        return one
    branches = repository(asked, name).branches()
    return one | {
        "merged_at": time(found.closed) if found.merged else None,
        "source_branch": found.head, "target_branch": found.base, "sha": branches.get(found.head), "draft": found.draft,
        "source_project_id": 1, "target_project_id": 1, "reviewers": [user(asked, each) for each in found.reviewers],
        "diff_refs": {"base_sha": branches.get(found.base), "head_sha": branches.get(found.head)},
    }  # fmt: skip


def note(asked: Asked, found: Said) -> dict[str, Any]:
    place = (
        {"position": {"new_path": found.path, "new_line": found.line}, "type": "DiffNote"}
        if found.path
        else {"type": None}
    )
    return place | {
        "id": found.id, "body": found.text, "author": user(asked, found.author), "created_at": time(found.created),
        "updated_at": time(found.updated), "system": found.verdict == "system",
        "internal": found.verdict == "internal",
    }  # fmt: skip


# --- routes
# --------------------------------------------------------------------------------------------------------


def whoami(asked: Asked) -> Any:
    return user(asked, asked.login)


def projects(asked: Asked) -> Any:
    mine = [each for each in asked.state.repositories.values() if asked.login in each.access]
    return Page(
        [{"id": each.id, "path_with_namespace": each.name} for each in mine], "per_page", 100
    )


def get_project(asked: Asked, name: str) -> Any:
    return {"id": repository(asked, name).id, "path_with_namespace": name}


def members(asked: Asked, name: str) -> Any:
    wanted = asked.query.get("query", "").casefold()
    found = repository(asked, name).access.items()
    told = [
        user(asked, login) | {"access_level": ROLES[level]}
        for login, level in found
        if wanted in login.casefold()
    ]
    return Page(told, "per_page", 100)


def items(asked: Asked, name: str, kind: str) -> Any:
    query = asked.query
    state = {"opened": [True], "closed": [False]}.get(query.get("state", "all"), [True, False])
    wanted = set(filter(None, query.get("labels", "").split(",")))
    found = [
        each for each in repository(asked, name).items.values()
        if bool(each.head) == (kind == "merge_requests") and each.open in state and wanted <= set(each.labels)
        and each.updated >= ms(query.get("updated_after", ""))
        and (not query.get("assignee_username") or query["assignee_username"] in each.assignees)
        and (not query.get("source_branch") or query["source_branch"] == each.head)
    ]  # fmt: skip
    newest = sorted(found, key=lambda each: -each.created)
    return Page([thing(asked, name, each) for each in newest], "per_page", 100)


def get_item(asked: Asked, name: str, kind: str, number: str) -> Any:
    return thing(asked, name, item(asked, name, kind, number))


def open_pull(asked: Asked, name: str) -> Any:
    repo, body = repository(asked, name, 30), asked.body
    branches = repo.branches()
    head, base = body["source_branch"], body["target_branch"]
    if head not in branches or base not in branches:
        raise Answered(400, {"message": ["Source branch does not exist"]})
    if any(each.open and (each.head, each.base) == (head, base) for each in repo.items.values()):
        raise Answered(
            409,
            {"message": ["Another open merge request already exists for this source branch: !1"]},
        )
    title = body["title"]
    found = asked.state.pull(
        name,
        asked.login,
        title,
        body.get("description", ""),
        head,
        base,
        title.startswith("Draft: "),
    )
    return 201, thing(asked, name, found)


def notes(asked: Asked, name: str, kind: str, number: str) -> Any:
    which = "updated" if asked.query.get("order_by") == "updated_at" else "created"
    found = [each for each in item(asked, name, kind, number).said if each.text]
    ordered = sorted(
        found,
        key=lambda each: getattr(each, which),
        reverse=asked.query.get("sort", "desc") == "desc",
    )
    return Page([note(asked, each) for each in ordered], "per_page", 100)


def add_note(asked: Asked, name: str, kind: str, number: str) -> Any:
    item(asked, name, kind, number)
    return 201, note(asked, asked.state.say(name, int(number), asked.login, asked.body["body"]))


def said(asked: Asked, name: str, kind: str, number: str, id: str) -> Said:
    found = next(
        (each for each in item(asked, name, kind, number).said if each.id == int(id)), None
    )
    if found is None:
        raise Answered(404, {"message": "404 Note Not Found"})
    return found


def edit_note(asked: Asked, name: str, kind: str, number: str, id: str) -> Any:
    found = said(asked, name, kind, number, id)
    found.text, found.updated = asked.body["body"], asked.state.tick()
    return note(asked, found)


def react(asked: Asked, name: str, kind: str, number: str) -> Any:
    return award(asked, item(asked, name, kind, number).reactions)


def react_to_note(asked: Asked, name: str, kind: str, number: str, id: str) -> Any:
    return award(asked, said(asked, name, kind, number, id).reactions)


def award(asked: Asked, reactions: set[tuple[str, str]]) -> Any:
    one = (asked.login, asked.body["name"])
    if one in reactions or one[1] not in EMOJI:
        raise Answered(404, {"message": "404 Award Emoji Name has already been taken Not Found"})
    reactions.add(one)
    return 201, {"name": one[1], "user": user(asked, asked.login)}


def reactions(asked: Asked, name: str, kind: str, number: str) -> Any:
    found = item(asked, name, kind, number).reactions
    return Page(
        [{"name": emoji, "user": user(asked, login)} for login, emoji in sorted(found)],
        "per_page",
        100,
    )


def add_status(asked: Asked, name: str, commit: str) -> Any:
    repo, body = repository(asked, name, 30), asked.body
    if body["state"] not in ("pending", "running", "success", "failed", "canceled"):
        raise Answered(400, {"error": "state does not have a valid value"})
    before = [each for each in repo.statuses.get(commit, []) if each.name == body["name"]]
    if before and before[-1].state == body["state"]:
        raise Answered(400, {"message": f"Cannot transition status via :run from :{body['state']}"})
    found = Status(
        body["name"],
        body["state"],
        body.get("description", ""),
        body.get("target_url", ""),
        asked.state.tick(),
    )
    repo.statuses.setdefault(commit, []).append(found)
    return 201, status(found)


def status(found: Status) -> dict[str, Any]:
    return {
        "id": 1, "name": found.name, "status": found.state, "description": found.text, "target_url": found.url or None,
        "created_at": time(found.updated), "finished_at": None,
    }  # fmt: skip


def statuses(asked: Asked, name: str, commit: str) -> Any:
    words = {"": "running", "failure": "failed"}
    jobs = [
        {"id": each.id, "name": each.name, "status": words.get(each.conclusion, each.conclusion), "allow_failure": False,
         "description": None, "target_url": f"{asked.url}/{name}/-/jobs/{each.id}", "created_at": time(each.id), "finished_at": None}
        for each in repository(asked, name).jobs.get(commit, [])
    ]  # fmt: skip
    return Page(
        [*jobs, *(status(each) for each in repository(asked, name).statuses.get(commit, []))],
        "per_page",
        100,
    )


def trace(asked: Asked, name: str, id: str) -> Any:
    return Raw(job(asked, name, id).log)


def diffs(asked: Asked, name: str, number: str) -> Any:
    found = repository(asked, name).diffs.get(int(number), [])
    told = [{"old_path": path, "new_path": path, "diff": diff} for path, diff in found]
    return Page(told, "per_page", 100)


def branch(asked: Asked, name: str, which: str) -> Any:
    found = repository(asked, name).branches().get(which)
    if found is None:
        raise Answered(404, {"message": "404 Branch Not Found"})
    return {"name": which, "commit": {"id": found}, "protected": False}


def hooks(asked: Asked, name: str) -> Any:
    found = repository(asked, name, 40)
    return Page([{"id": found.id, "url": found.hook}] if found.hook else [], "per_page", 100)


def events(asked: Asked, name: str, hook: str) -> Any:
    newest = sorted(repository(asked, name, 40).sent, key=lambda each: -each.id)
    told = [
        {"id": each.id, "request_headers": {"Idempotency-Key": each.delivery, "X-Gitlab-Event": each.event},
         "response_status": str(each.status) if each.status else "internal error"}
        for each in newest
    ]  # fmt: skip
    return Page(told, "per_page", 100)


def resend(asked: Asked, name: str, hook: str, id: str) -> Any:
    repository(asked, name, 40).again.append(int(id))
    return 201, {"response_status": 202}


P = r"projects/([\w.%-]+)"
KIND = r"(issues|merge_requests)"
ROUTES: list[Route] = [
    ("GET", "user", whoami),
    ("GET", "projects", projects),
    ("GET", P, get_project),
    ("GET", rf"{P}/members/all", members),
    ("GET", rf"{P}/{KIND}", items),
    ("POST", rf"{P}/merge_requests", open_pull),
    ("GET", rf"{P}/{KIND}/(\d+)", get_item),
    ("GET", rf"{P}/{KIND}/(\d+)/notes", notes),
    ("POST", rf"{P}/{KIND}/(\d+)/notes", add_note),
    ("PUT", rf"{P}/{KIND}/(\d+)/notes/(\d+)", edit_note),
    ("GET", rf"{P}/{KIND}/(\d+)/award_emoji", reactions),
    ("POST", rf"{P}/{KIND}/(\d+)/award_emoji", react),
    ("POST", rf"{P}/{KIND}/(\d+)/notes/(\d+)/award_emoji", react_to_note),
    ("POST", rf"{P}/statuses/([0-9a-f]{{40}})", add_status),
    ("GET", rf"{P}/repository/commits/([0-9a-f]{{40}})/statuses", statuses),
    ("GET", rf"{P}/jobs/(\d+)/trace", trace),
    ("GET", rf"{P}/merge_requests/(\d+)/diffs", diffs),
    ("GET", rf"{P}/repository/branches/([^/]+)", branch),
    ("GET", rf"{P}/hooks", hooks),
    ("GET", rf"{P}/hooks/(\d+)/events", events),
    ("POST", rf"{P}/hooks/(\d+)/events/(\d+)/resend", resend),
]
