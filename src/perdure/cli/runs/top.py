"""`top`: shows all runs in this terminal. It reads with a read-only connection. A connection that
can write is opened only for an action such as retry or an answer."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from perdure import store as stores
from perdure.cli.compose import DATABASE, open_engine, open_to_read, probe, settings
from perdure.errors import UsageError
from perdure.host.extras import install_command
from perdure.model import RunState
from perdure.model.requests import AnswerKind, RequestState

if TYPE_CHECKING:
    from perdure.config import Settings
    from perdure.engine.attempt import Engine


def top_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Keys: Space peeks, Enter attaches to the log, i answers the agent, r retries, s stops, "
        "d shows the diff, u replies, n starts a new run, / filters, ? lists all, q leaves."
    )


def top_verb(arguments: argparse.Namespace) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        raise UsageError(
            "perdure top needs a terminal",
            "perdure ls shows the same in lines, perdure ls --json for programs",
        )
    try:
        from perdure.cli.top.app import Board
    except ModuleNotFoundError as error:
        raise UsageError(
            f"perdure top needs {(error.name or 'textual').partition('.')[0]}, which is not "
            "installed",
            install_command("top"),
        ) from error
    chosen = settings()
    if not chosen.database and not (chosen.state / DATABASE).exists():
        # Create the database if there is none. A read-only connection to a missing database would
        # stay empty and never show the first run.
        stores.open(chosen.state / DATABASE).close()
    with closing(open_to_read(chosen)) as store:
        acts = _Acts(chosen)
        board = Board(
            store, probe(chosen), acts.retry, acts.stop, answer=acts.answer, verb=acts.verb
        )
        board.run()
        acts.close()
    return 0


class _Acts:
    """The actions of the board. Each method does the same as the verb of its name."""

    def __init__(self, chosen: Settings) -> None:
        self._chosen = chosen
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            self._engine = open_engine(self._chosen)
        return self._engine

    def retry(self, run_id: str) -> str:
        from perdure.cli.runs.run import detach
        from perdure.engine import service

        run = service.retry(self.engine, run_id)
        if run.state is RunState.QUEUED:
            detach(self._chosen, run)
            return f"{run.name} continues"
        return f"{run.name} is {run.state}"

    def stop(self, run_id: str) -> str:
        from perdure.engine import service

        run = service.stop(self.engine, run_id)
        if run.state is RunState.RUNNING:
            return f"{run.name} is stopping"
        return f"{run.name} is {run.state}; perdure retry {run.name} continues where it stopped"

    def answer(self, run_id: str, number: int, verdict: AnswerKind, words: str) -> str:
        from perdure.cli.runs.run import detach
        from perdure.engine import service

        run, _ = service.answer(self.engine, run_id, number, verdict, words)
        if any(each.state is RequestState.OPEN for each in self.engine.store.requests(run.id)):
            return f"answered; {run.name} has another open request"
        if self.engine.host.elsewhere(run):
            return f"answered; {run.name} continues on {run.host_name}"
        detach(self._chosen, run)
        return f"answered; {run.name} continues"

    def verb(self, words: list[str]) -> int:
        """Run a verb as the command line does. Its errors are printed, not raised. Return the exit
        code."""
        from perdure.cli.main import main

        try:
            return main(words)
        except SystemExit as end:
            if isinstance(end.code, int):
                return end.code
            return 1

    def close(self) -> None:
        if self._engine is not None:
            self._engine.store.close()
