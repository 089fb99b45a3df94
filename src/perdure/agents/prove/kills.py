"""The scenes in which the agent is killed, stopped, started twice, or given other flags than
before. The other scenes are in `scenes`, which also describes what a scene is."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec.structs import replace

from perdure.agents.prove.rows import RowFinding
from perdure.agents.prove.scenes import (
    AGAIN,
    ANSWERED,
    ASKED,
    TWO,
    Failed,
    ProveScene,
    continuation_finding,
    first_turn,
)
from perdure.agents.prove.stage import (
    MODELS,
    PATIENCE_S,
    SETTLE_S,
    Stage,
    StageExit,
    StageRun,
    describe_end,
    resume,
)
from perdure.model import OutcomeKind

INTERRUPTED = re.compile(
    r"interrupt|abort|cancel|killed|exit(ed with)? code:? 1(37|43)", re.IGNORECASE
)

NOTHING = "hang\n---\nsay Now the whole."
HALF = "say The first half of\nhang\n---\nsay Now the whole.\n---\nsay And more."
LATER = f"say {ANSWERED}\n---\n{HALF}"
TOOL = "run echo begun > begun.txt; sleep 120; echo done > done.txt\n---\nsay Now it is done."
FLAGS = """match third
run echo three > three.txt
---
say Tried three.
===
match second
run echo two > two.txt
---
say Tried two.
===
run echo one > one.txt
---
say Tried one."""


def first_reply(stage: Stage) -> Iterator[RowFinding]:
    with stage.begun(ASKED) as begun:
        begun.asked_model()
        yield known_before(stage, begun)
        killed = kill(stage, begun, ASKED)
    yield continuation_finding(
        "kill-in-first-reply", killed, stage.run(AGAIN, resume(killed.session_id)), ASKED, AGAIN
    )


def known_before(stage: Stage, begun: StageRun) -> RowFinding:
    """Return the answer to the row `id-before-answer`: whether the conversation's id is known
    before the model has answered, and how it became known."""
    row = "id-before-answer"
    if begun.launch.continuation.session_id:
        return RowFinding(row, True, "chosen by the caller")
    if not stage.until(lambda: bool(begun.session_id()), SETTLE_S):
        return RowFinding(row, False, "reported only with the answer")
    told = bool(begun.session_id(told_only=True))
    return RowFinding(
        row, True, "reported at once" if told else "not reported; found by the attempt's mark"
    )


def kill(stage: Stage, begun: StageRun, prompt: str) -> StageExit:
    """Kill the program as soon as its prompt is in the transcript, at the latest after SETTLE_S.
    Return the result of the killed run. Raise Failed if the id of its conversation is not known.
    """
    asked = begun.launch.continuation.session_id
    stage.until(lambda: prompt in stage.prompts(asked or begun.session_id()), SETTLE_S)
    begun.kill()
    return conversation(begun.end())


def conversation(ran: StageExit) -> StageExit:
    """Return the result of a killed run, with the id of its conversation: the id that was found,
    else the id that the program was told to use. Raise Failed if neither is known."""
    if not (ran.session_id or ran.asked):
        raise Failed("no id is known after the kill", ran.outcome.detail)
    return replace(ran, session_id=ran.session_id or ran.asked)


def later_reply(stage: Stage) -> Iterator[RowFinding]:
    first = first_turn(stage)
    with stage.begun("and another", resume(first.session_id)) as begun:
        begun.asked_model()
        kill(stage, begun, "and another")
    third = stage.run(AGAIN, resume(first.session_id))
    yield continuation_finding("kill-in-reply", first, third, ASKED, ANSWERED, "and another", AGAIN)


def tool(stage: Stage) -> Iterator[RowFinding]:
    with stage.begun(ASKED, permissions="edit") as begun:
        begun.asked_model()
        if not stage.until(lambda: (stage.work / "begun.txt").exists(), PATIENCE_S):
            raise Failed("the command was not run")
        session = begun.launch.continuation.session_id or begun.session_id()
        stage.until(lambda: b"begun.txt" in (stage.history(session) or b""), SETTLE_S)
        stage.until(lambda: ASKED in stage.prompts(session), SETTLE_S)
        lived = begun.leaves_processes()
        killed = conversation(begun.end())
    ran = stage.run(AGAIN, resume(killed.session_id))
    yield continuation_finding("kill-in-tool", killed, ran, ASKED, AGAIN)
    yield the_call(ran)
    yield RowFinding(
        "command-after-kill", not lived, "lives on; perdure ends it" if lived else "ends with it"
    )
    yield RowFinding(
        "nothing-left",
        killed.alive == 0,
        "nothing" if killed.alive == 0 else "processes live on",
        str(killed.alive),
    )


def the_call(ran: StageExit) -> RowFinding:
    """Return the answer to the row `call-after-kill`: how the model is shown a call that was
    running when the agent was killed."""
    row = "call-after-kill"
    messages = ran.requests[-1].messages if ran.requests else ()
    calls: list[str] = []
    results: dict[str, str] = {}
    for message in messages:
        if message.role == "tool_call" and "begun.txt" in message.text:
            calls.append(message.call)
        elif message.role == "tool_result":
            results.setdefault(message.call, message.text)
    if not calls:
        return RowFinding(row, False, "the call is gone")
    result = results.get(calls[0])
    if result is None:
        return RowFinding(row, False, "the call without a result")
    told = bool(INTERRUPTED.search(result))
    return RowFinding(
        row,
        told,
        "the call, as interrupted" if told else "the call with another result",
        result[:300],
    )


def stop(stage: Stage) -> Iterator[RowFinding]:
    with stage.begun(ASKED) as begun:
        begun.asked_model()
        session = begun.launch.continuation.session_id
        stage.until(lambda: ASKED in stage.prompts(session or begun.session_id()), SETTLE_S)
        begun.process.stop()
        ran = begun.end()
    session = ran.session_id or session
    if ran.outcome.signal == 9:
        yield RowFinding("stop-in-reply", False, "must be killed")
        return
    again = stage.run(AGAIN, resume(session)) if session else ran
    whole = again.ok and again.reached(ASKED, AGAIN)
    yield RowFinding(
        "stop-in-reply",
        whole,
        "ends, and continues" if whole else "ends, and the prompt is lost",
        again.outcome.detail,
    )


def second_writer(stage: Stage) -> Iterator[RowFinding]:
    first = first_turn(stage)
    with stage.begun("and another", resume(first.session_id)) as begun:
        begun.asked_model()
        seen = stage.until(
            lambda: begun.process.agent_pid in stage.driver.writers(stage.home, first.session_id),
            SETTLE_S,
        )
        yield RowFinding("writer-seen", seen, "found" if seen else "not found")
        other = stage.run("me too", resume(first.session_id))
    refused = not other.requests and not other.ok
    named = other.outcome.kind is OutcomeKind.WRITER_CONFLICT
    how = "refused" if named else f"{describe_end(other)}, no request"
    yield RowFinding("second-writer", refused, how if refused else "let in", other.outcome.detail)


def model(stage: Stage) -> Iterator[RowFinding]:
    usual, named = MODELS.get(stage.driver.name, ("rehearsal", "some-model"))
    first = stage.run(ASKED, model=usual)
    if not first.ok:
        raise Failed(f"the first turn {describe_end(first)}", first.outcome.detail)
    second = stage.run(AGAIN, resume(first.session_id), model=named)
    asked = _requested_model(second)
    followed = second.ok and named.endswith(asked) and bool(asked)
    if followed:
        words = "followed"
    elif second.ok:
        words = "not followed"
    else:
        words = describe_end(second)
    yield RowFinding("model-on-resume", followed, words, asked)
    third = stage.run("and now?", resume(first.session_id))
    kept = third.ok and named.endswith(_requested_model(third)) and bool(_requested_model(third))
    yield RowFinding("model-kept", kept, "kept" if kept else "forgotten", _requested_model(third))


def _requested_model(ran: StageExit) -> str:
    """Return the name of the model in the last request, from its body or (for Gemini) from its
    path."""
    if not ran.requests:
        return ""
    found = re.search(r"/models/([^/:?]+)", ran.requests[-1].path)
    return ran.requests[-1].model or (found[1] if found else "")


def flags(stage: Stage) -> Iterator[RowFinding]:
    first = stage.run("first", permissions="edit")
    wrote = (stage.work / "one.txt").exists()
    yield RowFinding(
        "edit-allowed",
        wrote,
        "changed" if wrote else f"not changed, {describe_end(first)}",
        first.outcome.detail,
    )
    second = stage.run("second", resume(first.session_id), permissions="")
    kept = (stage.work / "two.txt").exists()
    if second.requests:
        seen = "forgotten"
    else:
        seen = f"cannot be asked: {describe_end(second)}"
    yield RowFinding("permissions-kept", kept, "kept" if kept else seen, second.outcome.detail)
    third = stage.run("third", resume(first.session_id), permissions="read")
    changed = (stage.work / "three.txt").exists()
    yield RowFinding(
        "read-on-resume",
        bool(third.requests) and not changed,
        "CHANGED" if changed else "not changed",
        third.outcome.detail,
    )


SCENES = (
    ProveScene(("id-before-answer", "kill-in-first-reply"), NOTHING, first_reply, quick=True),
    ProveScene(("kill-in-reply",), LATER, later_reply, quick=True),
    ProveScene(
        ("kill-in-tool", "call-after-kill", "command-after-kill", "nothing-left"),
        TOOL,
        tool,
        quick=True,
    ),
    ProveScene(("stop-in-reply",), HALF, stop),
    ProveScene(("second-writer", "writer-seen"), LATER, second_writer),
    ProveScene(("model-on-resume", "model-kept"), TWO, model),
    ProveScene(("edit-allowed", "permissions-kept", "read-on-resume"), FLAGS, flags),
)
