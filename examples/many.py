"""Run several tasks at once on one repository, two at a time, each in a worktree of its own.

python examples/many.py REPOSITORY "Fix the rounding" "Write the release notes" ...
"""

from __future__ import annotations

import asyncio
import sys

import perdure

AT_ONCE = 2


async def main(repository: str, prompts: list[str]) -> int:
    places = asyncio.Semaphore(AT_ONCE)

    async with perdure.connect(cwd=repository) as runner:

        async def work(prompt: str) -> perdure.RunResult:
            async with places:
                run = await runner.submit(prompt, timeout="1h")
                # A task that is canceled stops its agent cleanly; a retry continues it.
                async with asyncio.timeout(2 * 3600):
                    return await runner.follow(run.name)

        # If one of them fails, the group cancels the others.
        async with asyncio.TaskGroup() as group:
            working = [group.create_task(work(prompt)) for prompt in prompts]

    runs = [task.result() for task in working]
    for run in runs:
        print(f"{run.name:16} {run.state:10} {run.branch:24} {run.result}")
    return 0 if all(run.ok for run in runs) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2:])))
