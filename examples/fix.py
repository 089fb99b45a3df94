"""Run a task, ask for more in the same conversation, and bring the work into the checkout.

python examples/fix.py REPOSITORY "Fix the failing test"
"""

from __future__ import annotations

import sys

import perdure


def main(repository: str, prompt: str) -> int:
    with perdure.open(cwd=repository) as runner:
        run = runner.run(prompt, timeout="30m", attempts=5, continuity="strict")
        if not run.ok:
            print(f"{run.name} {run.state}: {run.reason}", file=sys.stderr)
            print(f"Try: perdure retry {run.name}", file=sys.stderr)
            return 1
        print(run.result)

        run = runner.update(run.name, "Also write a test for it.")
        print(run.result)
        verdict = run.receipt.verdict if run.receipt else "unknown"
        print(f"conversation: {verdict}, {run.usage.input + run.usage.output} tokens")

        applied = runner.apply(run.name)
        for file in applied.files:
            print(f"changed: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
