"""Pages of the documentation, typed into a terminal of 80 by 24. Each command is typed as it is
printed. The screen that a reader then sees is recorded, and everything in it that differs from run
to run is replaced.

`WRITE_SCREENS=1 pytest ...` writes the screens again; look at the difference before it is
committed. A replacement has as many characters as the original, so that the layout stays.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from perdure.agents.rehearsal import Rehearsal
from perdure.cli.style import width_of
from tests.journeys.stage import Stage
from tests.journeys.terminal import Terminal

SCREENS = Path(__file__).parent / "screens"
BLOCK = re.compile(r"(?:<!-- wait: (?P<wait>\S+) -->\n)?```sh\n(?P<text>.*?)```", re.DOTALL)
VARYING = (
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), lambda m: "i" * len(m[0])),
    (re.compile(r"(?<=/work/)([a-z0-9-]+-)[a-z2-7]{6}\b"), lambda m: m[1] + "w" * 6),
    (re.compile(r"(?<=claude, )[0-9a-f]{8}"), lambda m: "i" * len(m[0])),
    (re.compile(r"\b[0-9a-f]{12}\b"), lambda m: "c" * len(m[0])),
    (re.compile(r"^[0-9a-f]{7}(?= \S)", re.MULTILINE), lambda m: "c" * len(m[0])),
    (re.compile(r"(?<=index )[0-9a-f]{7}\.\.[0-9a-f]{7}"), lambda m: "ccccccc..ccccccc"),
    (re.compile(r"(?<=run:)[0-9a-f]{32}"), lambda m: "r" * len(m[0])),
    (re.compile(r"(?<=account )[0-9a-f]{8}"), lambda m: "a" * len(m[0])),
    (re.compile(r"(?<=trash restore )[a-z2-7]{26}-\d+"), lambda m: "t" * len(m[0])),
    (re.compile(r"^[a-z2-7]{8}(?=  workdir)", re.MULTILINE), lambda m: "t" * len(m[0])),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), lambda m: "YYYY-MM-DD hh:mm:ss"),
    # A slow machine takes several checkpoints of one attempt.
    (re.compile(r"(?<=checkpoint )\d+"), lambda m: "N"),
    (re.compile(r"\s*\(\d+ more of this\s+attempt\)"), lambda m: ""),
    # Lines break at another place if the number has more digits.
    (
        re.compile(
            r"first\s+\d+\s+bytes\s+of\s+the\s+transcript\s+are\s+unchanged,\s+it\s+grew\s+to\s+\d+"
            r"(;\s+this\s+attempt's\s+prompt\s+is\s+in\s+the\s+new\s+part)?"
        ),
        lambda m: "first N bytes of the transcript are unchanged, ...",
    ),
    (re.compile(r"\b(\d+[sm]) {2,4}(?=≈?\$)"), lambda m: "Ns   "),
    (re.compile(r"· (\d+m)?\d+s ·"), lambda m: "· Ns ·"),
    (re.compile(r"\(\d+ s old\)"), lambda m: "(N s old)"),
    (re.compile(r"\b\d+\.\d+ ?s\b"), lambda m: "N.N s"),
)


def commands(page: str) -> Iterator[tuple[str, str]]:
    """Yield each command of the page as it is printed, with the text to wait for before the command
    is typed."""
    for block in BLOCK.finditer(page):
        wait, command, until = block["wait"] or "", "", ""
        for line in block["text"].splitlines():
            command += f"{line}\n"
            if heredoc := re.search(r"<<'(\w+)'", line):
                until = heredoc[1]
            if line.endswith("\\") or (until and line != until):
                continue
            yield wait, command
            wait, command, until = "", "", ""


class Reader:
    """A person at a terminal of 80 by 24, and the screens that were seen."""

    def __init__(self, stage: Stage, directory: Path) -> None:
        binaries = stage.directory / "bin"
        binaries.mkdir()
        (binaries / "perdure").write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m perdure "$@"\n'
        )
        (binaries / "perdure").chmod(0o755)
        self.stage, self.turns, self._before = stage, stage.directory / "turns", ""
        path = f"{binaries}:{stage.environ['PATH']}"
        self.terminal = Terminal(stage, 80, PATH=path, TURNS=str(self.turns), PAGER="cat")
        self.screens = list[str]()
        self._paste(f"cd {shlex.quote(str(directory))}; PS1='$ '; PS2='> '")
        self._paste("PROMPT_COMMAND='echo $? $((++typed)) > $TURNS'")
        stage.until(self._turn, "the shell is ready")

    def type(self, command: str) -> str:
        """Type a command on an empty screen, and return its output."""
        self.begin(command)
        text = self.end()
        lines = f"$ {command}".splitlines()
        echoed = sum(max(1, -(-width_of(line) // 80)) for line in lines)
        return text.split("\n", echoed)[-1]

    def begin(self, command: str) -> None:
        """Type a command on an empty screen, and do not wait for its end."""
        self._before = self._turn()
        self._paste("clear")
        self._until_prompt()
        self.terminal.tmux("clear-history")
        self._before = self._turn()
        self._paste(command)

    def end(self) -> str:
        """Wait until the shell's prompt is back. Return the screen and the lines that have scrolled
        off."""
        text = self._until_prompt()
        assert all(width_of(line) <= 80 for line in text.split("\n"))
        # Age and cost of a running run depend on the moment, so they are not compared.
        if " ● running " not in text:
            self.screens.append(plain(text.replace(str(self.stage.home), "/home/ada")))
        return text

    @property
    def code(self) -> int:
        """Return the exit code of the last command."""
        return int(self._turn().split()[0])

    def _paste(self, text: str) -> None:
        """Paste the text as a person does, and press Enter."""
        words = ["tmux", "-S", self.terminal.socket, "load-buffer", "-"]
        subprocess.run(words, input=text.removesuffix("\n"), text=True, check=True)
        self.terminal.tmux("paste-buffer", "-p")
        self.terminal.type("Enter")

    def _turn(self) -> str:
        return self.turns.read_text().strip() if self.turns.exists() else ""

    def _until_prompt(self) -> str:
        self.stage.until(lambda: self._turn() not in ("", self._before), "the command ends")
        return str(self.stage.until(self._above_prompt, "the prompt"))

    def _above_prompt(self) -> str:
        """Return everything above the prompt with a line break, or an empty string while there is
        no prompt."""
        text = self.terminal.tmux("capture-pane", "-p", "-S", "-").rstrip()
        above, _, last = text.rpartition("\n")
        return f"{above}\n" if last == "$" else ""

    def close(self) -> None:
        self.terminal.tmux("kill-server")

    def compare(self, golden: str) -> None:
        """Compare all screens with those in the file. A difference is shown so that a person can
        read it."""
        file = SCREENS / golden
        found = "\n".join(self.screens)
        print(found)
        if os.environ.get("WRITE_SCREENS"):
            file.write_text(found, encoding="utf-8")
        assert found == file.read_text(encoding="utf-8")


def machine(script: str) -> Iterator[Stage]:
    """Make a machine whose user has set a name in git."""
    directory = Path(tempfile.mkdtemp(prefix="pq"))
    with Rehearsal(script) as rehearsal:
        made = Stage(directory, "claude", rehearsal)
        (made.home / ".gitconfig").write_text("[user]\nname = Ada\nemail = ada@example.invalid\n")
        yield made
        made.close()
    shutil.rmtree(directory, ignore_errors=True)


def plain(screen: str) -> str:
    """Return the screen with everything replaced that differs from run to run."""
    for pattern, replacement in VARYING:
        screen = pattern.sub(replacement, screen)
    return screen
