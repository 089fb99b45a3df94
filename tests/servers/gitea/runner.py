"""A runner of Gitea's Actions that runs nothing. It takes the jobs of a repository, and ends them
as a test says, with a log.

It speaks the runners' own protocol (Go module code.gitea.io/actions-proto-go 0.4.1) as JSON over
Connect, so the statuses, webhooks and logs of a failed job are Gitea's own.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tests.servers.gitea.server import Gitea

LABEL = "ubuntu-latest"
WORKFLOW = f"""name: CI
on: EVENT
jobs:
  build:
    runs-on: {LABEL}
    steps:
      - run: make test
"""


def workflow(event: str) -> str:
    """Return a workflow with the one job `build`."""
    return WORKFLOW.replace("EVENT", event)


class Runner:
    """The only runner of one repository."""

    def __init__(self, gitea: Gitea, repository: str) -> None:
        self._gitea = gitea
        place = f"/repos/{repository}/actions/runners/registration-token"
        token = gitea.api("POST", place)["token"]
        self._who: dict[str, str] = {}
        about = {"name": "runner", "token": token, "version": "1", "labels": [LABEL]}
        made = self._call("Register", about)["runner"]
        self._who = {"x-runner-uuid": made["uuid"], "x-runner-token": made["token"]}

    def fail(self, *log: str) -> None:
        """Take the next job, write the lines of its log, and end it as failed."""
        task = self._gitea.until(self._task, "a job is there")
        now = datetime.now(UTC).isoformat()
        rows = [{"time": now, "content": line} for line in log]
        self._call("UpdateLog", {"taskId": task, "index": "0", "rows": rows, "noMore": True})
        ended = {"id": task, "result": "RESULT_FAILURE", "startedAt": now, "stoppedAt": now}
        self._call("UpdateTask", {"state": ended})

    def _task(self) -> str:
        found = self._call("FetchTask", {"tasksVersion": "0"}).get("task", {})
        return str(found.get("id", ""))

    def _call(self, name: str, body: object) -> Any:
        path = f"/api/actions/runner.v1.RunnerService/{name}"
        return self._gitea.call("POST", path, body, self._who)
