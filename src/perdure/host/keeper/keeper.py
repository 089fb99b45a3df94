"""Main loop of the keeper. It handles messages from the owner, output of the agent, limits, and the
end of the agent."""

from __future__ import annotations

import contextlib
import os
import select
import signal

from perdure.host import shim
from perdure.host.keeper.agent import KeptAgent, KeptTurn, ticks
from perdure.host.system import boottime
from perdure.host.system.sockets import OwnerChannel

LEFT_S = 2.0
"""Time between TERM and KILL, in seconds, for processes that left the agent's process tree during a
turn. Processes that are still in the tree after the turn have the same time to exit by
themselves."""
BUSY_MS = 50
IDLE_MS = 10_000
"""Interval at which the memory of an idle agent is checked, in milliseconds."""
NEVER = float("inf")


class Keeper:
    """Runs one agent, and its current turn if there is one."""

    def __init__(self, control: OwnerChannel, launch: list[bytes], me: str) -> None:
        grace, cap, idle, memory, _, cwd, *argv = launch
        self.grace, self.cap, self.idle, self.most = (
            float(grace),
            int(cap),
            float(idle),
            int(memory),
        )
        self.agent = KeptAgent(cwd, argv)
        self.control, self.me = control, me
        self.turn: KeptTurn | None = None
        self.turns = 0
        self.wrote_between_turns = False
        self.owned = True
        self.stop_asked = False
        self.cause = "exited"
        self.kill_at = NEVER
        self.rested = boottime()
        self.ready = 0
        """Time of the agent's first output, in ticks. Processes that the agent had started by then
        belong to the agent itself, not to its first turn."""

    def run(self, woken: int) -> None:
        """Run until the agent has ended. If it was never started, run until a stop is requested or
        the owner is gone. `woken`: a pipe to which signal handlers write the signal's number."""
        os.set_blocking(self.control.fileno(), False)
        while self.agent.status is None and (
            self.agent.pid or (self.owned and not self.stop_asked)
        ):
            ready = self.wait(woken)
            if woken in ready and signal.SIGTERM in os.read(woken, 4096):
                self.stop_asked = True
            self.drain()
            if self.agent.input in ready:
                self.agent.feed()
            if self.control.fileno() in ready:
                self.read_message()
                while self.control.is_pending():
                    self.read_message()
            if self.agent.pid:
                self.agent.reap()
                self.agent.offspring.note()
            self.enforce_limits()
        self.end()

    def wait(self, woken: int) -> set[int]:
        poll = select.poll()
        for fd in (woken, *self.agent.pipes, self.control.fileno() if self.owned else -1):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        if self.agent.prompt and self.agent.input >= 0:
            poll.register(self.agent.input, select.POLLOUT)
        pause: float = BUSY_MS
        if self.turn is None and self.kill_at == NEVER:
            pause = max(0, min(IDLE_MS, (self.rested + self.idle - boottime()) * 1000)) + 1
        return {fd for fd, _ in poll.poll(pause)}

    # --- output of the agent ---

    def drain(self) -> None:
        """Move the agent's output into the files of the current turn. Between two turns, output is
        dropped. If it came from stdout, `wrote_between_turns` is set, and `enforce_limits` then
        ends the agent."""
        for number in (0, 1):
            while piece := self.agent.read(number):
                if number == 0 and not self.ready:
                    self.ready = ticks()
                if self.turn is not None:
                    self.note(self.turn, number, piece)
                else:
                    self.wrote_between_turns = self.wrote_between_turns or number == 0

    def note(self, turn: KeptTurn, number: int, piece: bytes) -> None:
        """Write a piece of output to the turn's files. Kill the agent if the output exceeds the cap
        or cannot be written."""
        if self.kill_at == 0.0:
            return
        try:
            if turn.write(number, piece, self.cap):
                return
            if self.cause == "exited":
                self.cause = "flooded"
        except OSError as error:
            turn.write_error(f"ended, because its output cannot be kept: {error.strerror}")
        self.kill_at = 0.0

    # --- messages of the owner ---

    def read_message(self) -> None:
        """Read and handle the owner's next message, or the end of the connection to the owner."""
        try:
            message, locks = self.control.receive()
        except BlockingIOError:
            return
        except OSError:
            message, locks = b"", []
        # Received descriptors are inheritable at first, because Python 3.11 passes no flags to
        # recvmsg(2).
        for fd in locks:
            os.set_inheritable(fd, False)
        word, *rest = message.split(b"\0")
        if word == b"turn":
            self.begin_turn(KeptTurn(rest[0], float(rest[1]), locks))
        elif word == b"rest" and self.turn is not None:
            self.finish_turn(self.turn)
        elif word in (b"end", b""):
            self.owned = word != b""
            self.close_agent()

    def answer(self, words: str) -> None:
        with contextlib.suppress(OSError):
            self.control.send(words.encode())

    def close_agent(self) -> None:
        """Close the agent's input, so that the agent exits after its turn. If no turn is running,
        the agent is killed after the grace."""
        self.agent.close_input()
        if self.turn is None:
            self.kill_at = min(self.kill_at, boottime() + self.grace)

    def begin_turn(self, turn: KeptTurn) -> None:
        """Begin a turn if the agent can take one. Otherwise answer `gone` and end the agent."""
        self.drain()
        if self.agent.pid:
            self.agent.reap()
        if (
            self.turn is not None
            or self.wrote_between_turns
            or self.stop_asked
            or (self.turns and not self.agent.listens())
        ):
            turn.close()
            self.answer("gone")
            self.close_agent()
            return
        self.turn, self.turns = turn, self.turns + 1
        try:
            self.agent.prompt = turn.open(self.me)
            self.start(turn)
        except OSError as error:  # without these files no supervisor could follow the turn
            turn.write_error(f"ended, because the attempt cannot be recorded: {error.strerror}")
            self.kill_at = 0.0
        self.answer("taken")

    def start(self, turn: KeptTurn) -> None:
        """Start the agent if this is its first turn. If the program cannot be started, set exit
        code 126 or 127, as a shell does."""
        if not self.agent.pid:
            try:
                self.agent.start()
            except OSError as error:
                at_cwd = error.filename == self.agent.cwd
                if at_cwd:
                    at = b"enter " + self.agent.cwd
                else:
                    at = b"start " + self.agent.argv[0]
                turn.write_error(f"cannot {os.fsdecode(at)}: {error.strerror}")
                self.agent.status = (127 if error.errno == 2 and not at_cwd else 126) << 8
                return
        turn.name_agent(self.agent.pid)

    def finish_turn(self, turn: KeptTurn) -> None:
        """End a turn after the owner has seen that the agent finished it. First, end the processes
        that the turn left behind. If some remain, the agent is not kept for another turn."""
        late = boottime() + LEFT_S
        asked: set[int] = set()
        left: list[dict[str, object]] = []
        beyond = 0
        """Number of processes in addition to those in `left`, which are not described."""
        if self.turns > 1:
            since = turn.began
        else:
            since = max(turn.began, self.ready)
        while True:
            self.drain()
            self.agent.reap()
            orphans, young = self.agent.left_behind(since)
            now = boottime()
            if (
                not self.agent.listens()
                or self.kill_at != NEVER
                or not (orphans or young)
                or now >= late + (0 if young else LEFT_S)
            ):
                break
            new = [pid for pid in orphans if pid not in asked]
            left += shim.describe(new)
            beyond += max(0, len(new) - shim.LEFT_CAP)
            for pid in orphans:
                if now >= late or pid not in asked:
                    shim.send(pid, signal.SIGKILL if now >= late else signal.SIGTERM)
                asked.add(pid)
            select.select([], [], [], 0.01)
        used = self.agent.memory()
        if not self.agent.listens() or self.kill_at != NEVER or turn.torn:
            self.refuse_next_turn("it did not become idle")
        elif orphans or young:
            self.refuse_next_turn("something that it started in its turn still runs")
        elif self.most and used > self.most:
            self.refuse_next_turn(f"it uses {used >> 20} MB of memory")
        else:
            self.turn, self.rested = None, boottime()
            told = (left[: shim.LEFT_CAP], len(left) + beyond)
            turn.conclude(None, None, "turn", len(asked), told)
            self.answer(f"resting {used}")

    def refuse_next_turn(self, why: str) -> None:
        self.answer(f"ending {why}")
        self.close_agent()

    # --- limits and ends ---

    def enforce_limits(self) -> None:
        """Enforce stop requests and the limits: deadline, lease, idle time and memory. The agent is
        first asked to end, then killed."""
        now, turn = boottime(), self.turn
        if self.cause == "exited" and (
            self.stop_asked or (turn is not None and now >= turn.deadline)
        ):
            if not self.stop_asked:
                self.cause = "deadline"
            elif turn is not None:
                self.cause = turn.stop_cause()
            else:
                self.cause = "stopped"
            self.agent.signal(signal.SIGTERM)
            if self.cause == shim.OVER:
                grace = min(self.grace, shim.OVER_GRACE_S)
            else:
                grace = self.grace
            self.kill_at = min(self.kill_at, now + grace)
        if turn is not None and self.cause != "lapsed" and now >= (lease := turn.lease(now))[0]:
            # When the lease has expired, another host may take over the task. So no process of the
            # task may still run here.
            self.agent.signal(signal.SIGTERM)
            self.cause, turn.deadline, self.kill_at = "lapsed", NEVER, min(self.kill_at, lease[1])
        if turn is None and self.turns and self.agent.input >= 0:
            too_much = self.most and self.agent.memory() > self.most
            if (
                self.wrote_between_turns
                or too_much
                or not self.owned
                or now - self.rested >= self.idle
            ):
                self.close_agent()
        if now >= self.kill_at:
            self.agent.signal(signal.SIGKILL)

    def end(self) -> None:
        """Clean up after the agent has ended. End the processes that it left behind, and write
        `exit.json` of the current attempt, if there is one."""
        status = self.agent.status
        if status is None:
            return
        code = os.waitstatus_to_exitcode(status)
        grace = shim.orphan_grace(self.cause, code, self.grace)
        left: tuple[list[dict[str, object]], int] = ([], 0)
        if self.turn is not None and self.agent.pid and self.cause == "exited":
            left = shim.outlived(0.0, self.agent.offspring)
        if self.agent.pid:
            killed = shim.sweep(grace, self.agent.offspring)
        else:
            killed = 0
        self.drain()
        if self.turn is not None:
            self.turn.conclude(
                code if code >= 0 else None, -code if code < 0 else None, self.cause, killed, left
            )
