"""Checks whether the configuration of `perdure serve` is valid, and describes what an agent could
read and change on this machine.

`perdure doctor` and the dashboard's settings page call `findings` if something is configured for
the service. `perdure serve` calls `exposure_sentences` at its start.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from perdure.cli.compose import open_to_read
from perdure.config import Settings
from perdure.errors import ConfigError, PerdureError
from perdure.host import system
from perdure.host.extras import install_command
from perdure.host.git.servers import is_loopback
from perdure.host.privileges import is_separate
from perdure.host.redaction import holders

CAP_SYS_PTRACE = 19
"""Number of the Linux capability to read the memory of any process (capabilities(7))."""
HOW = "docs: how-to/separate-user"
NAMED_MOST = 3


def exposure_sentences(chosen: Settings, held: Sequence[str] = ()) -> Iterator[str]:
    """Yield sentences about what agents can read and change. If the environment of another process
    contains one of the secrets in `held`, one more sentence names that process."""
    yield reach_of_agents(chosen)
    found = [f"{pid} ({command})" for pid, command in holders(held)]
    if found:
        if len(found) > NAMED_MOST:
            more = f" and {len(found) - NAMED_MOST} more"
        else:
            more = ""
        yield (
            "a secret of the service is also in the environment of process "
            f"{', '.join(found[:NAMED_MOST])}{more}, where agents can read it: name it by "
            "secret_file or secret_credential, or start perdure from systemd"
        )


def reach_of_agents(chosen: Settings) -> str:
    """Return one or two sentences about what an agent could read and change on this machine."""
    # os.access uses the real user and group ids. With `run_as` these are the ids that the agents
    # have.
    open_files = [place for place in secret_files(chosen) if os.access(place, os.R_OK)]
    if is_separate():
        return _separate_user_sentences(chosen, open_files)
    files = len(open_files)
    secrets = f", {files} file(s) with secrets" if files else ""
    if chosen.database:
        database = "the database"
    else:
        database = f"the database in {chosen.state} (tokens' hashes, all runs)"
    if os.geteuid() == 0 and _may_trace():
        return (
            f"agents run as root: they can read and change everything here, {database}{secrets} "
            f"and the memory of perdure serve included. Run it as an ordinary user ({HOW})"
        )
    return (
        f"agents run as the user {_user()}, as perdure does: they can read and change "
        f"{database}{secrets} and this user's other files, and read the environment of this user's "
        f"other processes. {_own_memory()} ({HOW})"
    )


def _own_memory() -> str:
    """Return a sentence, without its final period, about whether agents can read the memory and the
    environment of this process."""
    if system.IS_PORTABLE:
        return "On this system they may also read memory and environment of perdure itself"
    return "They cannot read memory and environment of perdure itself"


def _separate_user_sentences(chosen: Settings, open_files: Sequence[Path]) -> str:
    """Return sentences about what agents can read and change if they run as a separate user
    (`run_as`). `open_files` lists files with secrets that these agents can read."""
    holes = ""
    if open_files:
        holes = f". But {', '.join(map(str, sorted(open_files)))} can be read by them: chmod o-r"
    return (
        f"agents run as the user {_user()} without the group {os.getegid()} of perdure (run_as): "
        f"they can read neither {chosen.state}, nor the files with secrets, nor memory and "
        f"environment of perdure{holes}. They can read and change each other's workdirs and "
        f"conversations, and send signals to perdure, such as one that ends it ({HOW})"
    )


def secret_files(chosen: Settings) -> set[Path]:
    """Return the files that hold secrets of the service."""
    found = {rule.token_file for rule in chosen.agents}
    for source in chosen.webhooks:
        found.update(source.files, [source.token_file])
    return set(map(Path, found - {""}))


def _may_trace() -> bool:
    if system.IS_PORTABLE:
        return True
    found = re.search(
        r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE
    )
    return found is not None and bool(int(found[1], 16) >> CAP_SYS_PTRACE & 1)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


CREDENTIALS = "CREDENTIALS_DIRECTORY"
LIBRARIES = ("starlette", "uvicorn", "jinja2", "httpx2", "prometheus_client")


def findings(chosen: Settings, *, serving: bool = False) -> Iterator[tuple[str, str, str]]:
    """Yield topic, state (as in `doctor.DoctorFinding`) and message of each check.

    If `serving` is true, `perdure serve` itself runs the checks. Its secrets are then not checked,
    because it has removed them from its environment. It has already checked them at its start.
    """
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        yield (
            "serve",
            "bad",
            f"perdure serve needs {', '.join(missing)}: {install_command('serve')}",
        )
        return
    if not serving:
        yield from _secrets(chosen)
    yield from _rules(chosen)
    yield from _channels(chosen)
    yield from _tokens(chosen)
    reach = reach_of_agents(chosen)
    yield "exposure", "ok" if is_separate() and "But " not in reach else "warn", reach


def _secrets(chosen: Settings) -> Iterator[tuple[str, str, str]]:
    """Check the webhooks' secrets, the forge tokens and the templates of prompts. They must be
    present and readable, and secrets must be hard to guess."""
    from perdure.forge.clients.connections import forges
    from perdure.forge.dispatch.prompts import Prompts
    from perdure.server.webhooks import secrets_of

    def connect() -> None:
        with forges(chosen.webhooks, chosen.agents, environ, chosen.ca_file):
            pass

    if _has_credentials(chosen) and not os.environ.get(CREDENTIALS):
        yield (
            "serve",
            "warn",
            "the secrets are systemd credentials: only the service itself can check them",
        )
        return
    environ, problems = dict(os.environ), list[str]()
    looks: list[Callable[[], object]] = [
        lambda: secrets_of(chosen.webhooks, environ),
        connect,
        lambda: Prompts(chosen.agents),
    ]
    for look in looks:
        try:
            look()
        except ConfigError as error:
            problems += error.problems
    for problem in problems:
        yield "serve", "bad", problem
    if not problems:
        names = ", ".join(source.name for source in chosen.webhooks) or "none"
        yield "serve", "ok", f"webhooks: {names}; secrets, tokens and templates are valid"


def _channels(chosen: Settings) -> Iterator[tuple[str, str, str]]:
    """Check that the library and the secret of each notification channel are available."""
    from perdure.engine.notices.senders import NoticeRefused, missing, secret_of

    for channel in chosen.notify:
        library = missing(channel)
        try:
            if library:
                problem = f"{library} is missing: {install_command('notify')}"
            else:
                problem = ""
            if not problem and channel.secret_file and not secret_of(channel):
                problem = f"{channel.secret_file} is empty"
        except NoticeRefused as error:
            problem = str(error)
        if problem:
            yield "notify", "bad", f"notify.{channel.name}: {problem}"
        else:
            yield "notify", "ok", f"notify.{channel}"
    if chosen.serve_push_contact:
        yield _push(chosen)


def _push(chosen: Settings) -> tuple[str, str, str]:
    """Check that push messages can be sent, and that `serve_public_url` is an address at which
    browsers let people subscribe to them."""
    from perdure.engine.notices.push import KEY, missing, sender_of

    if absent := missing():
        return "push", "bad", f"{', '.join(absent)} is missing: {install_command('push')}"
    try:
        if (chosen.state / KEY).exists():
            sender_of(chosen).server_key()
    except PerdureError as error:
        return "push", "bad", str(error)
    if not chosen.serve_public_url.startswith("https://"):
        return (
            "push",
            "warn",
            "browsers get push messages only from https addresses and from localhost, and "
            "serve_public_url is not https",
        )
    return "push", "ok", f"push messages to browsers; contact {chosen.serve_push_contact}"


def _has_credentials(chosen: Settings) -> bool:
    if any(source.token_credential or source.credentials for source in chosen.webhooks):
        return True
    return any(rule.token_credential for rule in chosen.agents)


def _rules(chosen: Settings) -> Iterator[tuple[str, str, str]]:
    """Check that the agent of each rule is installed on this machine."""
    from perdure.agents import registry

    for rule in chosen.agents:
        try:
            registry.load(rule.agent).locate(os.environ)
            yield (
                "serve",
                "ok",
                f"agents.{rule.name}: {rule.agent} for {', '.join(rule.repositories)}",
            )
        except PerdureError as error:
            if error.hint:
                said = f"{str(error).rstrip('.')}: {error.hint}"
            else:
                said = str(error)
            yield "serve", "bad", f"agents.{rule.name}: {said}"


def _tokens(chosen: Settings) -> Iterator[tuple[str, str, str]]:
    """Check that the API has a valid token, and whether other machines can reach the service."""
    try:
        with closing(open_to_read(chosen)) as store:
            now = store.now()
            good = [token for token in store.tokens() if not token.expires or token.expires > now]
    except PerdureError as error:
        yield "serve", "bad", str(error)
        return
    public = _is_public(chosen.serve_listen)
    if public and not good and not chosen.webhooks:
        yield (
            "serve",
            "bad",
            f"{chosen.serve_listen} can be reached from outside, and there is no token: perdure "
            "token new NAME",
        )
    elif not good:
        yield (
            "serve",
            "warn",
            "there is no valid token, so the dashboard, the API and the metrics refuse everybody: "
            "perdure token new NAME",
        )
    else:
        if public:
            where = f"{chosen.serve_listen}, which can be reached from outside"
        else:
            where = chosen.serve_listen
        yield "serve", "ok", f"{len(good)} token(s); listens on {where}"


def _is_public(listen: str) -> bool:
    return not is_loopback(listen.rpartition(":")[0].strip("[]"))


def wanted(chosen: Settings) -> bool:
    """Return whether anything is configured that only `perdure serve` uses."""
    return bool(
        chosen.webhooks
        or chosen.agents
        or chosen.notify
        or chosen.origin.keys()
        & {"serve_listen", "serve_hosts", "serve_public_url", "serve_push_contact"}
    )
