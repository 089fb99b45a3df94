"""A team in miniature: a real Gitea with a repository and its people, Claude Code with a scripted
model, and a real `perdure serve` between them.

`ada` owns the repository and gives the tasks, `mallory` may only read it, and `dev-bot` is
perdure's login.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Stage
from tests.servers.gitea.server import Gitea
from tests.servers.gitea.story import SECRET
from tests.web.serving import Serving

CONFIG = """
permissions = "full"
{settings}
ca_file = "{gitea.ca_file}"
[webhooks.tea]
forge = "gitea"
url = "{gitea.url}"
secret_file = "{{home}}/secret"
token_file = "{token}"
[agents.dev]
agent = "claude"
login = "dev-bot"
{whom}
repositories = ["{repository}"]
labels = ["agent"]
clone = "{gitea.url}/{{{{repository}}}}.git"
git_name = "dev-bot"
git_email = "dev-bot@example.com"
{more}
"""

PATIENCE_S = 400.0
_numbers = count(1)


class World:
    """One repository and one perdure. Methods such as `issue` and `say` are actions of people;
    `run` returns what perdure shows."""

    def __init__(
        self,
        gitea: Gitea,
        directory: Path,
        rehearsal: Rehearsal,
        more: str,
        whom: str,
        settings: str,
    ) -> None:
        self.gitea, self.rehearsal = gitea, rehearsal
        for name in ("ada", "mallory", "dev-bot"):
            gitea.user(name)
        self.repository = gitea.repository(
            "ada", f"web{next(_numbers)}", dev_bot="admin", mallory="read"
        )
        self.token = directory / "token"
        self.token.write_text(gitea.tokens["dev-bot"])
        self.stage = Stage(directory, "claude", rehearsal)
        words = {"more": more, "whom": whom, "settings": settings}
        config = CONFIG.format(gitea=gitea, token=self.token, repository=self.repository, **words)
        self.serving = Serving(self.stage.home, config, **self.stage.environ)

    def start(self, *words: str) -> World:
        """Start perdure's server, add the webhook to Gitea, and return this object."""
        self.serving.start(*(words or ("--jobs", "2")))
        self.gitea.webhook(
            self.repository, f"http://127.0.0.1:{self.serving.port}/webhooks/tea", SECRET
        )
        return self

    def until(self, met: Callable[[], Any], what: str) -> Any:
        """Wait until the condition is met. This waits longer than in other tests, because perdure
        asks a forge that was down again only after a minute or two."""
        return self.serving.until(met, what, PATIENCE_S)

    def do(self, method: str, path: str, body: object = None, *, by: str = "ada") -> Any:
        """Make one call of Gitea's API about the repository, and return the answer."""
        return self.gitea.api(method, f"/repos/{self.repository}{path}", body, by=by)

    def issue(self, title: str, text: str, *, assigned: bool = True, by: str = "ada") -> int:
        """Open a new issue, by default assigned to dev-bot, and return its number."""
        made = {"title": title, "body": text} | ({"assignees": ["dev-bot"]} if assigned else {})
        number: int = self.do("POST", "/issues", made, by=by)["number"]
        return number

    def say(self, number: int, text: str, *, by: str = "ada") -> None:
        self.do("POST", f"/issues/{number}/comments", {"body": text}, by=by)

    def pulls(self) -> list[dict[str, Any]]:
        """Return all pull requests, open and closed."""
        found: list[dict[str, Any]] = self.do("GET", "/pulls?state=all")
        return found

    def file(self, branch: str, path: str) -> str:
        """Return the content of a file on a branch."""
        found = self.do("GET", f"/contents/{path}?ref={branch}")["content"]
        return base64.b64decode(found).decode()

    def comment(self, number: int = 1) -> str:
        """Return dev-bot's comment on the issue, which must be the only one, or an empty string."""
        found = [
            each["body"]
            for each in self.do("GET", f"/issues/{number}/comments")
            if each["user"]["login"] == "dev-bot"
        ]
        assert len(found) < 2, found
        return "".join(found)

    def reactions(self, number: int) -> set[str]:
        return {each["content"] for each in self.do("GET", f"/issues/{number}/reactions") or []}

    def statuses(self, commit: str) -> dict[str, str]:
        """Return the state of each status of a commit, by name."""
        return {
            each["context"]: each["status"]
            for each in self.do("GET", f"/commits/{commit}/status")["statuses"] or []
        }

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.stage.perdure("ls", "--json").out)["runs"]
        return found

    def run(self) -> dict[str, Any]:
        """Return the only run, as `perdure show --json` prints it."""
        (found,) = self.runs()
        return self.stage.show(found["name"])

    def settled(self, attempts: int) -> dict[str, Any]:
        """Wait until the only run has ended and has at least this many attempts. Return it as
        `perdure show --json` prints it."""

        def met() -> dict[str, Any] | None:
            found = self.run() if self.runs() else {"state": ""}
            return (
                found
                if found["state"] in ("succeeded", "failed") and len(found["attempts"]) >= attempts
                else None
            )

        found: dict[str, Any] = self.until(met, f"attempt {attempts} is over")
        return found

    def prompts(self) -> list[str]:
        """Return the prompts of the agent, in order."""
        return self.rehearsal.prompts()

    def close(self) -> None:
        self.serving.kill()
        self.stage.close()
        self.rehearsal.stop()


@contextmanager
def world(
    gitea: Gitea,
    script: str,
    more: str = "",
    whom: str = 'authors = ["ada"]',
    settings: str = "",
) -> Iterator[World]:
    """Make a world on this Gitea with its own directory and rehearsal, and close it at the end.
    `more`: further lines of `[agents.dev]`. `whom`: the line of that rule that says for which
    people it works. `settings`: lines outside of all tables. The paths are short, because the path
    of a socket has at most 108 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    found = World(gitea, directory, Rehearsal(script).start(), more, whom, settings)
    try:
        yield found
    finally:
        found.close()
        shutil.rmtree(directory, ignore_errors=True)
