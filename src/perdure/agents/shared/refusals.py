"""Finds reasons why a launch of any agent cannot work. Each function returns the reason as one
sentence for a person, or an empty string if it finds none. Shared by the drivers' `refuse`."""

from __future__ import annotations

import re

from perdure.model import Launch


def prompt(launch: Launch) -> str:
    """Return why the prompt cannot be sent: it is empty, or it is not valid Unicode. Return an
    empty string if it can be sent."""
    if not launch.prompt.strip():
        return "The prompt is empty."
    try:
        launch.prompt.encode()
    except UnicodeEncodeError as error:
        return (
            f"The prompt is not valid text: character {error.start + 1} is half of a "
            "surrogate pair."
        )
    return ""


def arguments(launch: Launch, reserved: frozenset[str]) -> str:
    """Return why one of the agent's arguments is refused: it has a NUL character, or it is one of
    `reserved`. Return an empty string if none is refused. Every form that the CLIs accept is
    recognized: `--name=value`, `-nvalue`, and `--camelCase` for `--camel-case` (yargs, of Gemini
    CLI and OpenCode)."""
    for argument in launch.spec.agent_args:
        if "\0" in argument:
            return "An argument for the agent has a NUL character in it."
        flag = re.sub(
            r"(?<=[a-z])[A-Z]", lambda found: f"-{found[0].lower()}", argument.partition("=")[0]
        )
        if not flag.startswith("--") and flag not in reserved:
            flag = flag[:2]
        if flag in reserved:
            return (
                f"The argument {flag} cannot be passed to {launch.spec.agent}: perdure sets it "
                "itself."
            )
    return ""
