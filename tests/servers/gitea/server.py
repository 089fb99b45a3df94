"""One Gitea with its own directory and SQLite database on 127.0.0.1, which ends with the thread
that started it. Everything in it is made through its API.

It uses https with a throwaway certificate (`ca_file`), because git may not fetch by http. It may
call webhooks on loopback, which its default settings would refuse. After `stop` or `kill`, `start`
continues with the same data on the same port.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.servers.gitea.build import place, program
from tests.servers.ports import free_port

PATIENCE_S = 120.0
ADMIN = "root"
PASSWORD = "correct horse battery"
EVENTS = (
    *(
        "issues",
        "issue_assign",
        "issue_label",
        "issue_comment",
        "pull_request",
        "pull_request_assign",
        "pull_request_label",
    ),
    *(
        "pull_request_comment",
        "pull_request_review",
        "pull_request_review_request",
        "pull_request_sync",
        "push",
        "delete",
        "status",
        "workflow_run",
    ),
)

INI = """
RUN_MODE = prod
RUN_USER = {account}
WORK_PATH = {top}
[server]
STATIC_ROOT_PATH = {static}
PROTOCOL = https
CERT_FILE = {top}/certificate.pem
KEY_FILE = {top}/key.pem
HTTP_ADDR = 127.0.0.1
HTTP_PORT = {port}
ROOT_URL = {address}/
LOCAL_ROOT_URL = https://127.0.0.1:{port}/
PUBLIC_URL_DETECTION = never
DISABLE_SSH = true
OFFLINE_MODE = true
[database]
DB_TYPE = sqlite3
PATH = {top}/gitea.db
SQLITE_JOURNAL_MODE = WAL
[security]
INSTALL_LOCK = true
SECRET_KEY = 0123456789abcdef0123456789abcdef
INTERNAL_TOKEN = eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJuYmYiOjE3MDAwMDAwMDB9.nothing-secret-here
PASSWORD_COMPLEXITY = off
[oauth2]
ENABLED = false
[service]
DISABLE_REGISTRATION = true
[webhook]
ALLOWED_HOST_LIST = loopback
DELIVER_TIMEOUT = 30
[indexer]
ISSUE_INDEXER_TYPE = db
[mailer]
ENABLED = false
[actions]
ENABLED = true
[cron]
ENABLED = false
[log]
MODE = console
LEVEL = Warn
"""


class Refused(AssertionError):
    """Raised if the API answers with an unexpected status."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"{status}: {said[:500]}")
        self.status = status


class Gitea:
    """A running Gitea. `tokens` has a token for every user, with all scopes. The user `ADMIN`
    always exists."""

    def __init__(self, address: str = "") -> None:
        self.top = Path(tempfile.mkdtemp(prefix="perdure-gitea-", dir="/tmp"))
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.ca_file = self.top / "certificate.pem"
        self.process: subprocess.Popen[bytes] | None = None
        self.tokens: dict[str, str] = {}
        self.organisations: set[str] = set()
        account = self._run("id", "-un").strip()
        text = INI.format(
            account=account,
            top=self.top,
            static=place(),
            port=self.port,
            address=address or self.url,
        )
        (self.top / "app.ini").write_text(text)
        (self.top / "home").mkdir()
        kind = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=perdure test",
        ]
        names = ["-addext", "subjectAltName=IP:127.0.0.1"]
        self._run(
            "openssl",
            "req",
            "-x509",
            *kind,
            *names,
            "-keyout",
            str(self.top / "key.pem"),
            "-out",
            str(self.ca_file),
        )
        self._tls = ssl.create_default_context(cafile=str(self.ca_file))

    # --- the server
    # ----------------------------------------------------------------------------------------------

    def start(self) -> Gitea:
        """Start Gitea, wait until it answers, and return this object."""
        with (self.top / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *self._command("web")], cwd=self.top, env=self._environ, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.until(self._answers, "it answers")
        if not self.tokens:
            # The program itself makes the first user, because no user exists yet who could call the
            # API.
            who = [
                "--username",
                ADMIN,
                "--password",
                PASSWORD,
                "--email",
                f"{ADMIN}@example.com",
                "--must-change-password=false",
            ]
            made = self._run(*self._command("admin", "user", "create", "--admin", *who))
            assert "successfully created" in made, made
            self.tokens[ADMIN] = self.token(ADMIN, "all")
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """Kill Gitea and every git process that it started."""
        self.stop(signal.SIGKILL)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.top)

    def until(self, met: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if value := met():
                return value
            assert self.process is None or self.process.poll() is None, self.said()
            time.sleep(0.05)
        raise AssertionError(f"not within {PATIENCE_S:g} s: {what}\n{self.said()}")

    def said(self) -> str:
        return (self.top / "log").read_text(errors="replace")[-5000:]

    @property
    def _environ(self) -> dict[str, str]:
        home = {
            "HOME": str(self.top / "home"),
            "TMPDIR": str(self.top),
            "GITEA_WORK_DIR": str(self.top),
        }
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "GITEA_I_AM_BEING_UNSAFE_RUNNING_AS_ROOT": "true",
            **home,
        }

    def _command(self, *words: str) -> list[str]:
        return [str(program()), *words, "--config", str(self.top / "app.ini")]

    def _run(self, *command: str) -> str:
        ran = subprocess.run(
            command,
            cwd=self.top,
            env=self._environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def _answers(self) -> bool:
        try:
            return self._ask("GET", "/api/healthz", None, {})[0] == 200
        except OSError:
            return False

    # --- its API
    # -------------------------------------------------------------------------------------------------

    def api(self, method: str, path: str, body: object = None, *, by: str = ADMIN) -> Any:
        """Make one call below `/api/v1` as a user, and return the answer. Raise Refused for every
        status except 2xx."""
        return self._api(method, path, body, f"token {self.tokens[by]}")

    def revoke(self, name: str) -> None:
        """Make all tokens of a user invalid, and put a new token into `tokens`."""
        basic = self._basic(name)
        for each in self._api("GET", f"/users/{name}/tokens", None, basic):
            self._api("DELETE", f"/users/{name}/tokens/{each['id']}", None, basic)
        self.tokens[name] = self.token(name, "all")

    def token(self, name: str, *scopes: str) -> str:
        """Make a new token of a user, and return it."""
        made = self._api(
            "POST",
            f"/users/{name}/tokens",
            {"name": f"t{time.monotonic_ns()}", "scopes": scopes},
            self._basic(name),
        )
        return str(made["sha1"])

    def _basic(self, name: str) -> str:
        return f"Basic {base64.b64encode(f'{name}:{PASSWORD}'.encode()).decode()}"

    def user(self, name: str) -> str:
        """Make a user without permissions, and return a token for it."""
        if name in self.tokens:
            return self.tokens[name]
        account = {
            "username": name,
            "email": f"{name}@example.com",
            "password": PASSWORD,
            "must_change_password": False,
        }
        self.api("POST", "/admin/users", account)
        self.tokens[name] = self.token(name, "all")
        return self.tokens[name]

    def repository(self, owner: str, name: str, **may: str) -> str:
        """Make a private repository with `greet.py` on `main`, and return its full name. `may` has
        the permissions of others (`dev_bot="write"`).

        The owner is a user, or an organisation of `ADMIN`.
        """
        room, maker = (
            ("/user/repos", owner) if owner in self.tokens else (f"/orgs/{owner}/repos", ADMIN)
        )
        self.api(
            "POST",
            room,
            {"name": name, "auto_init": True, "default_branch": "main", "private": True},
            by=maker,
        )
        full = f"{owner}/{name}"
        self.commit(
            full, "main", "greet.py", "def greet(name):\n    return 'Hello ' + name\n", by=maker
        )
        for login, permission in may.items():
            self.api(
                "PUT",
                f"/repos/{full}/collaborators/{login.replace('_', '-')}",
                {"permission": permission},
            )
        return full

    def organisation(self, name: str) -> None:
        """Make an organisation of `ADMIN`."""
        if name not in self.organisations:
            self.api("POST", "/orgs", {"username": name, "visibility": "private"})
            self.organisations.add(name)

    def commit(
        self, repository: str, branch: str, path: str, text: str, *, by: str, onto: str = ""
    ) -> str:
        """Write a new file on a branch, or on a new branch that begins at `onto`. Return the
        commit."""
        content = base64.b64encode(text.encode()).decode()
        body = {"content": content, "message": f"Write {path}", "branch": branch} | (
            {"new_branch": onto} if onto else {}
        )
        made = self.api("POST", f"/repos/{repository}/contents/{path}", body, by=by)
        return str(made["commit"]["sha"])

    def merge(self, repository: str, number: int, *, by: str = ADMIN) -> None:
        """Merge a pull request. After each push Gitea first checks whether it can merge, and
        answers 405 in that time, so the request is repeated until it succeeds."""

        def merged() -> bool:
            try:
                self.api(
                    "POST", f"/repos/{repository}/pulls/{number}/merge", {"Do": "merge"}, by=by
                )
            except Refused as error:
                if error.status != 405:
                    raise
            return bool(self.api("GET", f"/repos/{repository}/pulls/{number}", by=by)["merged"])

        self.until(merged, f"pull request {number} is merged")

    def webhook(self, repository: str, address: str, secret: str) -> None:
        """Set the webhook of the repository: delete the old one and make a new one, because the API
        cannot change its secret."""
        for each in self.api("GET", f"/repos/{repository}/hooks"):
            self.api("DELETE", f"/repos/{repository}/hooks/{each['id']}")
        config = {"url": address, "content_type": "json", "secret": secret}
        self.api(
            "POST",
            f"/repos/{repository}/hooks",
            {"type": "gitea", "active": True, "events": EVENTS, "config": config},
        )

    def _api(self, method: str, path: str, body: object, authorization: str) -> Any:
        return self.call(method, f"/api/v1{path}", body, {"authorization": authorization})

    def call(self, method: str, path: str, body: object, headers: dict[str, str]) -> Any:
        """Send one request with a JSON body, and return the JSON answer. Raise Refused for every
        status except 2xx."""
        json_only = {"content-type": "application/json", "accept": "application/json"}
        sent = None if body is None else json.dumps(body).encode()
        status, said = self._ask(method, path, sent, json_only | headers)
        if not 200 <= status < 300:
            raise Refused(status, said.decode(errors="replace"))
        return json.loads(said) if said else None

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        with closing(
            http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=PATIENCE_S, context=self._tls
            )
        ) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()


@contextmanager
def running(address: str = "") -> Iterator[Gitea]:
    """Run a Gitea inside the block."""
    server = Gitea(address)
    try:
        yield server.start()
    finally:
        server.remove()
