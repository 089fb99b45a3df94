"""Watch an agent while it works: print each tool that it calls, then how the attempt ended.

python examples/watch.py REPOSITORY "Fix the failing test"
"""

from __future__ import annotations

import sys

import perdure
from perdure.model.events import AttemptEnded, Said, ToolStarted


def watch(record: perdure.Record) -> None:
    """Print what a person wants to see. It is called in the thread that works: keep it quick."""
    match record.event:
        case ToolStarted(name=name, summary=summary):
            print(f"[{record.attempt}] {name}: {summary}")
        case Said(text=text, aside=False):
            print(f"[{record.attempt}] {text}")
        case AttemptEnded(outcome=outcome, receipt=receipt):
            verdict = receipt.verdict if receipt else "no receipt"
            print(f"[{record.attempt}] {outcome.kind}, {verdict}")
        case _:
            pass


def main(repository: str, prompt: str) -> int:
    with perdure.open(cwd=repository, observers=[watch]) as runner:
        run = runner.run(prompt, attempts=2, labels={"program": "watch"})
        for attempt in runner.attempts(run.name):
            seconds = ((attempt.ended or attempt.started) - attempt.started) / 1000
            print(f"attempt {attempt.number}: {seconds:.0f} s, {attempt.usage.output} tokens out")
    return 0 if run.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
