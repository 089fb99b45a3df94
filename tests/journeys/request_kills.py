"""Whether a person's answer has its effect exactly once while everything is killed. The kills are
random, between question, answer and call. The agents are Claude Code, Codex, OpenCode, and Codex
and OpenCode over ACP. `make request-kills N=100`.

One trial: a task of three calls, each of which must be allowed. A server on the loopback counts
them. The person allows the first and the third, and refuses the second. At a random moment of each
command (after a request to the model, when an approval was used, or any time) something is killed
with SIGKILL: the agent, its shim, the supervisor, both, or everything. Then another supervisor
takes the run over (`perdure work`), and the person answers the open requests.

The model repeats a call only if it is not known to have run: after an interruption it reads the
server's count. The campaign fails if the server counted a call that was not allowed, or counted a
call more often than it was allowed, or more than once. It also fails if a run did not succeed, if a
request stayed open, or if the reason of the refused call never reached the model.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.agents.rehearsal import PlannedReply, Rehearsal, parse
from tests.journeys.kills import VICTIMS, strike
from tests.journeys.stage import Stage
from tests.journeys.test_endings import acp_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perdure.agents.rehearsal.conversation import ScriptedConversation

AGENTS = ("claude", "codex", "opencode", "acp-codex", "acp-opencode")
MOMENTS = ("start", "request", "used")
REFUSED = 1
"""The index of the call that the person refuses."""
WHY = "not this one, thank you"
STEPS = 3
KILLS = 5
"""Maximum number of kills in one trial."""
LATEST_S = 1.0
LONGEST_S = 900.0
"""Time limit of one trial, in seconds. A run that was lost several times waits before its next
attempt."""


COUNTER = """
import json, sys, urllib.request
TOOL = {
    "name": "hit",
    "description": "Count.",
    "inputSchema": {"type": "object", "properties": {"url": {"type": "string"}}},
}
for line in sys.stdin:
    asked = json.loads(line)
    result = {}
    if asked["method"] == "initialize":
        result = {
            "protocolVersion": asked["params"]["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "count", "version": "1"},
        }
    if asked["method"] == "tools/list":
        result = {"tools": [TOOL]}
    if asked["method"] == "tools/call":
        with urllib.request.urlopen(asked["params"]["arguments"]["url"]) as answer:
            result = {"content": [{"type": "text", "text": answer.read().decode()}]}
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""
"""An MCP server whose tool needs a permission in Claude Code. (perdure lets it run shell commands
without asking.)"""


class Target:
    """The tool's target: counts the calls of each step."""

    def __init__(self) -> None:
        self.hits: Counter[int] = Counter()
        self.port = 0

    def url(self, step: int) -> str:
        return f"http://127.0.0.1:{self.port}/step-{step}"

    @contextmanager
    def serving(self) -> Iterator[None]:
        hits = self.hits

        class Counting(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hits[int(self.path.rpartition("-")[2])] += 1
                with suppress(OSError):  # the caller may be dead; its call counts anyway
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(b"counted\n")

            def log_message(self, format: str, *args: Any) -> None:
                """Print nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Counting)
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()


class CarefulModel:
    """A `ReplySource` that makes the calls one after the other. It ends its turn when a call is
    denied or waits for a person."""

    def __init__(self, target: Target, agent: str) -> None:
        self.target, self.agent = target, agent

    def summary(self, conversation: ScriptedConversation) -> str:
        return ""

    def next(self, conversation: ScriptedConversation) -> PlannedReply:
        if conversation.side:
            return self._cue("say A task.")
        if conversation.waiting:
            return PlannedReply((), script=0, reply=0, waits=conversation.waiting)
        texts = [message.text for message in conversation.messages]
        refused = any(WHY in text for text in texts)
        for step in range(STEPS):
            if self.target.hits[step] == 0 and not (step == REFUSED and refused):
                return self._step(conversation, step)
        return self._cue("say All of it is done.")

    def _step(self, conversation: ScriptedConversation, step: int) -> PlannedReply:
        url = self.target.url(step)
        messages = list(conversation.messages)
        users = [at for at, message in enumerate(messages) if message.role == "user"]
        since = messages[users[-1] :] if users else messages
        calls = {each.call for each in since if each.role == "tool_call" and url in each.text}
        waits = any("asked when your turn ends" in each.text for each in since)
        # A result may tell Claude Code to repeat a denied call once.
        if len(calls) > (1 if self.agent == "claude" else 0) or waits:
            return self._cue("say I cannot go on without this call.")
        if self.agent == "claude":
            return self._cue(f"call mcp__count__hit {json.dumps({'url': url})}")
        if self.agent.endswith("opencode"):
            # OpenCode's commands need a permission only in a directory outside of the workdir.
            given = {"command": f"curl -sS {url}", "description": "count", "workdir": "/var/tmp"}
            return self._cue(f"call bash {json.dumps(given)}")
        given = {"cmd": f"curl -sS {url}"}
        allowed = "allowed this call" in since[0].text and url in since[0].text
        # Over ACP a person is asked only about a call that asks to run without the sandbox.
        if allowed or self.agent == "acp-codex":
            given |= {"sandbox_permissions": "require_escalated", "justification": "allowed"}
        return self._cue(f"call exec_command {json.dumps(given)}")

    def _cue(self, text: str) -> PlannedReply:
        return PlannedReply(parse(f"{text}\n")[0].replies[0].actions, script=0, reply=0)


@dataclass
class Trial:
    """The result of one trial. `wrong` is empty if all promises held."""

    seed: int
    agent: str
    kills: list[str] = field(default_factory=list)
    """Each victim, with the command and the moment."""
    requests: int = 0
    allowed: int = 0
    used: int = 0
    lost: int = 0
    """Number of approvals that were used by a process that was killed before the call ran."""
    attempts: int = 0
    wrong: list[str] = field(default_factory=list)


def trial(seed: int, agent: str) -> Trial:
    """Make one trial in its own scratch directory, and return its result."""
    dice, result, target = random.Random(seed), Trial(seed, agent), Target()
    directory = Path(tempfile.mkdtemp(prefix="pr"))
    with target.serving(), Rehearsal(CarefulModel(target, agent)) as rehearsal:
        extra = {"PERDURE_ACP_CODEX": acp_command()} if agent == "acp-codex" else {}
        stage = Stage(directory, agent.removeprefix("acp-"), rehearsal, extra=extra)
        try:
            _play(stage, result, dice)
            _judge(stage, result, target)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            result.wrong.append(f"{type(error).__name__}: {error}"[:600])
        finally:
            stage.close()
    if not result.wrong:
        shutil.rmtree(directory, ignore_errors=True)
    return result


def _play(stage: Stage, result: Trial, dice: random.Random) -> None:
    begin = ["run", "--name", "task", "--agent", result.agent, "--attempts", "40"]
    if stage.agent == "claude":
        counter, servers = stage.directory / "counter.py", stage.directory / "servers.json"
        counter.write_text(COUNTER)
        command = {"command": sys.executable, "args": [str(counter)]}
        servers.write_text(json.dumps({"mcpServers": {"count": command}}))
        begin.append(f"--agent-arg=--mcp-config={servers}")
    begin.append("Do all of it.")
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end:
        words = _next(stage, tuple(begin))
        if not words:
            return
        moment, requests = dice.choice(MOMENTS), len(stage.rehearsal.requests)
        wanted, used = requests + dice.randint(1, 3), len(_used(stage))
        started = stage.start(*words)
        if len(result.kills) < KILLS:
            victim, after_s = dice.choice(VICTIMS), dice.uniform(0.0, LATEST_S)

            def due(
                started: subprocess.Popen[str] = started,
                moment: str = moment,
                wanted: int = wanted,
                used: int = used,
            ) -> bool:
                if moment == "request":
                    come = len(stage.rehearsal.requests) >= wanted
                else:
                    come = moment == "start" or len(_used(stage)) > used
                return come or started.poll() is not None

            stage.until(due, "the moment of the kill")
            time.sleep(after_s if moment != "used" else after_s / 4)
            if started.poll() is None:
                strike(stage, victim, started)
                result.kills.append(f"{victim} ({words[0]}, {moment})")
        stage.finish(started)
    result.wrong.append("it did not end")


def _used(stage: Stage) -> list[Path]:
    return list(stage.state.glob("runs/*/requests/used-*"))


def _next(stage: Stage, begin: tuple[str, ...]) -> tuple[str, ...]:
    """Return the next command, or an empty tuple when the run has succeeded."""
    shown = stage.perdure("show", "task", "--json")
    if shown.code != 0:
        return begin
    if shown.json["state"] == "succeeded":
        return ()
    for each in _requests(stage):
        if each["state"] == "open":
            number = ("--request", str(each["number"]))
            if f"step-{REFUSED}" in each["payload"]:
                return ("deny", "task", *number, "--why", WHY)
            return ("approve", "task", *number)
    if shown.json["state"] in ("failed", "cancelled"):
        return ("retry", "task")
    return ("work", "--once")


def _requests(stage: Stage) -> list[dict[str, Any]]:
    done = stage.perdure("requests", "task", "--json")
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)
    return found


def _judge(stage: Stage, result: Trial, target: Target) -> None:
    requests = _requests(stage)
    used = {int(path.name.rpartition("-")[2]) for path in _used(stage)}
    result.requests, result.used = len(requests), len(used)
    allowed = [each for each in requests if each["answer"] == "allow"]
    result.allowed, result.attempts = len(allowed), len(stage.show()["attempts"])
    result.lost = len(used) - sum(target.hits.values())
    for step in range(STEPS):
        of_step = [each for each in allowed if f"step-{step}" in each["payload"]]
        hits, wanted = target.hits[step], 0 if step == REFUSED else 1
        spent = sum(each["number"] in used for each in of_step)
        if hits != wanted or hits > spent:
            result.wrong.append(f"step {step} ran {hits} times; {spent} approvals were used")
    if any(each["state"] == "open" for each in requests):
        result.wrong.append("a request stayed open")
    if result.lost > len(result.kills):
        result.wrong.append(f"{result.lost} approvals were used and nothing ran")
    if left := stage.marked():
        result.wrong.append(f"orphans: {left}")


def campaign(
    number: int, agents: tuple[str, ...], seed: int, jobs: int, record: Path | None = None
) -> list[Trial]:
    """Make trials until there were this many kills, spread over the agents, or until Ctrl-C. If
    there is a record, each trial is a line of JSON in that file, and an interrupted campaign
    continues after its last line."""
    done: list[Trial] = []
    if record is not None and record.exists():
        done = [Trial(**json.loads(line)) for line in record.read_text().splitlines()]
    with suppress(KeyboardInterrupt), ThreadPoolExecutor(jobs) as pool:
        while sum(len(t.kills) for t in done) < number:
            numbers = range(len(done), len(done) + 2 * jobs)
            for result in pool.map(lambda n: trial(seed + n, agents[n % len(agents)]), numbers):
                done.append(result)
                if record is not None:
                    with record.open("a") as file:
                        file.write(json.dumps(asdict(result)) + "\n")
                print("F" if result.wrong else ".", end="", file=sys.stderr, flush=True)
    return done


def table(trials: list[Trial]) -> str:
    """Return the sums, and every failed trial with its seed."""
    lines = [
        f"{'':14}{'runs':>6}{'kills':>7}{'attempts':>10}{'requests':>10}{'allowed':>9}{'lost':>6}"
        f"{'wrong':>7}"
    ]
    for agent in sorted({t.agent for t in trials}):
        mine = [t for t in trials if t.agent == agent]
        counts = [sum(getattr(t, name) for t in mine) for name in ("attempts", "requests")]
        more = [sum(getattr(t, name) for t in mine) for name in ("allowed", "lost")]
        kills, wrong = sum(len(t.kills) for t in mine), sum(bool(t.wrong) for t in mine)
        lines.append(
            f"{agent:14}{len(mine):>6}{kills:>7}{counts[0]:>10}{counts[1]:>10}{more[0]:>9}"
            f"{more[1]:>6}{wrong:>7}"
        )
    lines.append(f"{sum(len(t.kills) for t in trials)} kills")
    for t in trials:
        lines += [f"seed {t.seed} ({t.agent}; {', '.join(t.kills)}): {wrong}" for wrong in t.wrong]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="request_kills", description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=100)
    parser.add_argument("--agent", action="append", choices=AGENTS)
    parser.add_argument("--seed", type=int, default=20_261_123)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--record", type=Path, help="keep every trial in this file, go on from it")
    given = parser.parse_args()
    agents = tuple(given.agent or AGENTS)
    trials = campaign(given.number, agents, given.seed, given.jobs, given.record)
    print(table(trials))
    return 1 if any(t.wrong for t in trials) else 0


if __name__ == "__main__":
    raise SystemExit(main())
