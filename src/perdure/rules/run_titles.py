"""Determines the title, the link and the role under which a run is shown. Pure. It imports little,
because `perdure ls` uses it.

The title of a run that a forge started is that of its issue or pull request. The prompt of such a
run begins with perdure's own words, so it is never used as the title. The title of any other run is
the first words of its prompt.
"""

from __future__ import annotations

import re

from perdure.rules.text import one_line

TYPE_CHECKING = False  # importing typing is too slow for `perdure ls`
if TYPE_CHECKING:
    from perdure.model import TaskRun

LONGEST = 160
"""Maximum length of a title, in characters."""
LINK_MOST = 2000
ROLE_MOST = 60
_ADDRESS = r"https?://[^\s<>\"'`\\^{|}\x00-\x20\x7f-\uffff]+"
_THING = r"[^:]*:[^:]*:(?P<repository>.+)(?P<mark>[#!])(?P<number>\d+)"
"""Pattern of the scope of a run that a forge started. It is compiled when it is first needed,
because most runs come from no forge."""
FORGE_KEY = "delivery:"
"""Beginning of the idempotency key of a run that a forge started."""
MARKED = "Text between <<<FORGE-"
"""First words of the prompt of every run that a forge started. They are the same in every version
of perdure."""


def title_of_thing(title: str, number: int, *, mark: str = "#", confidential: bool = False) -> str:
    """Return the title of a run for an issue or a pull request: `#12 Fix the login page`. If the
    issue is confidential, its title is left out, because titles are sent to places that anybody may
    read."""
    words = "(confidential)" if confidential else title
    return one_line(f"{mark}{number} {words}", LONGEST)


def link_to(address: str) -> str:
    """Return the http(s) address of an issue or pull request, without the part that points to a
    comment. Empty if the text is not such an address."""
    found = address.partition("#")[0]
    if len(found) <= LINK_MOST and re.fullmatch(_ADDRESS, found):
        return found
    return ""


def title_of(title: str, prompt: str, key: str = "", scope: str = "") -> str:
    """Return the title that is shown for a run. `title` is the stored title. Without it, a run that
    a forge started is named by its issue, and any other run by the first words of its prompt."""
    if title:
        return one_line(title, LONGEST)
    if key.startswith(FORGE_KEY) or prompt.startswith(MARKED):
        found = re.fullmatch(_THING, scope)
        if found:
            return one_line(_named(found), LONGEST)
        return "an issue of a forge"
    for line in prompt[: 4 * LONGEST].splitlines():
        shown = one_line(line, LONGEST)
        if shown:
            return shown
    return ""


def _named(found: re.Match[str]) -> str:
    return f"{found['mark']}{found['number']} of {found['repository']}"


def title_of_run(run: TaskRun) -> str:
    """Return the title that is shown for a run."""
    return title_of(run.spec.title, run.spec.prompt, run.spec.key, run.scope)


def role_of_run(run: TaskRun) -> str:
    """Return the name of the rule that a run works under; empty if it has none. Runs that were
    started by an older version of perdure have the role only as a label."""
    labels = run.spec.labels
    return run.spec.rule or (labels.get("agent", "") if "delivery" in labels else "")


def worker_of(role: str, agent: str) -> str:
    """Return the role and agent of a run: `reviewer (claude)`, or only the agent if there is no
    role."""
    name = one_line(role, ROLE_MOST)
    if name and name != agent:
        return f"{name} ({agent})"
    return agent
