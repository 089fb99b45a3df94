"""Runs a part of the suite with repository, root, state and homes on different file systems:
`python -m tests.spread [OPTION...]`.

Options are those of `tests.suite`.

Without a path among the arguments the part is `PARTS`: workdirs, checkpoints, capsules, clean-up,
and the main journeys with real agents.
"""

from __future__ import annotations

import os
import sys

from tests.spread import SWITCH

PARTS = (
    "tests/workspace/test_photograph.py",
    "tests/workspace/test_carrying.py",
    "tests/workspace/test_clones.py",
    "tests/workspace/test_removal.py",
    "tests/workspace/test_trash.py",
    "tests/checkpoints/test_restoring.py",
    "tests/sweeper/test_reset.py",
    "tests/spread/test_spread.py",
    "tests/journeys/test_one_task.py::test_a_task_succeeds_in_a_worktree_of_its_own",
    "tests/journeys/test_one_task.py::test_everything_is_killed_at_once",
    "tests/journeys/test_checkpoints.py::test_a_fork_begins_at_a_checkpoint",
    "tests/journeys/test_conversations.py::test_a_fork_begins_where_its_parent_stands",
    "tests/journeys/test_plan_runs.py::test_branches_run_at_the_same_time_and_meet",
    "tests/journeys/test_isolated.py::test_branches_of_clones_meet",
    "tests/journeys/test_checkouts.py",
)


def main(words: list[str]) -> None:
    """Replace this process by the suite in a new mount namespace."""
    # Root needs no user namespace, and without one, tests of root's rights are not changed.
    spaces = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    paths = () if any(word.partition("::")[0].startswith("tests/") for word in words) else PARTS
    command = ["unshare", *spaces, sys.executable, "-m", "tests.suite", *words, *paths]
    os.execvpe(command[0], command, {**os.environ, SWITCH: "1"})


if __name__ == "__main__":
    main(sys.argv[1:])
