"""Asks an agent's CLI whether it is logged in, for `doctor`. The CLI is asked without network
access, with a timeout, and without creating a home if there is none."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from perdure.model import Program
from perdure.protocols import AgentDriver

ASK_S = 20.0
"""Timeout for a CLI's answer, in seconds. On an idle machine a CLI takes 0.2 to 3 s."""
_NOWHERE = dict.fromkeys(
    ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    "http://127.0.0.1:9",
)
"""Environment variables that name a proxy that does not exist. They keep the CLI off the network,
so that the check does not renew an expired login."""


def finding(
    driver: AgentDriver, program: Program, home: Path, environ: Mapping[str, str], *, usual: bool
) -> tuple[str, str] | None:
    """Return the state (`warn` or `bad`) and the message about a missing login. Return None if the
    agent is logged in or this is unknown. `usual` is true if the agent is the default one or the
    user named it."""
    from perdure.agents.registry import names
    from perdure.agents.shared import logins
    from perdure.engine.attempt.engine import ORDINARY, is_passed
    from perdure.host import process

    agent = logins.native_name(driver.name, names())
    passed = {
        name: value
        for name, value in environ.items()
        if is_passed(name, (*ORDINARY, *driver.variables))
    }
    if agent == driver.name:
        command = logins.question(agent, program)
    else:
        command = ()
    code, said = 0, ""
    if command:
        try:
            made = tempfile.TemporaryDirectory(prefix="perdure-")
        except FileNotFoundError:
            return "warn", (
                "the login was not checked: no directory for temporary files is writable. Set "
                "TMPDIR to a writable directory"
            )
        with made as scratch:
            place = Path(scratch)
            if home.exists():
                own = passed
            else:
                own = passed | {
                    "HOME": scratch,
                    "CLAUDE_CONFIG_DIR": scratch,
                    "CODEX_HOME": scratch,
                }
            code, said = process.run_quick(
                command, directory=place / "asked", cwd=place, env=own | _NOWHERE, timeout_s=ASK_S
            )
        if code in (124, 125):
            return (
                "warn",
                f"the login was not checked: no answer within {ASK_S:g} s from "
                f"{' '.join(command[1:])}",
            )
    lacks = logins.missing(agent, home, passed, code, said)
    if lacks is None:
        return None
    return "bad" if lacks.certain and usual else "warn", f"{lacks.sentence}: {lacks.remedy}"
