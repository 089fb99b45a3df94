"""Calls that a type checker must refuse: each line with `# wrong`, and no other. The file is read
by `test_types` and never run."""

from __future__ import annotations

import perdure
from perdure.model.events import Said


def watch(record: perdure.Record, more: int) -> None:
    print(record, more)


def calls(runner: perdure.Runner) -> None:
    runner.run("Fix it", reop="/srv/shop")  # wrong
    runner.run("Fix it", attempts="five")  # wrong
    runner.run("Fix it", permissions="everything")  # wrong
    runner.submit("Fix it", files="notes.md", labels=["a"])  # wrong
    runner.spec("Fix it", timeout=None)  # wrong
    runner.update("task", "More", on_edit="overwrite")  # wrong
    runner.retry("task", contniuity="strict")  # wrong
    runner.get(3)  # wrong
    print(runner.get("task").receipt.verdict)  # wrong
    perdure.open(observers=[watch])  # wrong
    perdure.opne()  # wrong


async def awaited(runner: perdure.AsyncRunner) -> None:
    await runner.run("Fix it", agents="claude")  # wrong
    await runner.submit("Fix it", attempts=3, budget="2")  # wrong
    print(runner.get("task").state)  # wrong
    async for record in runner.events("task"):
        if isinstance(record.event, Said):
            print(record.event.words)  # wrong
