"""An agent's home is moved to a volume, found there by a new machine, and moved back. The
conversation is the same throughout, with the real CLIs.

After each move the messages that reach the model contain the earlier ones, and the receipt says
`native`.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import spread
from tests.journeys.stage import Done, Stage, said
from tests.journeys.test_one_task import HANGS_IN_A_REPLY, RUN, went_on_natively

MakeStage = Callable[..., Stage]

SCRIPT = "by history\n" + "\n---\n".join(f"say That was turn {number}." for number in range(1, 9))

pytestmark = pytest.mark.journey


def at_home(stage: Stage) -> None:
    """Remove the agents' own variables, so that their homes are found only by HOME, as on a user's
    machine."""
    for name in (
        "CLAUDE_CONFIG_DIR",
        "CODEX_HOME",
        "GEMINI_CLI_HOME",
        "XDG_DATA_HOME",
        "XDG_CONFIG_HOME",
        "XDG_CACHE_HOME",
    ):
        stage.environ.pop(name, None)
    if stage.agent == "gemini":  # the rehearsal wrote the settings to the directory of the variable
        (stage.agent_home / ".gemini").rename(stage.home / ".gemini-settings")
        stage.agent_home.rmdir()
        (stage.home / ".gemini-settings").rename(stage.home / ".gemini")


def begun(stage: Stage) -> str:
    """Make a conversation with one turn, and return its id. perdure's own files are kept outside of
    the home, which is wiped later."""
    at_home(stage)
    stage.environ |= {
        "PERDURE_STATE": str(stage.directory / "kept/state"),
        "PERDURE_ROOT": str(stage.directory / "kept/root"),
    }
    stage.state = stage.directory / "kept/state"
    done = stage.perdure(*RUN, stage.agent, "The magic word is quercus.")
    assert done.code == 0, done.err
    found: str = done.json["attempts"][0]["session_id"]
    return found


def goes_on(stage: Stage, session: str, prompt: str) -> None:
    """Run one more turn in the same conversation, and check that the model got all of it."""
    done = stage.perdure("update", "task", prompt, "--json")
    assert done.code == 0, done.err
    last = done.json["attempts"][-1]
    assert (last["session_id"], last["rung"], last["receipt"]["verdict"]) == (
        session,
        "native",
        "native",
    ), last
    shown = said(stage.rehearsal.last.messages)
    assert "quercus" in shown
    assert prompt in shown
    assert len({request.session for request in stage.rehearsal.requests}) == 1


def home(stage: Stage, *words: str) -> Done:
    done = stage.perdure("home", *words)
    assert done.code == 0, done.out + done.err
    return done


def container_restart(stage: Stage) -> None:
    """Delete the user's home and all files in it, but keep the volume and perdure's own files."""
    gone = stage.directory / f"gone-{len(list(stage.directory.glob('gone-*')))}"
    spread.rename(stage.home, gone)
    stage.home.mkdir()


@pytest.mark.parametrize("way", ["variable", "symlink"])
def test_a_conversation_outlives_link_a_wiped_home_and_unlink(stage: MakeStage, way: str) -> None:
    """The conversation continues natively after `home link`, after the container's home was wiped,
    and after `unlink`."""
    one = stage(SCRIPT)
    session = begun(one)
    volume = one.directory / "volume"
    volume.mkdir()
    words = ("--volume", str(volume), *(["--symlink"] if way == "symlink" else []))
    moved = home(one, "link", one.agent, "--new", *words, "--json").json["homes"]
    assert {each["way"] for each in moved} == {"symlink" if one.agent == "opencode" else way}
    assert sum(each["files"] for each in moved) > 0
    goes_on(one, session, "Turn two: after link.")
    container_restart(one)
    home(one, "link", one.agent, *words)
    goes_on(one, session, "Turn three: after the wipe.")
    assert home(one, "verify", one.agent).out
    home(one, "unlink", one.agent)
    volume.rename(one.directory / "volume-away")
    goes_on(one, session, "Turn four: after unlink.")
    one.nothing_survives()


def contained(stage: Stage, *words: str) -> subprocess.Popen[str]:
    """Run perdure in a new container by the entrypoint, with a new home and the volume of the
    previous container."""
    volume = stage.directory / "volume"
    volume.mkdir(exist_ok=True)
    perdure = [sys.executable, "-m", "perdure"]
    entrypoint = [
        *perdure,
        "entrypoint",
        "--volume",
        str(volume),
        "--agent",
        stage.agent,
        "--",
        *perdure,
        *words,
    ]
    script = f"mount --bind {volume} {volume}; exec {shlex.join(entrypoint)}"
    unshared = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        script,
    ]
    pipe = subprocess.PIPE
    started = subprocess.Popen(
        unshared,
        cwd=stage.repo,
        env=stage.environ,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
    )
    stage.running.append(started)
    return started


def test_a_container_that_was_killed_is_gone_on_from_by_the_next_one(stage: MakeStage) -> None:
    """The whole container is killed while the model answers. The next container has a new home and
    the same volume, and continues the conversation."""
    one = stage(HANGS_IN_A_REPLY)
    at_home(one)
    first = contained(one, *RUN, one.agent, "--attempts", "1", "The magic word is quercus.")
    one.rehearsal.wait_for(2)
    first.kill()
    first.communicate()
    container_restart(one)
    second = one.finish(contained(one, "retry", "task", "--json"))
    assert second.code == 0, second.err
    report = second.json
    went_on_natively(one, report)
    assert report["attempts"][-1]["rung"] == "native"
    assert Path(report["workspace"]["path"]).is_relative_to(one.directory / "volume/perdure/root")


def test_without_its_volume_no_attempt_is_begun_and_nothing_is_lost(stage: MakeStage) -> None:
    """If the volume is not mounted, the agent is not started, because it would start a new
    conversation without saying so. With the volume the conversation continues."""
    one = stage(SCRIPT)
    session = begun(one)
    volume = one.directory / "volume"
    volume.mkdir()
    home(one, "link", one.agent, "--new", "--volume", str(volume))
    volume.rename(one.directory / "unmounted")
    volume.mkdir()
    asked = len(one.rehearsal.requests)
    refused = one.perdure("update", "task", "Turn two.", "--json")
    assert refused.code != 0
    assert refused.json["attempts"][-1]["outcome"]["kind"] == "config_error"
    assert "not mounted" in refused.json["attempts"][-1]["outcome"]["detail"]
    assert len(one.rehearsal.requests) == asked
    assert list(volume.iterdir()) == []
    volume.rmdir()
    (one.directory / "unmounted").rename(volume)
    goes_on(one, session, "Turn three.")
