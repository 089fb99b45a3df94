"""Runs plans, which are tasks that share conversations. Called by `perdure plan` and by programs.

Each task becomes an ordinary run, created when it may begin, so every command for runs works on it.
`creation` stores the plan, and later accepts changes of its file. `status` reads its progress and
what is left of its budget. `starts` creates a task's run, which continues the conversation of its
strand or forks another one. The run gets the files of the tasks that its task needs. `driver` runs
as many tasks at once as allowed. `conclusion` records where a task left its workdir and
conversation, merges the branches and checks the result. `report` builds the plan's report.

All state is in the store and in git, never only in the process. A plan that is killed at any point
continues when it is run again. Only one process drives a plan at a time, under a lease.
"""

from __future__ import annotations

from perdure.engine.plans.creation import begin
from perdure.engine.plans.driver import exit_code, resume, retry, run
from perdure.engine.plans.report import report_of

__all__ = ["begin", "exit_code", "report_of", "resume", "retry", "run"]
