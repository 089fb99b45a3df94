"""Damage that can happen to a conversation between two attempts, and an oracle that checks receipts
item by item.

`kills` uses both. The oracle reads only the model server's record: items in a request have been
shown to the model. It does not read transcripts, and shares no code with the drivers.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tests.journeys.stage import Stage, native

FILES = (
    "truncated",
    "flipped",
    "foreign",
    "transcript lost",
    "home lost",
    "workdir lost",
    "stranger",
    "two retries",
)
HARMS: dict[str, tuple[str, ...]] = {
    "claude": (*FILES, "compacted"),
    "codex": FILES,
    "gemini": ("truncated", "flipped", "transcript lost", "workdir lost", "two retries"),
    "opencode": ("workdir lost", "two retries", "stranger"),
}
"""Kinds of damage, by agent. OpenCode keeps all conversations in one database, which is not cut at
random here."""

STRANGE = "This is another matter. The other word is robinia."


def apply(stage: Stage, harm: str, dice: random.Random) -> tuple[str, bool]:
    """Do the damage. Return a description of it (empty if there was nothing to damage yet), and
    whether perdure had a copy of the conversation by then."""
    copied = any(b"quercus" in path.read_bytes() for path in stage.copies())
    transcripts = [path for path in stage.transcripts() if path.is_file() and path.stat().st_size]
    done = _apply(stage, harm, dice, transcripts)
    return (harm if done else ""), copied


def _apply(stage: Stage, harm: str, dice: random.Random, transcripts: Sequence[Path]) -> bool:
    if harm == "two retries":
        first, second = (
            stage.start("retry", "task", "--json"),
            stage.start("retry", "task", "--json"),
        )
        stage.finish(first)
        stage.finish(second)
        return True
    if harm == "workdir lost":
        shown = stage.perdure("show", "task", "--json")
        if shown.code != 0 or not shown.json["workspace"]:
            return False
        saved = stage.perdure("checkpoints", "task", "--json").json["checkpoints"]
        (stage.directory / "saved").write_text(str(len(saved)))
        shutil.rmtree(shown.json["workspace"]["path"], ignore_errors=True)
        return True
    if not transcripts:
        return False
    path = transcripts[0]
    content = path.read_bytes()
    if harm == "truncated":
        path.write_bytes(content[: dice.randrange(len(content))])
    elif harm == "flipped":
        changed = bytearray(content)
        start = dice.randrange(len(content))
        for at in range(start, min(len(content), start + dice.choice((1, 16, 512)))):
            changed[at] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
    elif harm == "foreign":
        return _foreign(stage, path)
    elif harm == "transcript lost":
        path.unlink()
    elif harm == "home lost":
        settings = {each: each.read_bytes() for each in stage.agent_home.glob("*.toml")}
        settings |= {each: each.read_bytes() for each in stage.agent_home.glob("*.json")}
        shutil.rmtree(stage.agent_home)
        stage.agent_home.mkdir()
        for each, text in settings.items():
            each.write_bytes(text)
    else:
        return _by_hand(stage, harm)
    return True


def _foreign(stage: Stage, transcript: Path) -> bool:
    """Replace the transcript by another conversation with the same id. Return whether that was
    possible."""
    shown = stage.perdure("show", "task", "--json")
    ours = (
        shown.json["attempts"][0]["session_id"]
        if shown.code == 0 and shown.json["attempts"]
        else ""
    )
    if not ours:
        return False
    elsewhere = stage.directory / "elsewhere"
    elsewhere.mkdir()
    words = {
        "claude": ["-p", "--output-format", "json"],
        "codex": ["exec", "--json", "--skip-git-repo-check", "-"],
    }[stage.agent]
    before = set(stage.transcripts())
    program = [str(native(stage.agent)), *words]
    subprocess.run(
        program,
        cwd=elsewhere,
        env=stage.environ,
        input=STRANGE,
        text=True,
        capture_output=True,
        timeout=90,
    )
    new = set(stage.transcripts()) - before
    if len(new) != 1:
        return False
    other = new.pop()
    transcript.write_bytes(other.read_bytes().replace(other.stem[-36:].encode(), ours.encode()))
    other.unlink()
    return True


def _by_hand(stage: Stage, harm: str) -> bool:
    """Continue the conversation as a person or another program does, or compact it. Return whether
    that was possible."""
    shown = stage.perdure("show", "task", "--json")
    if shown.code != 0 or not shown.json["attempts"] or not shown.json["workspace"]:
        return False
    session = shown.json["attempts"][0]["session_id"]
    workdir = Path(shown.json["workspace"]["path"])
    if not session or not workdir.is_dir():
        return False
    if harm == "compacted":
        words = [
            str(native("claude")),
            "-p",
            "--output-format=stream-json",
            "--verbose",
            f"--resume={session}",
        ]
        done = subprocess.run(
            words,
            cwd=workdir,
            env=stage.environ,
            input=b"/compact",
            capture_output=True,
            timeout=90,
        )
        return done.returncode == 0
    # The scripted model may give the next step of the task to the other program, so that program
    # must be able to carry it out.
    return stage.resume_by_hand(session, STRANGE, workdir, full=True).returncode == 0


Item = tuple[str, str, str]


def items_of(messages: Sequence[Any]) -> list[Item]:
    """Return the items that a request showed: the task's prompts, calls, results and answers. The
    CLI's own additions (reminders, its environment) are left out."""
    found: list[Item] = []
    for message in messages:
        text = " ".join(message.text.split())
        if message.role == "user":
            found += [("prompt", "", word) for word in ("quercus", "fagus") if word in text]
        elif message.role == "tool_call":
            found.append(("call", message.call, ""))
        elif message.role == "tool_result":
            found.append(("result", message.call, text))
        elif text:
            found.append(("answer", "", text))
    return found


CLAIMS = ("native", "forked")
DAMAGED = "damaged line(s) of the transcript"
SAID = (
    "in no transcript any more",
    "newest part is missing",
    "repaired the transcript",
    "does not load",
    "do not load",
    "a summary",
    DAMAGED,
)


def judge_items(
    stage: Stage,
    report: dict[str, Any],
    harm: str,
    times: tuple[int, int],
    unwritten: Collection[int],
) -> list[str]:
    """Return the statements of receipts that the server's record disproves. `times`: begin and end
    of the damage; a request between them belongs to no attempt. `unwritten`: numbers of the
    attempts before which no transcript had the task."""
    wrong: list[str] = []
    requests = stage.rehearsal.requests
    for attempt in report["attempts"]:
        receipt = attempt["receipt"] or {}
        verdict, reasons = receipt.get("verdict", ""), "; ".join(receipt.get("reasons", ()))
        mine = [
            each
            for each in requests
            if attempt["started"] <= each.time <= (attempt["ended"] or 1 << 62)
        ]
        mine = [each for each in mine if not times[0] <= each.time <= times[1]]
        since = _told_new(report, attempt)
        earlier = [each for each in requests if since <= each.time < attempt["started"]]
        # Later attempts find what the earlier ones have put in place.
        first = not times[1] or _is_first_after(report, attempt, times[1])
        asked = sum(not _strange(each.messages) for each in earlier)
        said = "; ".join((reasons, attempt["why"] or ""))
        wrong += [
            f"untrue: attempt {attempt['number']}: {each}"
            for each in untrue(
                said,
                harm if first else LATER,
                asked,
                unwritten=attempt["number"] in unwritten,
            )
        ]
        if not mine or not earlier or verdict not in (*CLAIMS, "repaired"):
            continue
        known = {
            each
            for request in earlier
            for each in items_of(request.messages)
            if not _strange(request.messages)
        }
        messages = chain.from_iterable(each.messages for each in earlier)
        commands = {each.call: each.text for each in messages if each.role == "tool_call"}
        shown = set(items_of(mine[0].messages))
        # An item that an earlier prompt quoted is part of the conversation for all later attempts.
        prompts = [each.text for each in mine[0].messages if each.role == "user"]
        told = " ".join(" ".join(prompts).split())
        missing = [each for each in known - shown if not is_told(each, commands, told)]
        missing = [each for each in missing if not _made_up(each)]
        if missing and ALL in reasons:
            wrong.append(f"untrue: attempt {attempt['number']}: {sorted(missing)[:3]} is missing")
        if missing and verdict in CLAIMS:
            wrong.append(
                f"false native: attempt {attempt['number']} was not shown {sorted(missing)[:3]}: "
                f"{reasons}"
            )
        if missing and verdict == "repaired" and not any(each in reasons for each in SAID):
            wrong.append(
                f"false repaired: attempt {attempt['number']} does not say that "
                f"{sorted(missing)[:3]} is missing: {reasons}"
            )
    return [*wrong, *_untrue_prompts(requests, harm)]


def _is_first_after(report: dict[str, Any], attempt: dict[str, Any], harmed: int) -> bool:
    """Return whether the attempt is the first one that began after the damage."""
    later = [each["number"] for each in report["attempts"] if each["started"] >= harmed]
    return bool(later) and attempt["number"] == min(later)


def _untrue_prompts(requests: Sequence[Any], harm: str) -> list[str]:
    """Return the false statements about files that the agent's prompts contain."""
    messages = [each.messages for each in requests if not _strange(each.messages)]
    told = {each.text for each in chain.from_iterable(messages) if each.role == "user"}
    found = []
    if harm != "workdir lost" and any("The working directory was gone" in each for each in told):
        found.append("untrue: prompt: nobody removed the workdir")
    if harm == "workdir lost" and any("by somebody else" in each for each in told):
        found.append("untrue: prompt: the files were lost, and nobody changed them")
    return found


def _told_new(report: dict[str, Any], attempt: dict[str, Any]) -> int:
    """Return the start time of the newest earlier attempt whose receipt says that it left out a
    part of the conversation, or 0 if there is none. A later `native` says nothing about what was
    shown before that time."""
    begun = [
        each["started"]
        for each in report["attempts"]
        if each["number"] < attempt["number"] and _leaves_behind(each["receipt"] or {})
    ]
    return max(begun, default=0)


def _leaves_behind(receipt: dict[str, Any]) -> bool:
    """Return whether the receipt says that a part of the conversation is not shown any more."""
    reasons = "; ".join(receipt.get("reasons", ()))
    return any(each in reasons for each in LOSSES) or receipt.get("verdict") in LEFT_BEHIND


LOSSES = (DAMAGED, "in no transcript any more", "a summary by the agent replaces")
"""Parts of sentences by which a receipt says that items are lost or were replaced by a summary."""
LEFT_BEHIND = ("fresh", "rebuilt", "compacted", "shortened")
"""Verdicts which say that a part of the conversation is not shown any more."""


def _strange(messages: Sequence[Any]) -> bool:
    """Return whether a request belongs to another conversation than the task's."""
    return not any("quercus" in message.text for message in messages)


def is_told(item: Item, commands: Mapping[str, str], told: str) -> bool:
    """Return whether a prompt contains an item that the history lacks: its text, or its command
    with the result. Codex puts its own lines around an output. `commands`: the commands by the id
    of their call. `told`: the text of the prompts."""
    kind, call, text = item
    if text and text in told:
        return True
    wrapped = re.search(r"Process exited with code (\d+) .*?Output:(.*)", text)
    if kind != "result" or not wrapped:
        return False
    command, output = commands.get(call, ""), wrapped[2].strip() or "(it said nothing)"
    ended = "it succeeded" if wrapped[1] == "0" else "it failed"
    return bool(command) and f"{command}'`; {ended}" in told and output in told


def _made_up(item: Item) -> bool:
    """Return whether the CLI made this result up for a call that never got one. Such a result is no
    loss."""
    return item[0] == "result" and (
        "interrupted" in item[2] or "aborted" in item[2] or "outcome is unknown" in item[2]
    )


ALL = "it has all that perdure knows"
LATER = "(later)"
"""Used in place of the damage for all attempts after the first one that followed it."""
GONE = ("transcript lost", "home lost")
CHANGED = ("truncated", "flipped", "foreign")
STRANGERS = ("stranger", "foreign", "compacted", LATER)
"""Kinds of damage after which the conversation has a prompt of another program."""

NOT_FOUND = "no transcript of it was found"
ANOTHER = "another conversation was found"
SENTENCES: dict[str, tuple[tuple[str, ...], str]] = {
    "transcript was missing": ((*GONE, LATER), "the transcript was there"),
    NOT_FOUND: ((*GONE, LATER), "a transcript with the task was there"),
    "transcript is gone": ((*GONE, LATER), "the transcript was there"),
    "not what perdure had recorded": ((*CHANGED, *STRANGERS), "nobody changed it"),
    "changed between the attempts": ((*CHANGED, *GONE, *STRANGERS), "nobody changed it"),
    ANOTHER: (("foreign", LATER), "no other conversation was put there"),
    "foreign prompt(s) were added": (STRANGERS, "nobody else was there"),
    "foreign prompt(s) came into": (STRANGERS, "nobody else was there"),
    "a summary by the agent": (("compacted", LATER), "nobody compacted it"),
    "the conversation was rewound": (("stranger", "compacted", LATER), "nobody rewound it"),
}
"""Sentences of receipts. Each has the kinds of damage after which it is true, and the reason why it
is false after others."""


def untrue(said: str, harm: str, asked: int, *, unwritten: bool = False) -> list[str]:
    """Return the reasons why sentences are false, in a receipt and in the explanation of its
    attempt's start. `asked`: number of requests that the model got before, in this conversation.
    `unwritten`: no transcript with the task existed when the attempt began."""
    found = [
        f"{truth} ({sentence!r})"
        for sentence, (harms, truth) in SENTENCES.items()
        if sentence in said
        and harm not in harms
        and not (unwritten and sentence == NOT_FOUND)
        # If the transcript has nothing of the task, another program's prompt in it really is
        # another conversation.
        and not (unwritten and harm in STRANGERS and sentence == ANOTHER)
    ]
    if "no turn of it reached the agent" in said:
        found.append("nobody knows whether the model was asked")
    # The model gets a second request only after its first reply, so the agent had answered by then.
    if asked > 1 and any(each in said for each in ("never started", "no agent answered")):
        found.append(f"the model had been asked {asked} times")
    other = "another conversation" in said
    if harm == "foreign" and "not what perdure had recorded" in said and not other:
        found.append("it was another conversation")
    if harm == "stranger" and "while the attempt ran" in said:
        found.append("the stranger came after the attempt")
    return found


def told_of_loss(stage: Stage) -> bool:
    """Return whether the workdir was lost and the prompts correctly say what was restored. Then
    missing files are no fault.

    If there was a checkpoint, perdure must have restored one.
    """
    saved = stage.directory / "saved"
    prompts = " ".join(path.read_text() for path in stage.state.glob("runs/*/*/prompt.md"))
    if not saved.exists() or "The working directory was gone" not in " ".join(prompts.split()):
        return False
    return ("nothing had been saved" in prompts) == (saved.read_text() == "0")


def record(stage: Stage) -> str:
    """Return the model server's record as lines of JSON, to examine a failed trial."""
    return "\n".join(
        json.dumps([message.role + ": " + message.text for message in each.messages])
        for each in stage.rehearsal.requests
    )
