"""Launches that cannot work with any agent, each as one sentence for a person. Shared by the drivers' `refuse`."""

from __future__ import annotations

from perdure.model import Launch


def prompt(launch: Launch) -> str:
    """An empty prompt, or one that cannot be written."""
    if not launch.prompt.strip():
        return "The prompt is empty."
    try:
        launch.prompt.encode()
    except UnicodeEncodeError as error:
        return f"The prompt is no valid text: character {error.start + 1} is half of a pair."
    return ""


def arguments(launch: Launch, reserved: frozenset[str]) -> str:
    """An argument for the agent that perdure sets itself."""
    for argument in launch.spec.agent_args:
        if "\0" in argument:
            return "An argument for the agent has a NUL character in it."
        if (flag := argument.partition("=")[0]) in reserved:
            return f"The argument {flag} cannot be passed to {launch.spec.agent}: perdure decides on it."
    return ""
